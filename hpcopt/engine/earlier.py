"""What earlier jobs of a run have left: its newest checkpoint, and what the run cost until then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from hpcopt.config.explain import explained
from hpcopt.engine.build import BUFFERS, Built
from hpcopt.engine.meter import Totals
from hpcopt.engine.origin import check_unchanged
from hpcopt.engine.reporter import Reporter
from hpcopt.engine.rundir import RunDirectory
from hpcopt.errors import UserError
from hpcopt.state import FIXED, Held
from hpcopt.storage.state import check_fits, restore


class _Layout(BaseModel):
    names: list[str]


class Meta(BaseModel):
    """What the meta data of a checkpoint are, as far as a run goes on with them; see `Job.save`."""

    round: Annotated[int, Field(ge=0)]
    totals: Totals
    chosen: dict[str, Any]
    layout: _Layout
    arrays: dict[str, list[int]]
    made_of: dict[str, Any] = {}


class Earlier:
    """The newest intact checkpoint, where there is one. Every method is collective.

    Args:
        directory: the run's.
        reporter: tells what was found.
        resuming: whether to look for one at all.
    """

    def __init__(self, directory: RunDirectory, reporter: Reporter, resuming: bool) -> None:
        self._directory, self._reporter, self._resuming = directory, reporter, resuming
        self._found: tuple[Path, Meta] | None = None

    def chosen(self) -> Mapping[str, Any]:
        """Looks for the checkpoint; gives what an earlier job chose by measuring, nothing if there was none.

        Raises:
            UserError: every checkpoint is damaged, or it is that of another run.
        """
        self._found = self._newest() if self._resuming else None
        return self._found[1].chosen if self._found is not None else {}

    def restore(self, built: Built) -> Totals | None:
        """Takes the checkpoint over; gives what the run cost until then.

        Raises:
            UserError: it holds something else than this run has.
        """
        if self._found is None:
            return None
        (path, meta), rounds = self._found, built.config.run.rounds
        if meta.round > rounds:
            raise UserError(f"{path}: {meta.round} rounds are done, and run.rounds = {rounds} are fewer")
        if tuple(meta.layout.names) != built.problem.layout.names:
            raise UserError(
                f"{path}: holds other parameters than the problem has now, or in another order (private ones "
                "are last): the model or problem.private has changed; start another run"
            )
        tensors = tensors_of(built)
        check_fits(self._directory.comm, path, meta.arrays, tensors)
        check_unchanged(path, meta.made_of, built.problem.made_of)
        restore(self._directory.comm, path, tensors)
        built.state.round = meta.round
        self._reporter.say(f"{path}: going on from round {built.state.round}")
        return meta.totals

    def _newest(self) -> tuple[Path, Meta] | None:
        found = self._directory.checkpoints.newest()
        if found is None:
            self._reporter.say(f"{self._directory.path}: no checkpoint yet, starting from round 0")
            return None
        path, meta, warnings = found
        for warning in warnings:
            self._reporter.say(f"warning: {warning}")
        for key, mine in self._directory.config.identity().items():
            if meta.get(key) != mine:
                raise UserError(
                    f"{path}: was written with {key} = {meta.get(key)!r}, but the config says {mine!r}"
                )
        try:
            return path, Meta.model_validate(meta)
        except ValidationError as error:
            raise UserError("\n".join(f"{path}: /meta: {line}" for line in explained(Meta, error))) from None


def tensors_of(built: Built) -> dict[str, tuple[Held, Tensor]]:
    """Everything that a run needs of a checkpoint."""
    return built.state.tensors() | {BUFFERS: (Held.PER_WORKER, built.problem.buffers)}


def fixed_of(built: Built) -> dict[str, tuple[Held, Tensor]]:
    """What a checkpoint holds beside that, so that it is all of a model."""
    return {FIXED + kind: (Held.REPLICATED, values) for kind, values in built.problem.fixed.items()}


def array_of(built: Built, where: str) -> str:
    """The checkpoint's array for a `hpcopt.problems.base.Place`."""
    return {"model": built.method.model_field, "buffers": BUFFERS}.get(where, FIXED + where)
