"""Tokens and passwords in addresses and commands are left out of everything that is written or shown."""

import re
from typing import Any, TypeVar

T = TypeVar("T")
HIDDEN = "***"
SECRETS = (
    (re.compile(r"(?<=://)[^/\s'\"?#@]*(?:@[^/\s'\"?#@]*)*@"), f"{HIDDEN}@"),  # user:password@
    (re.compile(r"([?&#][^=&#;\s'\"<>]{1,80}=)[^&#;\s'\"<>]+"), rf"\g<1>{HIDDEN}"),  # ?token=…&signature=…
    (re.compile(r"(?i)(\bauthorization['\"]?\s{0,3}[:=]\s{0,3}['\"]?)[^'\"\n]+"), rf"\g<1>{HIDDEN}"),
    (re.compile(r"(?i)(\bbearer\s+)[^\s'\"]+"), rf"\g<1>{HIDDEN}"),
    (
        re.compile(r"(?i)((?:token|secret|passw(?:or)?d|api_?-?key|access_?-?key|credential)[\w-]{0,40}['\"]?\s{0,3}[=:]\s{0,3})[^\s'\"&,]+"),
        rf"\g<1>{HIDDEN}",
    ),
    (re.compile(r"((?:^|\s)(?:-u|--user|--password|--token|--http-password)[ =]\s{0,3}['\"]?)[^\s'\"]*[^\s'\"-][^\s'\"]*"), rf"\g<1>{HIDDEN}"),
    (re.compile(r"\bhf_[A-Za-z0-9]{20,}"), HIDDEN),
)  # fmt: skip
"""What gives a secret away, and what is written instead. Each takes time in proportion to the text alone."""


def redacted(value: T) -> T:
    """The same text, or nested plain data, with secrets hidden."""
    found: Any = value
    if isinstance(found, str):
        for secret, hidden in SECRETS:
            found = secret.sub(hidden, found)
    elif isinstance(found, dict):
        found = {redacted(key): redacted(inner) for key, inner in found.items()}
    elif isinstance(found, list | tuple):
        found = type(found)(redacted(inner) for inner in found)
    return found
