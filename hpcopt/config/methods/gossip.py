"""Settings of methods in which workers have models of their own."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from hpcopt.config.base import Count, FirstOrder, NonNegative, Positive, Table

DEFAULT_STEPS = 5
"""where neither steps nor epochs are given"""


class OwnStepsTable(FirstOrder):
    """The steps that workers make on their own between exchanges; mixed into every method with such."""

    clip: NonNegative = 0.0
    """largest norm of a worker's gradient (deprl: of each part), longer ones are shortened to it; 0: none"""


class LocalStepsTable(OwnStepsTable):
    """How many of them, where all parameters move together."""

    local_steps: Count | None = None
    """steps on its own that a worker makes in a round; 5 if local_epochs is not given either"""
    local_epochs: Count | None = None
    """the same in passes through the worker's rows, so that workers with more rows make more steps"""

    def rows_a_round(self, rows: int, batch: int) -> int:
        """See `Table`."""
        return _work(rows, batch, self.local_steps, self.local_epochs)

    @model_validator(mode="after")
    def _one_of_steps_and_epochs(self) -> LocalStepsTable:
        _only_one(self, "local_steps", "local_epochs")
        return self


class BeforeMixingTable(Table):
    """Mixed into every method that averages models."""

    fixed = frozenset({"before_mixing"})
    before_mixing: bool = False
    """also evaluate the workers' models as they were just before the last averaging; needs memory for as
    many numbers as they have"""


class GraphTable(Table):
    """Who averages with whom; mixed into every method that may gossip."""

    topology: str = "ring"
    """ring, torus, star, complete, erdos_renyi, exponential, one_peer_exponential (another graph every
    round), or a file of edges, one "i j" a line, workers counted from 0"""
    mixing: str = "metropolis"
    """weights of the average with the neighbours: metropolis, laplacian, uniform (only row-stochastic on
    irregular graphs, where workers with more neighbours count more), weighted (metropolis for workers that
    count by their rows, problem.weights = "rows": what is kept is Σ ω_n x_n, and steps are as long as they
    are, where else workers with more rows make longer ones), or a file of lines "i j weight": without
    a line "j i" that has the same weight, without "i i" that is the rest of the row; if it is the topology,
    too, it says which edges there are"""
    probability: Annotated[float, Field(gt=0, le=1)] = 0.25
    """erdos_renyi: the probability of an edge; the graph is drawn once, from run.seed"""


class MixingTable(GraphTable, BeforeMixingTable):
    """Mixed into every method that gossips in rounds."""


class OverlapTable(MixingTable):
    """Mixed into methods whose exchange may travel during the workers' own steps."""

    overlap: bool = False
    """neighbours' models as they were at the beginning of the round are averaged in at its end, so that they
    travel meanwhile; another method mathematically (run.overlap is about sums and changes nothing)"""


class DPSGDTable(OverlapTable, LocalStepsTable):
    """Gossip of whole models (D-PSGD, arXiv 1705.09056)."""


class GradientTrackingTable(MixingTable, FirstOrder):
    """Gossip of models and of an estimate of the mean gradient (DIGing, arXiv 1607.03218)."""

    clip: NonNegative = 0.0
    """largest norm of a worker's estimate of the mean gradient where it is applied, a longer one is shortened
    to it, before weight_decay; what is sent stays as long as it is; 0: none"""


class LocalTable(LocalStepsTable):
    """Every worker by itself, no exchange: what has to be beaten."""


class FedAvgTable(BeforeMixingTable, LocalStepsTable):
    """Local steps, then the mean over all workers (FedAvg, arXiv 1602.05629)."""


class DePRLTable(OverlapTable, OwnStepsTable):
    """Gossip of the representation only, heads stay with their workers (DePRL, AAAI 2024)."""

    lr_head: Positive | None = None
    """learning rate of the head, on the same schedule; lr if not given"""
    lr_body: Positive | None = None
    """learning rate of the representation, on the same schedule; lr if not given"""
    head_steps: Count | None = None
    """τ: steps on the head in a round; 5 if head_epochs is not given either"""
    head_epochs: Count | None = None
    """the same in passes through the worker's rows, so that workers with more rows make more steps"""
    body_steps: Count | None = None
    """steps on the representation in a round; 5 if body_epochs is not given either"""
    body_epochs: Count | None = None
    """the same in passes through the worker's rows"""
    order: Literal["head_first", "body_first", "together"] = "head_first"
    """which steps come first; "together": body_steps or body_epochs steps on both at once"""

    def rows_a_round(self, rows: int, batch: int) -> int:
        """See `Table`."""
        body = _work(rows, batch, self.body_steps, self.body_epochs)
        if self.order == "together":
            return body
        return body + _work(rows, batch, self.head_steps, self.head_epochs)

    @model_validator(mode="after")
    def _one_of_steps_and_epochs(self) -> DePRLTable:
        _only_one(self, "head_steps", "head_epochs")
        _only_one(self, "body_steps", "body_epochs")
        if self.order == "together" and (self.head_steps or self.head_epochs):
            raise ValueError(
                'order = "together" moves the head in the body\'s steps: give body_steps or body_epochs, '
                "neither head_steps nor head_epochs"
            )
        return self


def _work(rows: int, batch: int, steps: int | None, epochs: int | None) -> int:
    """Rows of so many steps, or epochs."""
    return (steps or DEFAULT_STEPS) * batch if epochs is None else epochs * rows


def _only_one(table: Table, *keys: str) -> None:
    if sum(getattr(table, key) is not None for key in keys) > 1:
        raise ValueError(f"{' and '.join(keys)} say the same thing: give one of them")
