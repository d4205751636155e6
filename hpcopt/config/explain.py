"""What is wrong with a table, in words for its writer."""

from __future__ import annotations

import re
from itertools import groupby, islice
from typing import Any

from pydantic import BaseModel, ValidationError

from hpcopt.ground.words import suggestion

# pydantic's words for the mistakes that users make most, in ours
_REASONS = {
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be a string in quotes",
    "list_type": "must be a list",
    "finite_number": "must be a finite number",
}
SHOWN, MOST = 500, 30
"""letters of a value; keys that are explained"""
# pydantic's words for the types that a key may have
_TYPE = re.compile(r"int|float|str|bool|constrained-\w+|(list|literal)\[.*\]")


def explained(table: type[BaseModel], error: ValidationError) -> list[str]:
    """One line for each key that is wrong: the key, its value and what is allowed."""
    by_key = groupby(error.errors(include_url=False), key=lambda detail: detail["loc"][:1])
    lines = [_explain(table, list(details)) for _, details in islice(by_key, MOST)]
    more = len(list(by_key))
    return lines + [f"and {more} more keys"] * (more > 0)


def _explain(table: type[BaseModel], details: list[Any]) -> str:
    """What is wrong with one key; where it may be of several types there is a detail for each of them."""
    reasons = [_REASONS.get(d["type"], d["msg"].removeprefix("Value error, ")) for d in details]
    detail = details[0]
    if not detail["loc"]:
        return "; ".join(reasons)
    key = ".".join(str(part) for part in detail["loc"] if not _is_type(part))
    if detail["type"] == "extra_forbidden":
        allowed = ", ".join(sorted(table.model_fields))
        return f"{key}: unknown key{suggestion(key, table.model_fields)}; allowed: {allowed}"
    if detail["type"] == "missing":
        return f"{key}: is missing"
    reason = ", or ".join(text[0].lower() + text[1:] for text in dict.fromkeys(reasons))
    return f"{key} = {_shown(detail['input'])}: {reason}"


def _shown(value: Any) -> str:
    """A value, a long one by its beginning."""
    text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _is_type(part: int | str) -> bool:
    """Whether a part of an error's place is one of a key's types, and not a key or a place in a list."""
    return isinstance(part, str) and _TYPE.fullmatch(part) is not None
