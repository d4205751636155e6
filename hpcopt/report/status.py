"""How runs have ended, or that they go on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hpcopt.errors import UserError
from hpcopt.storage import lease

if TYPE_CHECKING:
    import xarray

Status = Literal["finished", "running", "stopped", "killed", "diverged", "empty"]

END_BYTES = 1 << 16
"""of log.jsonl, and of other reports, that are read"""
LONG_SILENCE = 600.0
"""seconds without a heartbeat after which nobody waits for one, whatever two hosts' clocks differ by"""


def outcome(place: Path, tree: xarray.DataTree, lives: bool) -> Status:
    """How a run has ended.

    Args:
        place: its directory, or its file.
        tree: what it has recorded.
        lives: whether its owner does.
    """
    if lives:
        return "running"
    if tree.attrs.get("end"):
        return "diverged" if tree.attrs.get("stopped_by") == "not finite" else "finished"
    if "metrics" not in tree.children or not tree["metrics"].sizes["record"]:
        return "empty"
    return "stopped" if _interrupted(_home(place) / "log.jsonl") else "killed"


def _interrupted(log: Path) -> bool:
    """Whether the last thing that a job said is that a signal came."""
    try:
        event = json.loads((end_of(log).splitlines() or [b""])[-1])
    except (OSError, ValueError):
        return False
    return isinstance(event, Mapping) and event.get("event") == "interrupted"


def end_of(path: Path) -> bytes:
    """At most `END_BYTES` of a file; nothing of what is none."""
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - END_BYTES))
        return file.read(END_BYTES)


def living(places: Sequence[Path]) -> set[Path]:
    """Those whose directory has an owner that lives."""
    waiting: dict[Path, lease.Owner] = {}
    living = set()
    for place in places:
        owner = _owner(place)
        if owner is None or owner.gone():
            continue
        if owner.here():
            living.add(place)
        elif time.time() - (_home(place) / lease.NAME).stat().st_mtime < LONG_SILENCE:
            waiting[place] = owner
    until = time.monotonic() + lease.PATIENCE * lease.BEAT
    while waiting and time.monotonic() < until:
        time.sleep(0.2)
        moved = {p for p, owner in waiting.items() if (now := _owner(p)) and now.beat != owner.beat}
        living |= moved
        waiting = {place: owner for place, owner in waiting.items() if place not in moved}
    return living


def _owner(place: Path) -> lease.Owner | None:
    path = _home(place) / lease.NAME
    try:
        return lease.Owner.read(path) if path.is_file() else None
    except UserError:
        return None


def _home(place: Path) -> Path:
    return place if place.is_dir() else place.parent
