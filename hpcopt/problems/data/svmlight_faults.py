"""What is wrong with a line of svmlight text, in words."""

from __future__ import annotations

import re

NUMBER = re.compile(rb"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
NOT_FINITE = re.compile(rb"[+-]?(nan|inf|infinity)", re.IGNORECASE)
SHOWN = 40  # characters of a word in a message


def first_fault(text: bytes, most: int) -> tuple[int, str]:
    """The first line with a fault, counted from 0, and what it is.

    Args:
        text: lines.
        most: the largest index that is allowed.
    """
    for place, line in enumerate(text.split(b"\n")):
        fault = _fault(line.partition(b"#")[0].split(), most)
        if fault is not None:
            return place, fault
    return 0, "cannot be read, here or in the lines after it"


def _fault(words: list[bytes], most: int) -> str | None:
    if not words:
        return None
    label, *pairs = words
    if (fault := _number_fault(label)) is not None:
        return f"label {_shown(label)}: {fault}"
    before = 0
    for pair in pairs:
        index, colon, value = pair.partition(b":")
        if index == b"qid":
            return f"{_shown(pair)}: rows in groups are not read; remove qid"
        if not colon or not index or not value:
            return f"{_shown(pair)}: must be index:value, without spaces"
        if (fault := _index_fault(index, before, most)) is not None:
            return f"index {_shown(index)}: {fault}"
        if (fault := _number_fault(value)) is not None:
            return f"value {_shown(value)} of index {_shown(index)}: {fault}"
        before = int(index)
    return None


def _index_fault(index: bytes, before: int, most: int) -> str | None:
    if not index.isdigit():
        return f"must be a whole number, 1…{most}"
    number = int(index[:30])  # Python refuses to read numbers of thousands of digits
    if number == 0:
        return f"must be 1…{most}; the first feature has index 1"
    if number > most:
        return f"must be 1…{most}, the number of features"
    if number == before:
        return "stands twice in the line"
    if number < before:
        return f"comes after {before}; indices must ascend"
    return None


def _number_fault(word: bytes) -> str | None:
    if NOT_FINITE.fullmatch(word):
        return "must be finite"
    if not NUMBER.fullmatch(word):
        return "must be a number"
    return "must be finite" if abs(float(word)) == float("inf") else None


def _shown(word: bytes) -> str:
    text = word.decode("ascii", "backslashreplace")
    return f'"{text}"' if len(text) <= SHOWN else f'"{text[:SHOWN]}…"'
