"""The command line: `main` parses and runs, `commands` has a file for each, the rest is what several print or read.

May import everything of the client.
"""
