"""What a method carries from round to round, and what it keeps for the record; methods and files know it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

FIXED = "problem_fixed_"
"""how arrays of a checkpoint begin that no job takes over: what of a problem's model does not change"""


class Held(Enum):
    """How a tensor of the state is spread over processes; all that checkpoints need to know."""

    REPLICATED = "replicated"
    """(…): the same on every rank"""
    PER_WORKER = "per worker"
    """(n, …): one row for each worker that lives here; or what the workers here have, one after the other"""
    SLICED = "sliced"
    """(m, …): this rank's slice, as `Reducer.own` says, of one long array"""


def replicated() -> Any:
    """Declares a state tensor that is the same on every rank."""
    return field(metadata={"held": Held.REPLICATED})


def per_worker() -> Any:
    """Declares a state tensor with one row for each worker here."""
    return field(metadata={"held": Held.PER_WORKER})


def sliced() -> Any:
    """Declares a state tensor that is this rank's slice of one long array."""
    return field(metadata={"held": Held.SLICED})


@dataclass(kw_only=True)
class State:
    """What a method carries from round to round; subclasses declare their tensors.

    Every tensor has at least one dimension and keeps its shape; tensors are updated in place.

    Attributes:
        round: rounds made so far.
    """

    round: int = 0

    def tensors(self) -> dict[str, tuple[Held, Tensor]]:
        """Every declared tensor, by name."""
        return {
            item.name: (item.metadata["held"], getattr(self, item.name))
            for item in fields(self)
            if "held" in item.metadata
        }


@dataclass(frozen=True)
class Group:
    """Arrays that a method keeps, recorded as a whole under a dimension of their own.

    Attributes:
        dims: the dimensions of all columns, the leading one first, which may grow: ``("refresh", "pair")``.
        columns: name -> array (k, …).
        capacity: how much of the leading dimension is recorded, at least 1.
        overflow: what becomes of more than that: ``"newest"``, the last ones are recorded; ``"fold"``, what
            is beyond is added to the last one.
    """

    dims: tuple[str, ...]
    columns: dict[str, NDArray[Any]]
    capacity: int
    overflow: Literal["fold", "newest"] = "newest"

    def kept(self, column: str) -> NDArray[Any]:
        """What is recorded of a column, at most (capacity, …)."""
        array = np.asarray(self.columns[column])
        if len(array) <= self.capacity:
            return array
        if self.overflow == "newest":
            return array[-self.capacity :]
        return np.concatenate([array[: self.capacity - 1], array[self.capacity - 1 :].sum(0, keepdims=True)])
