"""HTTP as the web page and the metrics need it: ports with a bound on connections, callers with one on time.

May import nothing else of the server.
"""
