"""What both wings know: what is asked, answered and reported, what it costs, and the pipe it goes through.

May import nothing else of the server.
"""
