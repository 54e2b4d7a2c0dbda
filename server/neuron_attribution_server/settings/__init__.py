"""How a process of the server is set up: its configuration, its log, its memory, and the files named to it.

May import nothing else of the server.
"""
