"""One forward pass: everything in it is recorded, or some of it changed.

May import architectures and attribution; never loading, or what is made of the record.
"""
