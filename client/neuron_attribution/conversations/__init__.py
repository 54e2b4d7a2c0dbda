"""Conversations: messages as data, as callers write them, and where the tokens of one come from.

May import errors; nothing else of the client.
"""
