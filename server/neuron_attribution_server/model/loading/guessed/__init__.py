"""Descriptions that `architectures/guessing` finds, proven beyond the invariants: the first that passes is served.

May import the other files of loading but `models`.
"""
