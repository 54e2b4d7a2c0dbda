"""How calls reach a service and answers come back: the channel, the calls, their statuses, streams of items.

May import `convert` and the data; never what shows results, compares them or studies a corpus.
"""
