"""Graphs of predictions as other tools read them: networkx, and the viewers of circuit-tracer's graphs.

May import the data and what shows it.
"""
