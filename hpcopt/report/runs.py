"""What a report is about: the runs and scaling studies behind paths, and what could not be read.

Neither MPI nor torch. Nothing here trusts what it reads: a path that holds something else becomes a
`Trouble`, and names are text without control characters.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcopt.errors import UserError
from hpcopt.ground.terminal import printable
from hpcopt.report.crashers import RUN, SCALING, Crashes, tried
from hpcopt.report.load import load, load_run
from hpcopt.report.naming import Alike as Alike
from hpcopt.report.naming import alike as alike
from hpcopt.report.naming import names
from hpcopt.report.status import Status, end_of, living, outcome

if TYPE_CHECKING:
    import xarray

    from hpcopt.storage.structure import Structure

SWEEP = "sweep.toml"


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

    @cached_property
    def _columns(self) -> dict[str, xarray.Variable]:
        """``GROUP/NAME`` -> column or coordinate; what makes reports of many runs quick."""
        return {
            f"{group}/{name}": variable
            for group, node in self.tree.children.items()
            for name, variable in node.variables.items()
        }

    @property
    def records(self) -> int:
        """How many there are."""
        return len(self._columns.get("metrics/round", ()))

    def about(self, name: str) -> Any:
        """An attribute of the root that is JSON (config, libraries, hosts, jobs, slurm); {} where absent."""
        return json.loads(self.tree.attrs.get(name, "{}"))

    def has(self, column: str) -> bool:
        """Whether there is such a column, ``GROUP/NAME``."""
        return column in self._columns

    def numbers(self, column: str) -> NDArray[Any]:
        """A column as an array, the records first; raises KeyError where there is none."""
        return np.asarray(self._columns[column].values)

    def last(self, column: str) -> Any:
        """A column's last row; None where there is no such column or no record."""
        return self._columns[column][-1].values if self.records and self.has(column) else None

    def labels(self, group: str, dim: str) -> list[Any]:
        """The coordinate of a dimension: names of ports, of phases, numbers of workers; [] where absent."""
        found = self._columns.get(f"{group}/{dim}")
        return [] if found is None else list(found.values.tolist())


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


def find(paths: Iterable[str | Path]) -> Found:
    """Opens what the paths hold: run directories, run.h5, sweeps, scaling studies or their files.

    A path that cannot be read is a `Trouble`, and so are the cases of a sweep and the launches of a study
    that failed, and cases that have not begun. One path given twice counts once. Where it is not known
    whether a run's owner on another host lives, this waits for its heartbeat, up to 15 s for all of them.
    """
    places: dict[Path, Path] = {}
    troubles: list[Trouble] = []
    for path in map(Path, paths):
        try:
            for place in _places(path):
                places.setdefault(place.resolve(), place)
        except (UserError, OSError) as error:
            troubles.append(_trouble(path, error))
        troubles += [*_failures(path), *_waiting(path)]
    opened: list[tuple[Path, xarray.DataTree]] = []
    for place, structure in tried(list(places.values())):
        try:
            if isinstance(structure, Crashes):
                raise UserError(f"{place}: damaged (HDF5 crashes or hangs at it)")
            opened.append((place, _opened(place, structure)))
        except UserError as error:
            troubles.append(_trouble(place, error))
    runs = [(place, tree) for place, tree in opened if tree.attrs["schema"] == "hpcopt-run"]
    studies = [(place, tree) for place, tree in opened if tree.attrs["schema"] != "hpcopt-run"]
    alive = living([place for place, tree in runs if not tree.attrs.get("end")])
    return Found(
        [
            Run(name, place, outcome(place, tree, place in alive), tree)
            for name, (place, tree) in zip(names([place for place, _ in runs]), runs, strict=True)
        ],
        [
            Scaling(name, place, tree)
            for name, (place, tree) in zip(names([place for place, _ in studies]), studies, strict=True)
        ],
        troubles,
    )


def _places(path: Path) -> Iterator[Path]:
    """What can be opened behind a path."""
    if not path.exists():
        raise UserError(f"{path}: no such file or directory")
    if (path / SWEEP).is_file():
        yield from sorted(case for case in (path / "cases").glob("*") if (case / RUN).is_file())
    elif (path / SCALING).is_file():
        yield path / SCALING
    elif not (path.is_file() or (path / RUN).is_file()):
        begun = (path / "config.toml").is_file()
        raise UserError(
            f"{path}: " + ("the run has no record yet" if begun else "holds no run, sweep or study")
        )
    else:
        yield path.parent if path.name == RUN else path


def _failures(path: Path) -> Iterator[Trouble]:
    """The failed cases or launches of a sweep or a study."""
    for file in sorted((path / "failed").glob("*.json")) if path.is_dir() else ():
        try:
            told = json.loads(end_of(file))
            message = f"failed with exit code {told['exit_code']}: {told['message']}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            message = f"failed; its report is not readable ({error})"
        yield Trouble(printable(path / file.stem), printable(message))


def _waiting(path: Path) -> Iterator[Trouble]:
    """The cases that a sweep still has before it."""
    plan = path / SWEEP
    with suppress(OSError, ValueError, LookupError, TypeError):
        names = [str(case["name"]) for case in tomllib.loads(plan.read_text("utf-8"))["cases"]]
        begun = [(path / "cases" / name / RUN).is_file() for name in names]
        failed = [(path / "failed" / f"{name}.json").is_file() for name in names]
        if left := sum(not (a or b) for a, b in zip(begun, failed, strict=True)):
            yield Trouble(printable(path), f"{left} of {len(names)} cases have no record yet")


def _trouble(path: Path, error: Exception) -> Trouble:
    return Trouble(printable(path), printable(str(error).removeprefix(f"{path}: ")))


def _opened(place: Path, structure: Structure | None) -> xarray.DataTree:
    """A tree whose every column can be read to its end.

    Raises:
        UserError: it is no file of hpcopt, or a damaged one.
    """
    try:
        run = place / RUN if place.is_dir() else place
        tree = load(place) if structure is None else load_run(run, structure)
        for group in tree.children.values():
            for column in group.variables.values():
                np.asarray(column[-1:])
        for name in ("config", "libraries", "hosts", "jobs", "slurm", "chosen"):
            json.loads(tree.attrs.get(name, "{}"))
        if not isinstance(json.loads(tree.attrs.get("config", "{}")), dict):
            raise ValueError("config is no table")
    except UserError:
        raise
    except Exception as error:  # there is no end to what damage makes of a file
        raise UserError(f"{place}: damaged ({error})") from None
    return tree
