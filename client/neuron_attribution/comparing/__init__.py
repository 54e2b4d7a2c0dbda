"""Two predictions compared, and a prediction without each head in turn: which calls find that, what their answers say.

May import `transport` and the data. The steps yield calls and are sent their answers; both clients run them.
"""
