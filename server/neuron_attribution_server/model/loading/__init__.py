"""A model comes from a folder, a file or the Hub, is proved to work as its architecture says, and becomes an engine.

May import engine, capture, architectures, attribution, tasks and settings; never the process it runs in.
"""
