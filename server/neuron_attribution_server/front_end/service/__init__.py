"""The calls of the protocol: read and checked on their way in, written on their way out.

May import scheduling, transfer, calls and tasks; never the web page, or who may call.
"""
