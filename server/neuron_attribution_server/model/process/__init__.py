"""The worker process, from inside: it loads the model, measures it, and runs batches until its pipe closes.

May import loading, attribution, tasks and settings; never the front end. Loading waits until the process runs.
"""
