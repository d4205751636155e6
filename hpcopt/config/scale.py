"""A scaling study: of which launches it is made, and whether that makes sense. No torch, no MPI."""

from __future__ import annotations

import random
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator

from hpcopt.config.base import Count, Table
from hpcopt.config.io import RunConfig, check_table, from_tables, load
from hpcopt.errors import UserError

SOURCE = "hpcopt scale"
RANKS = "{ranks}"
"""what stands for their number in a launcher's command"""
ROWS = ("samples_per_worker", "rows_per_worker")
"""keys of [problem] that say how many rows a worker has, however many workers there are"""


class ScaleTable(Table):
    """What the launches of a study have in common."""

    model_config = ConfigDict(alias_generator=lambda key: "--" + key.replace("_", "-"), populate_by_name=True)

    mode: Literal["strong", "weak"]
    """strong: the same problem and workers on more ranks; weak: workers in proportion to the ranks, rows per
    worker as they are"""
    ranks: Annotated[list[Count], Field(min_length=1)]
    """the points P of the study; of weak ones the smallest has the run.workers of the config"""
    repeats: Count = 5
    """launches of each point"""
    rounds: Count | None = None
    """rounds that are timed in each launch; run.rounds without the warm-up if not given"""
    warm_up: Annotated[int, Field(ge=0)] | None = None
    """rounds before these, which are left out; as many as between two records if not given"""
    launcher: str = f"mpirun -n {RANKS}"
    """what starts the ranks, with {ranks} for their number"""

    @field_validator("ranks")
    @classmethod
    def _rising(cls, ranks: list[int]) -> list[int]:
        if len(set(ranks)) < len(ranks):
            raise ValueError("must be different numbers")
        return sorted(ranks)

    @field_validator("launcher")
    @classmethod
    def _with_ranks(cls, launcher: str) -> str:
        if RANKS not in launcher or not launcher.isprintable():
            raise ValueError(f'must be a command with {RANKS} in it, like "srun -n {RANKS}"')
        shlex.split(launcher)  # a ValueError where a quotation does not end
        return launcher


@dataclass(frozen=True)
class Launch:
    """One start of so many ranks."""

    ranks: int
    repeat: int

    @property
    def name(self) -> str:
        """Of its files and directories."""
        return f"p{self.ranks:05d}-r{self.repeat:02d}"


