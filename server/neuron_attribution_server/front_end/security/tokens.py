"""Which tenant a bearer token belongs to. The server knows tokens by their SHA-256 only."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass, field

_LINE = re.compile(r"(?P<tenant>[A-Za-z0-9][A-Za-z0-9._-]{0,63})\s+(?P<digest>[0-9A-Fa-f]{64})", re.ASCII)


class TokenLineError(ValueError):
    """A line of a token file is wrong. The message has its number, and nothing of it: it may be a token."""


@dataclass(frozen=True, slots=True)
class Token:
    """The SHA-256 of a token, and whose it is."""

    tenant: str
    digest: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenTable:
    """The tokens that are valid. A tenant may have several."""

    tokens: tuple[Token, ...]

    def tenant_of(self, token: str) -> str | None:
        """The tenant of a token, None for an unknown one; the time taken does not tell how much of it was right."""
        digest = hashlib.sha256(token.encode(errors="replace")).digest()
        tenant = None
        for known in self.tokens:
            if hmac.compare_digest(known.digest, digest):
                tenant = known.tenant
        return tenant


def parse_tokens(text: str) -> TokenTable:
    """Read lines of the form `TENANT SHA256HEX`; blank lines and # comments are skipped. Raises TokenLineError.

    A byte-order mark before a line does not matter: editors put it there, once for each file that was joined.
    """
    tokens: dict[bytes, Token] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.removeprefix("\ufeff").strip()
        if not content or content.startswith("#"):
            continue
        token = _parse(content, number)
        if token.digest in tokens:
            raise TokenLineError(f"line {number}: this token stands in an earlier line, too; remove one of them")
        tokens[token.digest] = token
    return TokenTable(tuple(tokens.values()))


def _parse(line: str, number: int) -> Token:
    match = _LINE.fullmatch(line)
    if match is None:
        raise TokenLineError(
            f"line {number} is not TENANT SHA256HEX: a name of letters, digits and .-_, "
            "and the 64 digits that `printf %s TOKEN | sha256sum` prints"
        )
    return Token(match["tenant"], bytes.fromhex(match["digest"]))
