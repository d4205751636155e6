"""Settings of methods whose gradients arrive late."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from hpcopt.config.base import Count, FirstOrder, NonNegative, Positive, Whole
from hpcopt.config.methods.gossip import GraphTable

if TYPE_CHECKING:
    from hpcopt.config.run import RunTable

Rounds = Whole


class DelayedSGDTable(GraphTable, FirstOrder):
    """SGD on gradients of an earlier model (arXiv 2308.09430)."""

    fixed = frozenset({"mode", "delay", "layout", "window", "trace", "trace_out"})
    files: ClassVar[dict[str, str]] = {"trace": "hpcopt.storage.trace:read"}

    mode: Literal["exact", "schedule", "trace", "free"] = "exact"
    """"exact": every round applies Σ ω_n ∇f_n(x_{t−τ_n}) of all workers; "schedule": worker n's gradient
    arrives in the rounds t with (t − n) mod τ_n = 0 only, and is of the model of τ_n rounds before; "free":
    every worker steps at its own pace, and how late its gradients are is measured; "trace": which gradients
    are applied when, and of which model they are, is read from a file"""
    window: Count = 64
    """"free": gradients of all workers together that make a round; "trace": rows, where they have none"""
    layout: Literal["owners", "neighbours"] = "owners"
    """"free": every worker owns a slice of the model, to which the others put their gradients; or has a model
    of its own, which it averages with its neighbours' on the topology as they arrive. "trace": that of the
    run"""
    trace_out: bool = False
    """"free": keep in DIR/trace.h5 what replays the run to the bit"""
    trace: str | None = None
    """"trace": the trace.h5 of a free run; of owners also a CSV file with the columns worker, read and, if
    you like, round: the k-th gradient that is applied is this worker's, of the model to which `read` of them
    had been applied. The run ends with its trace"""
    transport: Literal["auto", "windows", "messages"] = "auto"
    """"free": what carries gradients and slices of the model: one-sided puts, messages, or whichever is right
    and faster"""
    delay: (
        Rounds | Annotated[list[Rounds], Field(min_length=1)] | Annotated[str, Field(pattern=r"^random:\d+$")]
    ) = 4
    """τ: of all workers, or a list with one of each; "random:8" ("exact" only): from 0 to 8, drawn anew for
    each gradient"""
    lr_rule: Literal["constant", "stability", "adaptive"] = "constant"
    """"constant": η is lr; "stability": lr_factor / (L (τ + 1)), τ the longest delay; "adaptive": the same
    with the staleness of each gradient"""
    lr_factor: Positive = 0.05
    """of the other two rules; the paper's condition for stability is 1/20"""
    smoothness: Positive | None = None
    """L of these two, the gradient's Lipschitz constant; if not given, the largest |λ| of the Hessian at the
    start, of all rows, as 20 Lanczos iterations find it"""
    compensation: NonNegative = 0.0
    """λ of g + λ g∘g∘(x_t − x_{t−τ}), of each worker's g (DC-ASGD, arXiv 1609.08326)"""
    aggregate: Literal["mean", "sum"] = "mean"
    """"schedule": of the gradients that arrive in one round the mean, or the sum; weighted by ω_n or N ω_n"""
    clip: NonNegative = 0.0
    """largest norm of the gradient that is applied, longer ones are shortened to it, before weight_decay: of
    the sum of those that arrive; where workers run freely, of each worker's, before it is sent; 0: none"""

    @field_validator("delay", mode="wrap")
    @classmethod
    def _delay(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except ValidationError:
            raise ValueError(
                'must be a number of rounds, 0 or more, or a list with one of each worker, or "random:8"'
            ) from None

    @model_validator(mode="after")
    def _delays_fit_the_mode(self) -> DelayedSGDTable:
        delays = self.delay if isinstance(self.delay, list) else [self.delay]
        if self.mode == "schedule" and not all(isinstance(delay, int) and delay for delay in delays):
            raise ValueError(
                f'delay = {self.delay!r}: with mode = "schedule" give numbers of rounds, at least 1'
            )
        if self.lr_rule != "constant" and self.optimizer != "sgd":
            raise ValueError(
                f'lr_rule = "{self.lr_rule}": is of steps along gradients, but those of optimizer = '
                f'"{self.optimizer}" are as long as lr says'
            )
        if self.mode == "exact" and self.aggregate == "sum":
            raise ValueError('aggregate = "sum": with mode = "exact" every round has the mean of all workers')
        if self.measured and self.aggregate == "sum":
            raise ValueError(
                f'aggregate = "sum": with mode = "{self.mode}" every gradient is applied by itself'
            )
        if self.measured and self.delay != type(self).model_fields["delay"].default:
            raise ValueError(f'delay = {self.delay!r}: with mode = "{self.mode}" nobody sets delays')
        if self.measured and self.lr_rule == "stability":
            raise ValueError(
                f'lr_rule = "stability": with mode = "{self.mode}" nobody sets the longest delay'
            )
        kept = self.mode == "trace" or self.trace_out
        if kept and self.lr_rule == "adaptive" and self.smoothness is None:
            raise ValueError(
                'lr_rule = "adaptive": with a trace give smoothness, too: found anew, on another number of '
                "ranks, it would have other bits"
            )
        if self.gossips and self.lr_rule != "constant":
            raise ValueError(f'lr_rule = "{self.lr_rule}": with layout = "neighbours" no gradient is late')
        if self.measured and self.compensation:
            raise ValueError(
                f'compensation: with mode = "{self.mode}" nobody keeps the models that gradients are of'
            )
        if self.trace_out and self.mode != "free":
            raise ValueError(f'trace_out = true: with mode = "{self.mode}" the config tells everything')
        if (self.mode == "trace") != (self.trace is not None):
            raise ValueError(
                'trace: mode = "trace" needs the path of a trace.h5 or CSV file, others have none'
            )
        return self

    @property
    def measured(self) -> bool:
        """Whether it is, or once was, measured how late gradients are."""
        return self.mode in ("free", "trace")

    @property
    def gossips(self) -> bool:
        """Whether workers have models of their own."""
        return self.measured and self.layout == "neighbours"

    @property
    def longest(self) -> int:
        """The longest delay that may come."""
        if isinstance(self.delay, str):
            return int(self.delay.removeprefix("random:"))
        return max(self.delay) if isinstance(self.delay, list) else self.delay

    def misfits(self, run: RunTable) -> list[str]:
        """A delay longer than the run: all gradients would be of x_0. Free workers and equal bits."""
        found = super().misfits(run)
        if self.mode == "free" and run.deterministic:
            found.append(
                'mode = "free": its bits depend on time, which run.deterministic = true cannot change'
            )
        if self.measured or not 0 < run.rounds < self.longest:
            return found
        return [*found, f"delay = {self.delay!r}: longer than the run, which has run.rounds = {run.rounds}"]
