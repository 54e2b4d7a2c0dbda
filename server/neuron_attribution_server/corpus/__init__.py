"""A corpus on Ray, without a server: actors that hold the model read prompts as the front end does.

May import the front end's service and scheduling, the model's process, tasks and settings; never what serves calls.
"""
