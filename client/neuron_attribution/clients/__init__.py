"""The two clients: the synchronous and the asynchronous one, with the same methods.

May import what they send, compare and show; no command.
"""
