"""The bytes that callers send and are sent: how many are held for whom, and how long a caller may take.

May import calls and settings; never what the bytes mean: no service, no queue.
"""
