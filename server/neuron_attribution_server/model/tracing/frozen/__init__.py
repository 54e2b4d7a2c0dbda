"""The frozen linear model of one pass: built from what was captured, and swept back from its output.

May import architectures, attribution and capture; never what is made of its edges.
"""
