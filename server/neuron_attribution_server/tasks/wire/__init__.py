"""What the front end and a worker's process say to each other, and the pipe they say it through.

May import the tasks and answers of the room around it.
"""
