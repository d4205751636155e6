"""What a report is about: the runs and scaling studies behind paths, and what could not be read.

Neither MPI nor torch. Nothing here trusts what it reads: a path that holds something else becomes a
`Trouble`, and names are text without control characters.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os.path import commonprefix
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpcopt.errors import UserError
from hpcopt.report.load import load
from hpcopt.storage import lease

if TYPE_CHECKING:
    import xarray

Status = Literal["finished", "running", "stopped", "killed", "diverged", "empty"]

RUN, SCALING, SWEEP = "run.h5", "scaling.h5", "sweep.toml"
SEED = re.compile(r",?(run\.)?seed=[^,]*")
"""in the names of a sweep's cases"""
LONG_SILENCE = 600.0
"""seconds without a heartbeat after which nobody waits for one, whatever two hosts' clocks differ by"""


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        name: the shortest end of its path that tells it from the others; printable, but not markup-free.
        path: its directory, or its file where that is all there is.
        status: finished; running (its owner lives); stopped (by a signal); killed (cut off without a word);
            diverged; empty (no record, and nobody writes).
        tree: see `hpcopt.load`.
    """

    name: str
    path: Path
    status: Status
    tree: xarray.DataTree

    @cached_property
    def config(self) -> dict[str, dict[str, Any]]:
        """Table -> key -> value, as it was run."""
        config: dict[str, dict[str, Any]] = self.about("config")
        return config

    @property
    def records(self) -> int:
        """How many there are."""
        return int(self.tree["metrics"].sizes["record"]) if "metrics" in self.tree.children else 0

    def about(self, name: str) -> Any:
        """An attribute of the root that is JSON (config, libraries, hosts, jobs, slurm); {} where absent."""
        return json.loads(self.tree.attrs.get(name, "{}"))

    def has(self, column: str) -> bool:
        """Whether there is such a column, ``GROUP/NAME``."""
        group, _, name = column.partition("/")
        return group in self.tree.children and name in self.tree[group].variables

    def numbers(self, column: str) -> NDArray[Any]:
        """A column as an array, the records first; raises KeyError where there is none."""
        return np.asarray(self.tree[column])

    def last(self, column: str) -> Any:
        """A column's last row; None where there is no such column or no record."""
        group, _, name = column.partition("/")
        return self.tree[group].variables[name][-1].values if self.records and self.has(column) else None

    def labels(self, group: str, dim: str) -> list[Any]:
        """The coordinate of a dimension: names of ports, of phases, numbers of workers; [] where absent."""
        known = group in self.tree.children and dim in self.tree[group].coords
        return list(self.tree[group].coords[dim].values.tolist()) if known else []


@dataclass(frozen=True)
class Scaling:
    """A scaling study; ``tree`` is its scaling.h5, see `hpcopt.load`."""

    name: str
    path: Path
    tree: xarray.DataTree


@dataclass(frozen=True)
class Trouble:
    """A path that is skipped, and why; both printable text."""

    path: str
    message: str


@dataclass(frozen=True)
class Found:
    """What some paths hold."""

    runs: Sequence[Run]
    scalings: Sequence[Scaling]
    troubles: Sequence[Trouble]


@dataclass(frozen=True)
class Alike:
    """Runs of one config that differ in nothing but run.seed, and where they were written."""

    name: str
    runs: Sequence[Run]


def find(paths: Iterable[str | Path]) -> Found:
    """Opens what the paths hold: run directories, run.h5, sweeps, scaling studies or their files.

    A path that cannot be read is a `Trouble`, and so are the cases of a sweep and the launches of a study
    that failed. One path given twice counts once. Where it is not known whether a run's owner on another
    host lives, this waits for its heartbeat, up to 15 s for all of them together.
    """
    places: dict[Path, Path] = {}
    troubles: list[Trouble] = []
    for path in map(Path, paths):
        try:
            for place in _places(path):
                places.setdefault(place.resolve(), place)
            troubles += _failures(path)
        except (UserError, OSError) as error:
            troubles.append(_trouble(path, error))
    opened: list[tuple[Path, xarray.DataTree]] = []
    for place in places.values():
        try:
            opened.append((place, _opened(place)))
        except UserError as error:
            troubles.append(_trouble(place, error))
    runs = [(place, tree) for place, tree in opened if tree.attrs["schema"] == "hpcopt-run"]
    studies = [(place, tree) for place, tree in opened if tree.attrs["schema"] != "hpcopt-run"]
    living = _living([place for place, tree in runs if not tree.attrs.get("end")])
    return Found(
        [
            Run(name, place, _status(place, tree, place in living), tree)
            for name, (place, tree) in zip(names([place for place, _ in runs]), runs, strict=True)
        ],
        [
            Scaling(name, place, tree)
            for name, (place, tree) in zip(names([place for place, _ in studies]), studies, strict=True)
        ],
        troubles,
    )


