"""Matrices that stay packed in memory: what packed numbers stand for, and the modules that have them.

May import attribution and the file parameters of architectures.
"""
