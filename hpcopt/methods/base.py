"""The contract between a method and everything else."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Generic, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hpcopt.comm.ports import Ports, Task
from hpcopt.config import check_table
from hpcopt.config.base import Table
from hpcopt.errors import UserError
from hpcopt.problems.base import Part, Problem
from hpcopt.state import Group, State


@dataclass(frozen=True)
class StepInfo:
    """What a step has to tell beside its state.

    Attributes:
        done: the method's own stopping rule is met; the same on every rank.
        wish: what the ranks wish of the run, where a port of the method's has agreed on it
            (`hpcopt.comm.ports.Ports`); None: the loop asks them.
    """

    done: bool = False
    wish: int | None = None


T = TypeVar("T", bound=Table)
S = TypeVar("S", bound=State)


class Method(ABC, Generic[T, S]):
    """A method, made from its settings: ``AllreduceSGD(lr=0.1)`` or ``AllreduceSGD(table)``.

    A subclass says which: ``class AllreduceSGD(Method[AllreduceSGDTable, AllreduceSGDState])``. What several
    methods do alike are objects that they hold (`hpcopt.methods.parts`), not ancestors.

    Attributes:
        table: the class of the settings.
        model_field: the state's tensor that holds the model or the workers' models.
        agreed: where a worker has a model of its own, the part of its parameters that is to be the same for
            all in the end; ``consensus`` tells how far it is from that.
        settings: as given, every default filled in.
        files: what is in the files that the settings name, by key, see `hpcopt.config.base.Table`.
    """

    table: ClassVar[type[Table]]
    model_field: str = "x"
    agreed: ClassVar[Part] = "all"
    settings: T
    files: Mapping[str, Any] = MappingProxyType({})

    def __init_subclass__(cls, **options: Any) -> None:
        """Takes `table` from the class's declaration."""
        super().__init_subclass__(**options)
        if "table" in vars(cls):
            return
        for base in vars(cls).get("__orig_bases__", ()):
            for argument in get_args(base):
                if isinstance(argument, type) and issubclass(argument, Table):
                    cls.table = argument

    def __init__(self, settings: T | None = None, /, **keys: Any) -> None:
        name = type(self).__name__
        if not hasattr(type(self), "table"):
            raise TypeError(f"class {name} has to say what its settings are: Method[Settings, State]")
        if settings is None:
            self.settings = check_table(self.table, keys, name)  # type: ignore[assignment]
        elif keys or not isinstance(settings, self.table):
            raise TypeError(f"{name}: takes keys by name, or one {self.table.__name__} that has them all")
        else:
            self.settings = settings

    def prepare(self, problem: Problem) -> None:
        """Checks, before `start` and locally, what may be wrong on some ranks only (a file, say).

        Raises:
            UserError: the settings do not fit the problem.
        """

    @abstractmethod
    def start(self, problem: Problem, ports: Ports) -> S:
        """Takes the problem and the ports, and gives the state of round 0. After `prepare`. Collective."""

    def beside(self, problem: Problem, ports: Ports) -> Task | None:
        """What may be computed beside the rounds; None: nothing.

        `Ports.beside`, in `start`, hands requests to whoever computes it. Where a run has ranks for that
        alone (``run.curvature_ranks``), these call this, not `start`, and all N workers live on them, too;
        settings and files are the run's. Collective.

        Args:
            problem, ports: of the ranks that compute it.
        """
        return None

    def rehearse(self, state: S) -> None:
        """Does once what takes longer the first time in a process; after `start`, also where a run goes on.

        The state, of round 0, must stay as it is. Collective, outside the clock and of what is counted.
        """

    def notes(self) -> list[str]:
        """What the user should know before the first round, one line each; asked for after `start`."""
        return []

    @abstractmethod
    def step(self, state: S) -> StepInfo:
        """Makes one round, in place; the loop counts `State.round`. Collective.

        What it raises ends the job, with the traceback of the rank that raised it.
        """

    def pause(self, state: S) -> None:
        """Brings to rest whatever is in flight; called before every record and checkpoint. Collective."""

    def trace(self, state: S) -> dict[str, NDArray[np.int64]]:
        """What happened here since the last call that no setting tells: what is to be kept to replay the run.

        Asked for after `pause`; on every rank the same names. Local.

        Returns:
            name -> (k, …) whole numbers, k of this rank's own; kept in DIR/trace.h5, rank after rank.
        """
        return {}

    def model(self, state: S) -> Tensor:
        """What is evaluated: (d,), one model for all N workers, or (n, d), a model of each worker here.

        The former has the same bits on every rank and is tested on all test rows, the latter on the workers'
        own. Collective, outside the clock.
        """
        tensors = state.tensors()
        if self.model_field not in tensors:
            raise UserError(
                f"{type(self).__name__}: its state has no tensor {self.model_field} to be the model: name "
                "another in model_field, or write model(state)"
            )
        return tensors[self.model_field][1]

    def others(self, state: S) -> dict[str, Tensor]:
        """More models to evaluate; what is measured there is recorded as NAME_MEASURE.

        Where `model` is not one for all workers, "global" is the one that stands for theirs: their mean, if
        the method names no other.

        Collective, outside the clock; what is sent for it is not counted.
        """
        return {}

    def metrics(self, state: S) -> dict[str, float]:
        """More numbers for /metrics, the same on every rank.

        Collective, outside the clock; what is sent for them is not counted.
        """
        return {}

    def groups(self, state: S) -> dict[str, Group]:
        """Arrays of the method's own to record, by the name of their group; the same on every rank.

        From round 0 on, if empty at first. Collective, outside the clock; what is sent for it is not counted.
        """
        return {}
