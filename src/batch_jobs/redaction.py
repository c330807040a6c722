"""Take secrets out of a text before a person, a log or Slack sees it.

In time that grows with the length of the text and no faster: no pattern begins anew within what it
has just read in vain, so that a long error cannot hold an alert up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import quote

MASK = "***"
LINE_LENGTH = 200
_READ_AT_MOST = 4_000
_SENSITIVE = re.compile(
    r"password|passwd|passphrase|pwd|secret|token|credential|authorization"
    r"|api[_-]?key|access[_-]?key|private[_-]?key|signing[_-]?key",
    re.IGNORECASE,
)
# name=value, name: value, "name": "value", --name value; also percent-encoded. A name is read from
# its beginning only, and given back to nobody (`++`).
_NAME = re.compile(
    r"""(?<![\w.-])(?:([\w.-]++)(?:["']|%22|%27)?+\s*+(?:[=:]|%3d|%3a)|(--[\w.-]++)(?=\s))\s*+""",
    re.IGNORECASE,
)
_VALUE = re.compile(r"""("(?:[^"\\]|\\.)*+"|'(?:[^'\\]|\\.)*+'|[^\s;&]++)""")
_WORD = re.compile(r"\S++")
_SCHEME = re.compile(r"(?<=[a-z\d])(?:://|%3a%2f%2f)", re.IGNORECASE)
_USER = re.compile(r"(?:[^/@:%]|%(?!40|3a|2f))*+(?::|%3a|(?=@|%40))", re.IGNORECASE)
_HOOK = re.compile(r"(?:/|%2f)(?:web)?hooks?2?(?:/|%2f)", re.IGNORECASE)
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # Webhooks of Slack, whole or only the secret path; of others; and Slack's own tokens
        (r"(hooks\.slack(?:-gov)?\.com(?:/|%2f)\w++(?:/|%2f))\S++", rf"\1{MASK}"),
        (r"(webhook\.office\.com(?:/|%2f)|hc-ping\.com(?:/|%2f))\S++", rf"\1{MASK}"),
        (r"(?-i:\bT[A-Z0-9]{2,}+(?:/|%2[Ff])B[A-Z0-9]{2,}+(?:/|%2[Ff])[^\s,;\"'<>()]{4,}+)", MASK),
        (r"\bx(?:ox[a-z]|app)-[\w-]++", MASK),
        (r"\bbot\d{6,}+(?::|%3a)[\w-]{20,}+", MASK),
        (r"\b(bearer|basic)(?:\s++|%20|\+)[\w.~+/=%-]{6,}+", rf"\1 {MASK}"),
        (r"(?-i:\b(?:AKIA|ASIA|AGPA|AIDA|AROA|ANPA)[A-Z0-9]{12,}+\b)", MASK),
        (r"\b(?:gh[pousr]|github_pat|glpat)[_-]\w{16,}+", MASK),
        (r"(?<![\w-])eyJ[\w-]{6,}+\.[\w-]++(?:\.[\w-]*+)?", MASK),
        (r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:(?!-----END)[\s\S])*+", MASK),
    )
)


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without what looks like a secret.

    Covers webhooks and tokens of Slack and others, passwords in URLs, `password=…` and its like,
    bearer tokens, AWS and GitHub keys, JSON web tokens and private keys, percent-encoded, too.

    Args:
        text: any text.
        secrets: values that are known to be secret; taken out too, plain and percent-encoded.
    """
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        for form in _forms(secret):
            text = text.replace(form, MASK)
    text = _WORD.sub(_without_address, text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return "".join(_without_values(text))


def _forms(secret: str) -> set[str]:
    quoted = {quote(secret), quote(secret, safe="")}
    lower = {re.sub(r"%[0-9A-F]{2}", lambda found: found[0].lower(), form) for form in quoted}
    return {secret, *quoted, *lower}


def _without_values(text: str) -> Iterator[str]:
    """The pieces of the text, the values of sensitive names masked."""
    done = 0
    while name := _NAME.search(text, done):
        yield text[done : name.end()]
        done = name.end()
        if _SENSITIVE.search(name[0]) and (value := _VALUE.match(text, done)):
            yield MASK
            done = value.end()
    yield text[done:]


def _without_address(found: re.Match[str]) -> str:
    """A word without what is secret of the addresses in it: a login, or what follows a hook."""
    word = found[0]
    first = _SCHEME.search(word)
    if first is None:
        return word
    if hook := _HOOK.search(word, first.end()):
        word = f"{word[: hook.end()]}{MASK}"
    lower = word.lower()
    # The last, because a raw password may itself hold @ or /.
    end = max(lower.rfind("@"), lower.rfind("%40"))
    for scheme in _SCHEME.finditer(word, 0, max(end, 0)):
        if _USER.match(word, scheme.end(), end + 3):
            return f"{word[: scheme.end()]}{MASK}{word[end:]}"
    return word


def first_line(
    error: BaseException | str, secrets: Iterable[str] = (), length: int = LINE_LENGTH
) -> str:
    """What went wrong, as one redacted line of at most so many characters, class name first."""
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
    return text if len(text) <= length else text[: length - 1] + "…"


def _one_line(text: str) -> str:
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    if len(line) > _READ_AT_MOST:
        # A word cut in two could be half a secret, which no pattern knows.
        line = line[:_READ_AT_MOST].rpartition(" ")[0]
    return "".join(character if character.isprintable() else " " for character in line)
