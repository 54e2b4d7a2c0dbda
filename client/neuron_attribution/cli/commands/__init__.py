"""One file a command of `neuron-attribution`: its help, its arguments, what it does.

May import the rest of `cli` but for `main`, and everything below it.
"""
