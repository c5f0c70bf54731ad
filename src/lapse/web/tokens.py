"""Bearer tokens: who may do how much. Only hashes of them are kept.

read  <  key  <  pattern  <  clear        each scope has those to its left

read       statistics
key        one entry by its key
pattern    the entries of a pattern, a table or a tag
clear      everything; so too a pattern without any literal character, such as "*"
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

from lapse.invalidation.message import Invalidation

__all__ = ["SCOPES", "Scope", "Tokens", "covers", "hash_token", "scope_of"]

Scope = Literal["read", "key", "pattern", "clear"]

#: Every scope, from the least to the most.
SCOPES: tuple[Scope, ...] = get_args(Scope)

PREFIX = "sha256:"
_HASH = re.compile(PREFIX + "[0-9a-f]{64}", re.ASCII)
_TOKEN = re.compile("[!-~]{1,512}", re.ASCII)
# Stars, marks and brackets. A bracket ends with a "]" or with the pattern, so that there is one way
# to match, and the time is linear.
_NO_LITERAL = re.compile(r"(?:[*?]|\[(?:\\.|[^\]\\])*(?:\]|\\?\Z))*", re.DOTALL)


def hash_token(token: str) -> str:
    """What stands for `token` in a configuration: "sha256:" and 64 hexadecimal digits.

    Make tokens at random (`secrets.token_urlsafe(32)`): a word of a dictionary is found from its
    hash. Raises ValueError for a token that is not 1 to 512 visible ASCII characters.
    """
    if not _TOKEN.fullmatch(token):
        raise ValueError("a token is 1 to 512 visible ASCII characters")
    return PREFIX + _hashed(token)


def covers(granted: Scope, needed: Scope) -> bool:
    """Does one scope allow what needs the other?"""
    return SCOPES.index(granted) >= SCOPES.index(needed)


def scope_of(invalidation: Invalidation) -> Scope:
    """The scope that an invalidation needs."""
    kind = invalidation.kind
    if kind == "all" or (kind == "pattern" and _matches_anything(invalidation.target)):
        return "clear"
    return "key" if kind == "key" else "pattern"


def _matches_anything(pattern: str | bytes) -> bool:
    text = pattern if isinstance(pattern, str) else pattern.decode("latin-1")
    return _NO_LITERAL.fullmatch(text) is not None


class Grant(NamedTuple):
    """What a token is good for."""

    #: The first digits of the token's hash, to know it by in logs.
    fingerprint: str
    scope: Scope


class Tokens:
    """Scopes by token. Immutable, safe from any thread.

    Args:
        scopes: the scope of each token, which is given as it is or as `hash_token()` makes it.

    Raises ValueError for no token at all, for one that is no good, and for an unknown scope.
    """

    __slots__ = ("_grants",)

    def __init__(self, scopes: Mapping[str, Scope]) -> None:
        if not scopes:
            raise ValueError("there must be a token")
        for scope in scopes.values():
            if scope not in SCOPES:
                raise ValueError(f"a scope is one of {', '.join(SCOPES)}, not {scope!r}")
        self._grants = [
            ((token if _HASH.fullmatch(token) else hash_token(token))[len(PREFIX) :], scope)
            for token, scope in scopes.items()
        ]

    def find(self, token: str) -> Grant | None:
        """What `token` is good for; the time does not depend on which it is, or how near to one."""
        given = _hashed(token)
        found = None
        for digest, scope in self._grants:
            if hmac.compare_digest(digest, given):
                found = Grant(digest[:12], scope)
        return found

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._grants)} tokens)"


def _hashed(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "replace")).hexdigest()
