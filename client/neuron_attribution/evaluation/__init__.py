"""The paper's protocol over a running service: which neurons it takes away, and what the model says without them.

May import the clients and what is below them; never the command line.
"""
