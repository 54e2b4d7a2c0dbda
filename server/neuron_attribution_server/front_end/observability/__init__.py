"""What is counted and traced, by name.

May import tasks; never another room of the front end: each brings its own news.
"""
