"""Tasks wait here, become batches, and are given to workers.

May import workers, calls, observability, tasks and settings; never gRPC, or the service whose tasks they are.
"""
