"""Invalidation over HTTP: webhooks, an interface for administrators, an API for programs.

    webhook.py       WebhookInvalidation            signed messages of other services
    admin.py         AdministrativeInvalidation     by key, by pattern, all; statistics
    api.py           APIInvalidation                by key, pattern, table, tag, all
       ▼
    app.py           what they share: a Flask app and blueprint, answers, counts
    guards.py        who is admitted: a signature, a bearer token, or this machine alone
    serving.py       waitress
    signatures.py, tokens.py, bodies.py, audit.py, stats.py

The classes need `pip install 'lapse[web]'`; `sign` and `hash_token` are for senders and
configurations, and need nothing.
"""

from __future__ import annotations

from lapse.web.signatures import SignatureError, Signatures, sign
from lapse.web.tokens import SCOPES, Scope, hash_token

__all__ = ["SCOPES", "Scope", "SignatureError", "Signatures", "hash_token", "sign"]
