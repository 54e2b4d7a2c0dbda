"""Results for people and for other tools: tables of text, of values, HTML, and what a Python prompt shows.

`tables` are text, one a part of a result; the command line, notebooks and rich print them. `records` are values, one
row a component, for data frames and CSV. May import the data.
"""
