"""A study's plan in its directory: written once, compared whenever the study goes on. No torch, no MPI."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from hpcopt.config.io import RunConfig, check_table, from_tables, parse
from hpcopt.config.scale import Launch, Plan, ScaleTable
from hpcopt.errors import UserError
from hpcopt.ground import files

PLAN, CONFIGS = "scale.toml", "configs"
OTHER = ("config.toml", "run.h5", "sweep.toml")
"""what a directory that is none of a study's may hold"""


def keep(plan: Plan, directory: Path) -> Plan:
    """Writes the plan and the configs into a study's directory; the plan with the order that is there.

    Raises:
        UserError: it holds another plan, or something else, or cannot be written.
    """
    path = directory / PLAN
    if os.path.exists(path):  # unlike Path.exists, it takes any name
        stored = read(directory)
        if different := _differences(stored, plan):
            raise UserError(
                "\n".join([f"{directory}: holds another study; choose another directory", *different])
            )
        return stored
    held = next((name for name in OTHER if os.path.exists(directory / name)), None)
    if held:
        raise UserError(f"{directory}: already holds {held}; choose another directory with --out")
    with files.refusals(directory):
        (directory / CONFIGS).mkdir(parents=True, exist_ok=True)
    for ranks in plan.table.ranks:
        _write(directory / CONFIGS / f"p{ranks:05d}.toml", _toml(plan.config_of(ranks)))
    order = ", ".join(f"[{launch.ranks}, {launch.repeat}]" for launch in plan.order)
    written = f"# Written by `hpcopt scale`; order: [ranks, repeat]\norder = [{order}]\n"
    # last: where it is, all is
    _write(path, plan.table.model_dump() | {"config": _toml(plan.config)}, written)
    return plan


def read(directory: Path) -> Plan:
    """The plan of a study that is in a directory.

    Raises:
        UserError: there is none.
    """
    path = directory / PLAN
    found = parse(path)
    tables = found.pop("config", {})
    order = [tuple(pair) if isinstance(pair, list) else pair for pair in found.pop("order", [])]
    table = check_table(ScaleTable, found, str(path))
    launches = {(ranks, repeat) for ranks in table.ranks for repeat in range(table.repeats)}
    if len(order) != len(launches) or set(order) != launches:
        raise UserError(f"{path}: order: must have every repeat of every point once")
    return Plan(table, from_tables(tables, str(path)), tuple(Launch(*pair) for pair in order))


def _differences(stored: Plan, now: Plan) -> list[str]:
    """What is not as the directory has it, a line each."""
    then, new = _flat(stored), _flat(now)
    return [
        f"{key} = {new.get(key)!r}, but there {then.get(key)!r}"
        for key in [*new, *(key for key in then if key not in new)]
        if then.get(key) != new.get(key)
    ]


def _flat(plan: Plan) -> dict[str, Any]:
    """All but the order, by names for people."""
    options = {
        ScaleTable.model_fields[key].alias or key: value for key, value in plan.table.model_dump().items()
    }
    tables = _toml(plan.config).items()
    return options | {f"[{name}] {key}": value for name, table in tables for key, value in table.items()}


def _toml(config: RunConfig) -> dict[str, Any]:
    """The tables, without a directory: every launch has its own."""
    tables = config.tables()
    tables["run"].pop("out", None)
    return tables


def _write(path: Path, tables: dict[str, Any], before: str = "") -> None:
    import tomli_w

    with files.replacing(path) as partial:
        partial.write_text(before + tomli_w.dumps(tables), encoding="utf-8")
