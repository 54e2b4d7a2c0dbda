"""The best value neurons of many rows at once, found without scoring every one.

May import the formulas around it, and nothing that they may not.
"""
