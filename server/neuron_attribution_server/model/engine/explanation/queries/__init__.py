"""The query parts: which layers and which FFN neurons activate the strongest value neurons.

May import what explanation may, and of that its keys, rows, sources and rankings; never its explainer.
"""
