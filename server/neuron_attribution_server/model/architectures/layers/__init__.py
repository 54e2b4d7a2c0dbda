"""Inside one layer: where its modules are, and how it makes its value vectors.

May import `norms`, `parameters`, `projections` and `spec`; never `layer_view`, which reads through it.
"""
