"""Graphs of predictions in both forms: what is asked for, and the answer.

May import the values, the enums and the results of the room around it, what is asked, and what that may.
"""
