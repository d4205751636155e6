"""Settings of methods whose step is one along the summed gradient, dense or sparsified."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hpcopt.config.base import Count, FirstOrder, Positive, Whole

Density = Annotated[float, Field(gt=0, le=1)]


class AllreduceSGDTable(FirstOrder):
    """Synchronous SGD, momentum or Adam on the dense mean gradient: the baseline."""


class SparsifiedTable(FirstOrder):
    """How many entries of the gradient are sent; mixed into every sparsifier."""

    fixed = frozenset({"density", "k", "per_layer", "density_warmup_rounds", "density_start"})
    k: Count | None = None
    """entries that each worker sends, in place of density"""
    per_layer: bool = False
    """choose the same fraction in each parameter tensor, not the largest entries of all"""
    density_warmup_rounds: Whole = 0
    """rounds over which the density falls geometrically from density_start"""
    density_start: Annotated[float, Field(gt=0, le=1)] = 0.25
    """the density of round 0 where there is such a warm-up"""

    @model_validator(mode="before")
    @classmethod
    def _k_replaces_the_default_density(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {"density": None} | values if values.get("k") is not None else values

    @model_validator(mode="after")
    def _one_of_density_and_k(self) -> SparsifiedTable:
        density = getattr(self, "density", None)
        if (density is None) == (self.k is None):
            raise ValueError(
                f"density = {density}, k = {self.k}: give one of them, which says how many entries"
            )
        if self.k is not None and self.per_layer:
            raise ValueError("k counts entries of all tensors together: with per_layer = true give density")
        return self


class SparseSumTable(SparsifiedTable):
    """How sparse vectors are summed; mixed into every sparsifier whose workers choose for themselves."""

    density: Density | Literal["auto"] | None = 0.01
    """entries that each worker sends, as a fraction of d (above 0, at most 1); "auto": the largest
    of 1 (dense), 0.1, 0.03, 0.01, 0.003, 0.001 that the network, measured at the start, makes worth while"""
    exchange: Literal["auto", "allgather", "owner", "dense"] = "auto"
    """how sparse vectors are summed over ranks; "auto" takes what a cost model predicts to be fastest"""
    select: Literal["local", "global"] = "local"
    """"global": of the sum, only the k largest entries are applied, the rest goes back to the error memories;
    another method mathematically, whose bytes do not grow with the number of ranks"""


class TopKTable(SparseSumTable):
    """Each worker sends its k largest accumulated entries (Top-k with error feedback)."""


class RegTopKTable(SparseSumTable):
    """Top-k with scores that count what was sent and cancelled (RegTop-k, arXiv 2501.05633)."""

    mu: Positive = 4.0
    """μ: an entry whose sum was |1 + Δ| times what the worker sent is ranked by |a| tanh(|1 + Δ|/μ)"""
    denominator: Literal["sent", "accumulated"] = "sent"
    """of Δ, (aggregate − sent) / denominator: what was "sent" last round, as in the paper, or what has
    "accumulated" now, as in one of the authors' scripts"""


class RandomKTable(SparsifiedTable):
    """All workers send the same k random entries of each round (random-k with error feedback)."""

    density: Density | None = 0.01
    """entries that each worker sends, as a fraction of d (above 0, at most 1)"""


class PowerSGDTable(FirstOrder):
    """Gradients of rank r, by power iteration with error feedback (PowerSGD, arXiv 1905.13727)."""

    fixed = frozenset({"rank"})
    rank: Count = 1
    """r: a parameter tensor, seen as a matrix of a rows and b columns, is sent as r(a + b) numbers where that
    is less than ab, else whole"""
