"""Where a model and its adapter come from: folders, files and the Hub, and what makes a file fit to be opened.

May import settings; never what reads a model's insides.
"""
