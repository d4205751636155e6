"""What the user asks `hpcopt scale` for. No torch, no MPI."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcopt.config.scale import RANKS, Plan, plan
from hpcopt.config.scale_plan import PLAN, read
from hpcopt.errors import UserError


@dataclass(frozen=True)
class Wish:
    """What the user asks for, as typed.

    Attributes:
        source: a config, or the directory of a study, which goes on.
        overrides: see `hpcopt.config.load`.
        options: by the names of `ScaleTable`; those that are None are not given.
        out: the study's directory, where the source is a config.
    """

    source: Path
    overrides: tuple[str, ...]
    options: Mapping[str, Any]
    out: Path | None

    @property
    def goes_on(self) -> bool:
        """Whether the source is a study."""
        return os.path.isdir(self.source)

    @property
    def directory(self) -> Path:
        """Of the study, absolute; raises `UserError` where it is not named."""
        if self.goes_on:
            return self.source.absolute()
        if self.out is None:
            raise UserError("--out: is missing; it names the study's directory")
        return Path(os.path.normpath(self.out.absolute()))

    def plan(self, launcher: str, *, by_point: bool = False) -> Plan:
        """The plan, checked; nothing is written.

        Args:
            launcher: where none is named.
            by_point: see `plan`.

        Raises:
            UserError: as `plan`; or the directory has a plan, and something else was asked for.
        """
        given = {key: value for key, value in self.options.items() if value is not None}
        if not self.goes_on:
            return plan(self.source, self.overrides, {"launcher": launcher} | given, by_point=by_point)
        if given or self.overrides or self.out:
            named = [f"--{key.replace('_', '-')}" for key in given]
            named += [name for name, value in (("--set", self.overrides), ("--out", self.out)) if value]
            raise UserError(
                f"{self.source}: a study goes on as {PLAN} says; {', '.join(named)} is for a config"
            )
        return read(self.source)


def numbers(option: str, text: str | None) -> list[int] | None:
    """A list like "1,2,4", if one is given; raises `UserError` where it is none."""
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,7}(,[0-9]{1,7})*", text):
        raise UserError(f"{option} {text}: must be whole numbers with commas, like 1,2,4")
    return [int(number) for number in text.split(",")]


def usual_launcher() -> str:
    """What starts the ranks here: inside of an allocation of Slurm its own."""
    inside = "SLURM_JOB_ID" in os.environ and shutil.which("srun")
    return f"srun --mpi=pmix --kill-on-bad-exit=0 --wait=60 -n {RANKS}" if inside else f"mpirun -n {RANKS}"
