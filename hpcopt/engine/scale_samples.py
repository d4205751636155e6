"""What the launches of a scaling study measured, as rows of scaling.h5 and in a few lines for people."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from hpcopt.config.scale import Launch, Plan
from hpcopt.storage import scaling
from hpcopt.storage.records import Records

COPIED = ("method", "problem", "version", "commit", "libraries")
"""attributes of run.h5 that the study has too"""
_ADDED = ("seconds", "gradients", "bytes_sent")
_PHASES = dict(zip(scaling.PHASES, ("seconds", "seconds_min", "seconds_mean"), strict=True))


def samples_of(plan: Plan, launch: Launch, place: int, records: Records) -> list[scaling.Sample]:
    """A row for each block of rounds after the warm-up: differences of what run.h5 adds up."""
    about, warm_up = records.attributes, plan.table.warm_up or 0
    timed = np.asarray(records["metrics/round"], np.int64) >= warm_up
    added = {"rounds": "round"} | {name: name for name in _ADDED}
    columns = {name: np.diff(records[f"metrics/{key}"][timed]) for name, key in added.items()}
    columns["peak_memory"] = records["metrics/peak_memory"][timed][1:]
    phases = {name: np.diff(records[f"phases/{key}"][timed], axis=0) for name, key in _PHASES.items()}
    names = records.labels["phase"]
    common = {
        "ranks": launch.ranks,
        "workers": about["workers"],
        "hosts": len(json.loads(about["hosts"])),
        "cores": about["cores"],
        "repeat": launch.repeat,
        "launch": place,
        "overcommitted": int(launch.ranks > about["cores"]),
    }
    rows = []
    for block in range(int(timed.sum()) - 1):
        row = common | {"block": block} | {name: values[block] for name, values in columns.items()}
        row |= {name: dict(zip(names, values[block], strict=True)) for name, values in phases.items()}
        rows.append(row)
    return rows


def attributes_of(plan: Plan, headers: list[dict[str, Any]]) -> dict[str, Any]:
    """Of scaling.h5: `COPIED` as in the last launch, and what the plan says."""
    common = plan.table
    complete = len(headers) == len(plan.order)
    return {key: headers[-1][key] for key in COPIED} | {
        "mode": common.mode,
        "config": json.dumps(plan.config.tables()),
        "start": min(header["start"] for header in headers),
        "end": max(header["end"] for header in headers) if complete else "",
        "warm_up": common.warm_up,
        "ranks": json.dumps(common.ranks),
        "repeats": common.repeats,
        "launcher": common.launcher,
    }


def table(samples: list[scaling.Sample]) -> str:
    """Median seconds per round of each point, as text."""
    lines = ["ranks  workers  launches  s per round"]
    for ranks in sorted({sample["ranks"] for sample in samples}):
        here = [sample for sample in samples if sample["ranks"] == ranks]
        launches, note = len({sample["launch"] for sample in here}), ""
        if here[0]["overcommitted"]:
            note = "  more ranks than cores"
        lines.append(f"{ranks:5}  {here[0]['workers']:7}  {launches:8}  {short(median(here)):>11}{note}")
    return "\n".join(lines)


def median(samples: list[scaling.Sample]) -> float:
    return float(np.median([sample["seconds"] / sample["rounds"] for sample in samples]))


def short(value: float) -> str:
    return f"{value:.4g}"
