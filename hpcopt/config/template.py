"""A commented config to start from: what `hpcopt init METHOD` prints."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from hpcopt.config.base import Table
from hpcopt.config.methods import method_table
from hpcopt.config.problems import problem_class
from hpcopt.config.run import RunTable
from hpcopt.errors import UserError


def template(method: str, kind: str | None = None) -> str:
    """A complete config for a method and a kind of problem, every key with its meaning and default.

    Without a kind it is a network, or the first kind that the method is for.

    Raises:
        UserError: an unknown method or kind, or a factory, whose keys are known to itself alone.
    """
    settings = method_table(method)
    kind = kind or next(iter(settings.kinds), "network")
    problem = problem_class(kind)
    if problem.model_config["extra"] == "allow":
        raise UserError(f"{kind}: a function takes what it takes; only of a class are the keys known")
    return "\n".join(
        [
            f"# hpcopt config: {method} on {kind}. Keys that are commented out have no value unless set.",
            "",
            _table("run", RunTable, {"method": method}),
            _table("method", settings, {}),
            _table("problem", problem, {"kind": kind}),
        ]
    )


def _table(name: str, table: type[Table], values: dict[str, Any]) -> str:
    lines = [f"[{name}]"]
    for key, field in table.model_fields.items():
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        value = values.get(key, default)
        lines.append(f"# {' '.join((field.description or key).split())}{_allowed(field)}")
        lines.append(f"# {key} =" if value is None else f"{key} = {json.dumps(value, ensure_ascii=False)}")
    return "\n".join([*lines, ""])


def _allowed(field: FieldInfo) -> str:
    words = [json.dumps(word) for word in _literals(field.annotation)]
    if words and int in _leaves(field.annotation):
        words.insert(0, "a whole number")
    return f" [{' | '.join(words)}]" if words else ""


def _leaves(annotation: Any) -> list[Any]:
    """The types that a value may have, those within a list left out."""
    if get_origin(annotation) in (list, Literal):
        return [get_origin(annotation)]
    parts = get_args(annotation)
    return [leaf for part in parts for leaf in _leaves(part)] if parts else [annotation]


def _literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [word for part in get_args(annotation) for word in _literals(part)]
