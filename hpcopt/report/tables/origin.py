"""Where results come from, and what differs between the runs' configs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hpcopt.report.runs import Run, Trouble
from hpcopt.report.tables.table import Cell, Column, Table, columns, short

NAMED = 3
"""runs that are named where more share a value"""


def differences(runs: Sequence[Run]) -> Table:
    """The keys of the configs that differ, a column each; a row for each run."""
    flat = [_flat(run) for run in runs]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    differing = [key for key in keys if len({json.dumps(one.get(key)) for one in flat}) > 1]
    return Table(
        "differences",
        "What differs between the configs",
        "Keys that are the same in all runs are left out; empty where a run has no such key.",
        [Column("run"), *(Column(key) for key in differing)],
        [
            [run.name, *(_value(one.get(key)) for key in differing)]
            for run, one in zip(runs, flat, strict=True)
            if differing
        ],
    )


def runs(runs: Sequence[Run]) -> Table:
    """Where each run is and when it ran."""
    return Table(
        "runs",
        "Runs",
        "Begun and ended by the clock of the first rank's host; the end is that of the last job.",
        columns("run", "path", "status", "stopped by", "begun", "ended", "jobs [1]", "hosts [1]"),
        [
            [
                *(run.name, str(run.path), run.status, _text(run, "stopped_by")),
                *(_text(run, "start"), _text(run, "end"), len(run.about("jobs")), len(run.about("hosts"))),
            ]
            for run in runs
        ],
    )


def provenance(runs: Sequence[Run]) -> Table:
    """What the runs were made with: a row for each value of each thing, and the runs that have it."""
    made_with: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for what, value in _made_with(run).items():
            made_with.setdefault((what, value), []).append(run.name)
    order = list(dict.fromkeys(what for what, _ in made_with))
    return Table(
        "provenance",
        "Made with",
        "Versions, machines and what was measured or chosen at the start.",
        columns("what", "value", "runs"),
        [
            [what, value, _which(names, len(runs))]
            for (what, value), names in sorted(made_with.items(), key=lambda row: order.index(row[0][0]))
        ],
    )


def troubles(troubles: Sequence[Trouble]) -> Table:
    """What is not in the report."""
    return Table(
        "troubles",
        "Left out",
        "What could not be read, or failed.",
        columns("path", "why"),
        [[trouble.path, trouble.message] for trouble in troubles],
    )


def _flat(run: Run) -> dict[str, Any]:
    """TABLE.KEY -> value; with the ranks, which no config tells."""
    keys = {
        f"{table}.{key}": value
        for table, values in run.config.items()
        for key, value in (values.items() if isinstance(values, dict) else ())
    }
    keys.pop("run.out", None)
    ranks = run.tree.attrs.get("ranks")
    return keys | ({} if ranks is None else {"ranks": int(ranks)})


def _made_with(run: Run) -> dict[str, str]:
    about = run.tree.attrs
    known = {
        name: str(about[name])
        for name in ("version", "commit", "device", "device_name", "tf32", "dtype", "notes")
        if about.get(name)
    }
    known |= {
        str(name): str(version) for name, version in dict(run.about("libraries")).items() if name != "hpcopt"
    }
    known["hosts"] = ", ".join(sorted(map(str, run.about("hosts"))))
    known |= {str(name): json.dumps(value) for name, value in dict(run.about("chosen")).items()}
    return {what: short(value) for what, value in known.items() if value}


def _which(names: Sequence[str], count: int) -> str:
    if len(names) == count:
        return "all"
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _text(run: Run, name: str) -> str | None:
    return str(run.tree.attrs.get(name) or "") or None


def _value(value: Any) -> Cell:
    """A config's value: numbers and texts as they are, all else as JSON."""
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
        return value
    return short(value if isinstance(value, str) else json.dumps(value))
