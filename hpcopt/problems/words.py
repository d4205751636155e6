"""What problems speak of: mini-batches, the workers here, where tensors stand, what is measured."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """Which mini-batch every worker uses: step ``step`` of the ``of`` steps that a method makes in ``round``.

    Successive draws go through a worker's rows in a shuffled order, epoch by epoch.

    Attributes:
        rows: of each worker, in place of the problem's batch size; all that it has, if fewer.
    """

    round: int
    step: int = 0
    of: int = 1
    rows: int | None = None

    def __post_init__(self) -> None:
        """Raises `ValueError` where there is no such step: it would be the mini-batch of another round."""
        if not 0 <= self.step < self.of:
            raise ValueError(f"Draw({self.round}, {self.step}, {self.of}): step must be 0 to {self.of - 1}")

    @property
    def index(self) -> int:
        """Position in the worker's sequence of mini-batches."""
        return self.round * self.of + self.step


class Place(NamedTuple):
    """Where a named tensor of a model stands.

    Attributes:
        name: of a state_dict; several names may have one place (tied parameters).
        where: "model", "buffers", or a kind in `Problem.fixed`: in which vector.
        start: where in that it begins.
        shape: the tensor's.
    """

    name: str
    where: str
    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Share:
    """The workers that live in this process, and how their numbers are kept."""

    workers: range
    total: int
    seed: int
    dtype: torch.dtype = torch.float64
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def n(self) -> int:
        """The number of workers here."""
        return len(self.workers)

    def newcomers(self, count: int) -> Share:
        """As many more workers, numbered from N on; number N + k lives where worker ⌊kN/count⌋ lives."""
        start, stop = (-(-w * count // self.total) for w in (self.workers.start, self.workers.stop))
        mine = range(self.total + start, self.total + stop)
        return replace(self, workers=mine, total=self.total + count)


@dataclass(frozen=True)
class Measures:
    """What an evaluation is to tell.

    Attributes:
        train, test: numbers of training rows, and of test rows.
        rows: training rows of each worker that are enough; None: all.
    """

    train: bool = True
    test: bool = True
    rows: int | None = None

    @property
    def draw(self) -> Draw | None:
        """Those rows, the same every time."""
        return None if self.rows is None else Draw(0, rows=self.rows)


@dataclass
class Evaluation:
    """What was measured at a point, per worker; run-wide numbers are Σ value·weight / Σ weight.

    Attributes:
        values: name -> (n,) float64 tensor on the CPU.
        weights: name -> (n,) float64 tensor on the CPU, the weight of each worker's value.
        rows: name -> (n,) likewise, for a second mean, NAME_by_rows: of how many rows each value is.
    """

    values: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor, weight: Tensor, rows: Tensor | None = None) -> None:
        """Adds one measured quantity; ``rows`` on all ranks, or on none."""
        if rows is not None:
            self.rows[name] = rows.detach().to("cpu", torch.float64)
        self.values[name] = value.detach().to("cpu", torch.float64)
        self.weights[name] = weight.detach().to("cpu", torch.float64)
