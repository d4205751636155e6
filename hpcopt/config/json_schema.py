"""The JSON schema of a config, for editors: what `hpcopt schema` prints."""

from __future__ import annotations

from typing import Any

from hpcopt.config.base import Table
from hpcopt.config.methods import METHODS, method_table
from hpcopt.config.problems import PROBLEM_TABLES, problem_class
from hpcopt.config.run import RunTable

DRAFT = "https://json-schema.org/draft/2020-12/schema"
DEFAULT = RunTable.model_fields["method"].default
"""the method of a config that names none"""


def json_schema() -> dict[str, Any]:
    """Of all built-in methods and problems; keys of one's own ones are not known, and may be any."""
    choices = [_choice("run", "method", name, "method", method_table(name)) for name in METHODS]
    choices += [_choice("problem", "kind", kind, "problem", problem_class(kind)) for kind in PROBLEM_TABLES]
    unnamed = {"not": _has("run", "method")}
    choices.append({"if": unnamed, "then": _table("method", method_table(DEFAULT))})
    return {
        "$schema": DRAFT,
        "title": "hpcopt config",
        "type": "object",
        "additionalProperties": False,
        "required": ["problem"],
        "properties": {
            "run": _keys(RunTable),
            "method": {"type": "object", "description": "the method's settings"},
            "problem": {
                "type": "object",
                "required": ["kind"],
                "properties": {"kind": {"type": "string", "examples": [*PROBLEM_TABLES]}},
            },
        },
        "allOf": choices,
    }


def _choice(where: str, key: str, name: str, table: str, keys: type[Table]) -> dict[str, Any]:
    """What a table's keys are where another key has a value."""
    return {"if": _has(where, key, {"const": name}), "then": _table(table, keys)}


def _has(table: str, key: str, value: dict[str, Any] | None = None) -> dict[str, Any]:
    inside = {"required": [key], "properties": {key: value or {}}}
    return {"required": [table], "properties": {table: inside}}


def _table(name: str, keys: type[Table]) -> dict[str, Any]:
    return {"properties": {name: _keys(keys)}}


def _keys(table: type[Table]) -> dict[str, Any]:
    found: dict[str, Any] = table.model_json_schema()
    return found
