"""What requests are made of, in both forms: prompts, conversations, and how tokens are generated.

May import the values and the enums of the room around it, and what that may.
"""
