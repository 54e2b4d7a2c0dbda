"""What is asked about the server rather than of it: health and metrics; and the ports of gRPC.

May import http, transfer and settings; never the service, the queue or the workers.
"""
