"""Finds texts that look like keys, phone numbers, e-mail addresses or identity numbers, which nobody means to teach.

Shapes only: what is found may be harmless, and what has another shape is not found.
"""

import re
from collections.abc import Iterator

_SHAPES = {
    "API key": r"\b(?:sk-[\w-]{20,}|hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36}|xox[abprs]-[\w-]{10,}"
    r"|(?:AKIA|ASIA)[0-9A-Z]{16})\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "identity number": r"(?<!\d)\d{6}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?!\w)",
    "phone number": r"(?<![\d.])(?:\+?86[- ]?)?1[3-9]\d(?:[- ]?\d{4}){2}(?![\d.])"
    r"|(?<!\d)\+\d{1,3}(?:[- ]?\d{2,4}){3,4}(?!\d)",
    "e-mail address": r"\b[\w.+-]+@[\w-]+\.[A-Za-z]{2,}\b",
}
_ANY = re.compile("|".join(f"({shape})" for shape in _SHAPES.values()))
_KINDS = list(_SHAPES)


def sensitive(text: str) -> Iterator[tuple[str, str]]:
    """Yield (kind, the find with all but its first four characters hidden)."""
    for match in _ANY.finditer(text):
        yield _KINDS[match.lastindex - 1], match.group()[:4] + "*" * min(len(match.group()) - 4, 8)