@dataclass(frozen=True)
class Plan:
    """All launches of a study.

    Attributes:
        table: checked, with every default filled in.
        config: of the smallest point.
        order: the launches, as they follow one another.
    """

    table: ScaleTable
    config: RunConfig
    order: tuple[Launch, ...]

    def config_of(self, ranks: int) -> RunConfig:
        """What a point's launches run; raises `UserError` where the problem cannot have so many workers."""
        if self.table.mode == "strong":
            return self.config
        tables = self.config.tables()
        tables["run"] |= {"workers": self.config.run.workers * ranks // self.table.ranks[0]}
        return from_tables(tables, f"{SOURCE}: {ranks} ranks")

    def points(self, only: Sequence[int] | None) -> list[int]:
        """Those that are asked for, or all.

        Raises:
            UserError: the study does not have one of them.
        """
        for ranks in only or ():
            if ranks not in self.table.ranks:
                have = ",".join(map(str, self.table.ranks))
                raise UserError(f"--points {ranks}: the study has {have}")
        return sorted(only) if only else self.table.ranks

    def said(self) -> str:
        """What is kept and what is not, in a sentence."""
        table, workers = self.table, self.config.run.workers
        if table.mode == "strong":
            return f"strong scaling: the same problem and N = {workers} workers on every number of ranks"
        first = table.ranks[0]
        each = f"{workers // first} P" if workers % first == 0 else f"{workers}/{first} P"
        return f"weak scaling: N = {each} workers on P ranks; {_rows_kept(self.config)}"


def plan(
    config: Path, overrides: Iterable[str], options: Mapping[str, Any], *, by_point: bool = False
) -> Plan:
    """Checks a study.

    Args:
        config: the TOML file.
        overrides: see `hpcopt.config.load`.
        options: by the names of `ScaleTable`.
        by_point: the launches of a point follow one another; else each repeat has all points. Both in random
            order, by run.seed.

    Raises:
        UserError: an option or the config is wrong, or a point cannot be run.
    """
    overrides = tuple(overrides)
    given = {ScaleTable.model_fields[key].alias or key: value for key, value in options.items()}
    table, every = _lengths(check_table(ScaleTable, given, SOURCE), load(config, overrides), config)
    assert table.rounds is not None
    assert table.warm_up is not None
    length = table.warm_up + table.rounds
    changes = (f"run.rounds={length}", f"run.evaluate_every={every}", "run.checkpoint_every=0")
    tables = load(config, (*overrides, *changes)).tables()
    # all launches make the same rounds, and are told to stop by `hpcopt scale`
    for key in ("out", "target_loss", "max_seconds", "stop_signal"):
        tables["run"].pop(key, None)
    found = Plan(table, from_tables(tables, str(config)), _order(table, tables["run"]["seed"], by_point))
    _check_points(found, config)
    return found


def _lengths(table: ScaleTable, config: RunConfig, source: Path) -> tuple[ScaleTable, int]:
    """With rounds and warm-up filled in; how many rounds there are between two records."""
    every = (
        config.run.evaluate_every if table.rounds is None else min(config.run.evaluate_every, table.rounds)
    )
    warm_up = every if table.warm_up is None else table.warm_up
    rounds = config.run.rounds - warm_up if table.rounds is None else table.rounds
    if rounds < 1:
        raise UserError(
            f"{source}: [run] rounds = {config.run.rounds}: a warm-up of {warm_up} rounds leaves none "
            "to time; set --rounds, --warm-up or a smaller run.evaluate_every"
        )
    if warm_up % every:
        raise UserError(
            f"--warm-up {warm_up}: must be a multiple of {every}, the rounds between two records: "
            "time is taken there (run.evaluate_every)"
        )
    return table.model_copy(update={"rounds": rounds, "warm_up": warm_up}), every


def _order(table: ScaleTable, seed: int, by_point: bool) -> tuple[Launch, ...]:
    """So that what changes with time on a machine meets all points alike."""
    draw, repeats = random.Random(seed), range(table.repeats)
    if by_point:
        points = draw.sample(table.ranks, len(table.ranks))
        return tuple(Launch(ranks, repeat) for ranks in points for repeat in repeats)
    return tuple(
        Launch(ranks, repeat) for repeat in repeats for ranks in draw.sample(table.ranks, len(table.ranks))
    )


def _check_points(found: Plan, source: Path) -> None:
    """Raises `UserError` where a point cannot be run as the study says."""
    run, smallest = found.config.run, found.table.ranks[0]
    if found.table.mode == "weak":
        if run.curvature_ranks:
            raise UserError(
                f"{source}: [run] curvature_ranks = {run.curvature_ranks}: must be 0 for --mode weak"
            )
        _rows_kept(found.config, f"{source}: ")
        for ranks in found.table.ranks:
            if run.workers * ranks % smallest:
                raise UserError(
                    f"--ranks {ranks}: run.workers = {run.workers} on {smallest} ranks makes no whole number "
                    f"of workers on {ranks}; --mode weak takes workers in proportion to the ranks"
                )
    for ranks in found.table.ranks:
        misfit = found.config_of(ranks).run.misfit(ranks, f"--ranks has {ranks}")
        if misfit:
            raise UserError(f"{source}: [run] {misfit}")


def _rows_kept(config: RunConfig, where: str = "") -> str:
    """What keeps the rows per worker where there are more workers, in words.

    Raises:
        UserError: nothing does; ``where`` begins the message.
    """
    problem = config.problem
    given = {key: value for key, value in problem.dump().items() if key in ROWS}
    for key, value in given.items():
        return f"{key} = {value} stays"
    known = [key for key in ROWS if key in type(problem).model_fields]
    if known or type(problem).model_config.get("extra") == "allow":
        key = known[0] if known else " or ".join(ROWS)
        raise UserError(
            f"{where}[problem] {key}: must be set for --mode weak, which keeps the rows of each worker"
        )
    return f"{problem.kind} gives every worker its rows"
