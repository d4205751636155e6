"""What every table of a config file shares. Nothing in this package imports torch or MPI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from hpcopt.config.run import RunTable

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Whole = Annotated[int, Field(ge=0, lt=2**63)]
Count = Annotated[int, Field(ge=1, lt=2**63)]


class Table(BaseModel):
    """A table of the config: unknown keys are errors, types are not converted, values do not change."""

    fixed: ClassVar[frozenset[str]] = frozenset()
    """keys that a run cannot change when it goes on, because what it carries along depends on them"""
    kinds: ClassVar[tuple[str, ...]] = ()
    """of a method: the built-in problems that it is for; all of them if none is named"""
    horizons: ClassVar[tuple[str, ...]] = ()
    """of a method: keys that are run.rounds if not given"""
    files: ClassVar[dict[str, str]] = {}
    """of a method: keys that name a file, and the "package.module:function" that reads it for the method"""
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _tuples(cls, values: Any) -> Any:
        """A tuple is written as a list in TOML."""
        tuples = {key for key, field in cls.model_fields.items() if get_origin(field.annotation) is tuple}
        if not tuples or not isinstance(values, dict):
            return values
        return {k: tuple(v) if k in tuples and isinstance(v, list) else v for k, v in values.items()}

    @property
    def beside(self) -> bool:
        """Of a method: whether it computes something beside its rounds, see `hpcopt.methods.base.Method`."""
        return False

    def rows_a_round(self, rows: int, batch: int) -> int:
        """Of a method: of how many rows a worker computes gradients in a round, up to a common factor.

        By these, ranks are given about equal work. One mini-batch, unless a table says otherwise.

        Args:
            rows: that the worker has.
            batch: of them in a mini-batch.
        """
        return batch

    def misfits(self, run: RunTable) -> list[str]:
        """What makes no sense in such a run, a sentence each; of a method."""
        return []


class LearningRate(Table):
    """The learning rate over rounds; mixed into every method that has one."""

    horizons: ClassVar[tuple[str, ...]] = ("lr_horizon",)

    lr: Positive = 0.1
    """learning rate η"""
    schedule: Literal["constant", "cosine", "exponential", "step"] = "constant"
    """how the learning rate falls"""
    lr_decay: Annotated[float, Field(gt=0, le=1)] = 0.96
    """factor per lr_decay_rounds rounds, for "exponential" (smooth) and "step" (in jumps)"""
    lr_decay_rounds: Count = 1
    """rounds per factor lr_decay"""
    lr_horizon: Count | None = None
    """rounds over which "cosine" falls to 0; run.rounds if not given"""
    warmup_rounds: Whole = 0
    """rounds over which the rate rises linearly from 0"""

    def misfits(self, run: RunTable) -> list[str]:
        """A rate that is 0 for the rest of the run, or never what it is to be."""
        found = super().misfits(run)
        if self.schedule == "cosine" and self.lr_horizon is not None and self.lr_horizon < run.rounds:
            found.append(
                f'lr_horizon = {self.lr_horizon}: from then on the rate of schedule = "cosine" is 0, but '
                f"run.rounds = {run.rounds}; a longer run needs a longer lr_horizon"
            )
        if 0 < run.rounds < self.warmup_rounds:
            found.append(
                f"warmup_rounds = {self.warmup_rounds}: longer than the run: run.rounds = {run.rounds}"
            )
        return found


class FirstOrder(LearningRate):
    """The first-order update; mixed into every method that applies one."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    """the update rule ("sgd" with momentum > 0 is heavy ball; "adamw" is adam, with x shortened by η
    weight_decay in each step instead of λx added to the gradient)"""
    momentum: Fraction = 0.0
    """sgd: momentum coefficient"""
    nesterov: bool = False
    """sgd: Nesterov's momentum"""
    beta1: Fraction = 0.9
    """adam, adamw: decay of the first moment"""
    beta2: Fraction = 0.999
    """adam, adamw: decay of the second moment"""
    eps: Positive = 1e-8
    """adam, adamw: added to the root of the second moment"""
    weight_decay: NonNegative = 0.0
    """λ of the λx that is added to the gradient"""
    clip: NonNegative = 0.0
    """largest norm of the gradient that is applied, the sum over all workers; a longer one is shortened to
    it, before weight_decay; 0: none"""
