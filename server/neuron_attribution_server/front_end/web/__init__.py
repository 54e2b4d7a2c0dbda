"""The page, and the calls as JSON over HTTP, passed on to a gRPC server in the same process.

May import http, security, calls and settings; never the service: it asks as any other caller does.
"""
