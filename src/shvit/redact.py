"""Hide tokens and passwords in texts, such as URLs and commands, before they are printed or written."""

import re
from typing import Any

MASK = "***"
SECRET_WORDS = r"token|secret|passw(?:or)?d|api_?-?key|access_?-?key|credential"
SECRETS = (
    (r"(?<=://)[^/\s'\"?#@]*(?:@[^/\s'\"?#@]*)*@", f"{MASK}@"),  # user:password@
    (r"([?&#][^=&#\s'\"<>]{1,80}=)[^&#\s'\"<>]+", rf"\1{MASK}"),  # ?token=…&signature=…
    (r"(\bauthorization['\"]?\s{0,3}[:=]\s{0,3}['\"]?)[^'\"\n]+", rf"\1{MASK}"),
    (r"(\bbearer\s+)[^\s'\"]+", rf"\1{MASK}"),
    (rf"((?:{SECRET_WORDS})[\w-]{{0,40}}['\"]?\s{{0,3}}[=:]\s{{0,3}})[^\s'\"&,]+", rf"\1{MASK}"),
    (r"((?:^|\s)(?:-u|--user|--password|--token|--http-password)[ =]\s{0,3}['\"]?)[^\s'\"]+", rf"\1{MASK}"),
    (r"\bhf_[a-z0-9]{20,}", MASK),
)
"""Patterns of secrets and their replacements. Matching takes time linear in the length of the text."""
PATTERNS = [(re.compile(pattern, re.IGNORECASE), hidden) for pattern, hidden in SECRETS]


def redacted(value: Any) -> Any:
    """A copy of a text, or of nested lists and dicts of texts, with secrets replaced by `***`."""
    if isinstance(value, str):
        for secret, hidden in PATTERNS:
            value = secret.sub(hidden, value)
    elif isinstance(value, dict):
        value = {redacted(key): redacted(inner) for key, inner in value.items()}
    elif isinstance(value, list | tuple):
        value = type(value)(map(redacted, value))
    return value
