"""Who may call: tokens, certificates, and the files of both, read again when they change.

May import interceptors, calls and settings; never the service, the queue or the web page.
"""
