"""A description of an architecture that nobody has described, found from a model by how it behaves.

Evidence and not names: which module gives the numbers that another takes in. What is found here is proven before it is
served, by `model/loading/guessed`. May import the files of architectures; they never import it.
"""
