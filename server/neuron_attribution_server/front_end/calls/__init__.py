"""What is known of a call while it runs, whose it is, and what a log or a caller may read of it.

May import observability; never what carries calls, queues them or answers them.
"""
