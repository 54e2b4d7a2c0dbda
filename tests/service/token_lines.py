"""Lines of a token file."""

import hashlib


def digest(token):
    return hashlib.sha256(token.encode()).hexdigest()


def line(tenant, token):
    return f"{tenant} {digest(token)}\n"
