"""What callers reach: it takes calls, queues them, has them run by workers, and writes what comes back.

May import tasks and settings; never the model's wing, torch or transformers.
"""
