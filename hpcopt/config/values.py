"""The values of a key that takes several, as typed: "TABLE.KEY=V1,V2,…" in TOML's notation, or ranges."""

from __future__ import annotations

import re

from hpcopt.errors import UserError

MOST = 10_000
"""values of a key, and cases of a sweep or tasks of an array"""
_RANGE = re.compile(r"([+-]?\d{1,15}):([+-]?\d{1,15})(?::([+-]?\d{1,15}))?", re.ASCII)
_OPENING, _CLOSING = "[{(", "]})"


def axis(text: str, option: str = "--over") -> tuple[str, list[str] | range]:
    """A key and its values, in TOML's notation; raises `UserError`.

    >>> axis("method.lr=0.01,0.1"), axis("run.seed=0:3")
    (('method.lr', ['0.01', '0.1']), ('run.seed', range(0, 3)))
    """
    key, equals, values = text.partition("=")
    if not equals or not re.fullmatch(r"\w+\.\w+", key := key.strip(), re.ASCII):
        raise UserError(f"{option} {text}: must be TABLE.KEY=VALUE,VALUE,…, like method.lr=0.1,0.2")
    if key == "run.out":
        raise UserError(f"{option} run.out: every run gets a directory of its own anyway")
    parts = [_range(part, f"{option} {text}") or [part] for part in split(values, f"{option} {key}")]
    if len(parts) == 1:
        return key, parts[0]
    if sum(map(len, parts)) > MOST:
        raise UserError(f"{option} {key}: has more than {MOST} values")
    return key, [str(value) for part in parts for value in part]


def split(text: str, where: str) -> list[str]:
    """A list's elements between commas, where those inside brackets and quotes do not count.

    Args:
        text: the list.
        where: the option, for messages.

    Raises:
        UserError: an element is empty, or a bracket or a quote is not closed.
    """
    parts, quote, depth = [""], "", 0
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        else:
            depth += (letter in _OPENING) - (letter in _CLOSING)
        if letter == "," and not quote and not depth:
            parts.append("")
        else:
            parts[-1] += letter
        if depth < 0:
            break
    parts = [part.strip() for part in parts]
    if quote or depth or not all(parts):
        raise UserError(f"{where}={text}: must be values, with one comma between two of them")
    return parts


def _range(text: str, where: str) -> range | None:
    """The whole numbers of FIRST:END or FIRST:END:STEP; None for another value."""
    found = _RANGE.fullmatch(text)
    if found is None:
        return None
    first, end, step = (int(part) if part else 1 for part in found.groups())
    if not step or not (numbers := range(first, end, step)):
        raise UserError(f"{where}: {text} has no number in it; 0:5 is 0 to 4, and 0:10:2 every other one")
    return numbers