def alike(runs: Iterable[Run]) -> list[Alike]:
    """Runs that differ only in run.seed (and run.out) together, on the same number of ranks.

    A group's name is its only run's; what the names of its runs have in common; or the first one's.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(_but_seed(run), []).append(run)
    common = [_common(one) for one in groups.values()]
    return [
        Alike(name if common.count(name) == 1 else one[0].name, one)
        for name, one in zip(common, groups.values(), strict=True)
    ]


def names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of different paths that tell them apart, printable."""
    parts = [path.resolve().parts for path in paths]
    parts = [one[:-1] if one[-1] in (RUN, SCALING) else one for one in parts]
    found = []
    for path, one in zip(paths, parts, strict=True):
        others = [other for other in parts if other is not one]
        end = next((k for k in range(1, len(one)) if one[-k:] not in [o[-k:] for o in others]), None)
        found.append(plain("/".join(one[-end:])) if end else plain(str(path)))
    return found


def plain(text: str) -> str:
    """Text from outside as something that may be printed: what is not printable is written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _places(path: Path) -> Iterator[Path]:
    """What can be opened behind a path."""
    if not path.exists():
        raise UserError(f"{path}: no such file or directory")
    if (path / SWEEP).is_file():
        yield from sorted(case for case in (path / "cases").glob("*") if (case / RUN).is_file())
    elif (path / SCALING).is_file():
        yield path / SCALING
    elif path.is_dir() and not (path / RUN).is_file():
        begun = (path / "config.toml").is_file()
        raise UserError(
            f"{path}: holds no run.h5"
            + (": the run has not begun" if begun else ", and is no sweep's directory")
        )
    else:
        yield path


def _failures(path: Path) -> Iterator[Trouble]:
    """The failed cases or launches of a sweep or a study."""
    for file in sorted((path / "failed").glob("*.json")) if path.is_dir() else ():
        try:
            told = json.loads(file.read_text(encoding="utf-8"))
            message = f"failed with exit code {told['exit_code']}: {told['message']}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"failed; its report is not readable ({error})"
        yield Trouble(plain(str(path / file.stem)), plain(message))


def _trouble(path: Path, error: Exception) -> Trouble:
    return Trouble(plain(str(path)), plain(str(error).removeprefix(f"{path}: ")))


def _opened(place: Path) -> xarray.DataTree:
    """A tree whose every column can be read to its end.

    Raises:
        UserError: it is no file of hpcopt, or a damaged one.
    """
    tree = load(place)
    try:
        for group in tree.children.values():
            for column in group.data_vars.values():
                column[-1:].load()
        for name in ("config", "libraries", "hosts", "jobs", "slurm", "chosen"):
            json.loads(tree.attrs.get(name, "{}"))
        if not isinstance(json.loads(tree.attrs.get("config", "{}")), dict):
            raise ValueError("config is no table")
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        raise UserError(f"{place}: damaged ({error})") from None
    return tree


def _status(place: Path, tree: xarray.DataTree, lives: bool) -> Status:
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
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - (1 << 16)))
            last = (file.read().splitlines() or [b""])[-1]
        event = json.loads(last)
    except (OSError, ValueError):
        return False
    return isinstance(event, Mapping) and event.get("event") == "interrupted"


def _living(places: Sequence[Path]) -> set[Path]:
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
    try:
        return lease.Owner.read(_home(place) / lease.NAME)
    except UserError:
        return None


def _home(place: Path) -> Path:
    return place if place.is_dir() else place.parent


def _but_seed(run: Run) -> str:
    config = {table: dict(keys) for table, keys in run.config.items()}
    for key in ("seed", "out"):
        config.get("run", {}).pop(key, None)
    return json.dumps([config, run.tree.attrs.get("ranks"), run.tree.attrs.get("method")], sort_keys=True)


def _common(runs: Sequence[Run]) -> str:
    """A name for runs that differ in their seeds: theirs without the seed, or what they begin with."""
    if len(runs) == 1:
        return runs[0].name
    bare = {SEED.sub("", run.name) for run in runs}
    start = bare.pop() if len(bare) == 1 else commonprefix([run.name for run in runs])  # noqa: RUF071
    return start.strip(",/-_. ") or runs[0].name
