"""Explained tokens taken together: which rows they are, and what their scores add up to.

May import what explanation may, and of that its rows, heads, projections and rankings; never its explainer.
"""
