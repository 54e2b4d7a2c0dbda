"""One batch, from a forward pass to answers.

May import capture, architectures, attribution and tasks; never loading, or the process it runs in.
"""
