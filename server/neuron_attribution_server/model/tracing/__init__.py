"""Graphs of predictions: what is screened, measured by reruns, and kept of the frozen linear model's edges.

May import architectures, attribution and capture; never the engine, which asks for graphs.
"""
