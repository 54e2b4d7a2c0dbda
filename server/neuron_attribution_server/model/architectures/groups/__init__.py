"""Architectures by the shape they share, a file each: what a group has in common, and what is different in each family.

May import `spec`; never another file of architectures.
"""
