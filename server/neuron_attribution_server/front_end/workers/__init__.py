"""The worker processes, seen from outside: started, given batches, watched, and started again.

May import tasks and settings; never the model's wing, which a new process imports by name, or another room here.
"""
