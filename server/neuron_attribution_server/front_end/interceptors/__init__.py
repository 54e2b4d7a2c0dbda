"""What every call goes through first: it is noted, and its errors become statuses.

May import transfer, calls and observability; never security, the service or the queue.
"""
