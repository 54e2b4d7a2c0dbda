"""The model's own processes: what is loaded in them, and how a batch is answered.

May import tasks and settings; never the front end, gRPC or protobuf.
"""
