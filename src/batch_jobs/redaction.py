"""Take secrets out of a text before a person, a log or Slack sees it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote

MASK = "***"
LINE_LENGTH = 200
_READ_AT_MOST = 4_000
_SENSITIVE = (
    r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|token|credential|authorization"
    r"|api[_-]?key|access[_-]?key|private[_-]?key)[\w.-]*"
)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # scheme://user:password@host, greedy because a raw password may itself hold @ or /
        (r"\b([a-z][\w+.-]*://)[^\s/@:]*:\S*@", rf"\1{MASK}@"),
        (r"\b([a-z][\w+.-]*://)[^\s/@]+@", rf"\1{MASK}@"),
        # Slack webhooks, whole or only the secret path, and Slack's own tokens
        (r"(hooks\.slack(?:-gov)?\.com(?:/|%2f)\w+(?:/|%2f))\S+", rf"\1{MASK}"),
        (r"(?-i:\bT[A-Z0-9]{2,}(?:/|%2[Ff])B[A-Z0-9]{2,}(?:/|%2[Ff])[\w%-]{4,})", MASK),
        (r"\bx(?:ox[a-z]|app)-[\w-]+", MASK),
        (r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", rf"\1 {MASK}"),
        # name=value, name: value, "name": "value", --name value
        (rf"""\b({_SENSITIVE}["']?\s*(?:=|:)\s*)(?:"[^"]*"|'[^']*'|[^\s,;&]+)""", rf"\1{MASK}"),
        (rf"(--{_SENSITIVE}\s+)\S+", rf"\1{MASK}"),
        (r"(?-i:\b(?:AKIA|ASIA|AGPA|AIDA|AROA|ANPA)[A-Z0-9]{12,}\b)", MASK),
        (r"\b(?:gh[pousr]|github_pat|glpat)[_-]\w{16,}", MASK),
        (r"\beyJ[\w-]{6,}\.[\w-]+(?:\.[\w-]*)?", MASK),
    )
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without what looks like a secret.

    Covers Slack webhooks and tokens, passwords in URLs, `password=…` and its like, bearer tokens,
    AWS and GitHub keys and JSON web tokens.

    Args:
        text: any text.
        secrets: values that are known to be secret; taken out too, plain and percent-encoded.
    """
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        for form in {secret, quote(secret), quote(secret, safe="")}:
            text = text.replace(form, MASK)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def first_line(error: BaseException | str, secrets: Iterable[str] = ()) -> str:
    """What went wrong, as one redacted line of at most 200 characters, class name first."""
    if isinstance(error, BaseException):
        name = type(error).__name__
        try:
            message = str(error)
        except Exception:  # noqa: BLE001 - an exception that cannot be printed still has a name
            message = ""
        text = f"{name}: {_one_line(message)}" if message.strip() else name
    else:
        text = _one_line(error)
    text = redact(text, secrets)
    return text if len(text) <= LINE_LENGTH else text[: LINE_LENGTH - 1] + "…"


def _one_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if len(line) > _READ_AT_MOST:
        # A word cut in two could be half a secret, which no pattern knows.
        line = line[:_READ_AT_MOST].rpartition(" ")[0]
    return "".join(character if character.isprintable() else " " for character in line)
