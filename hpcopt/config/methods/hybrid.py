"""Settings of methods that know the Hessian's extreme eigenpairs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from hpcopt.config.base import Count, FirstOrder, Fraction, LearningRate, NonNegative, Positive, Whole


class DHO2Table(LearningRate):
    """Newton's step where f is steep, a first-order step elsewhere (FOSI, arXiv 2302.08484; DHO2)."""

    fixed = frozenset({"variant", "largest", "smallest", "base"})
    horizons = ("lr_horizon", "planned_rounds")
    variant: Literal["fosi", "admm", "concurrent"] = "fosi"
    """fosi: the plain step; admm: with DHO2's outer steps, of weight sigma; concurrent: the plain step, which
    goes on while eigenpairs are computed at a snapshot, by ranks of their own if run.curvature_ranks > 0"""
    largest: Whole = 10
    """k: eigenpairs of the Hessian with the largest eigenvalues"""
    smallest: Whole = 0
    """l: eigenpairs with the smallest ones; with k = l = 0 the method is its base"""
    lanczos_iterations: Count | None = None
    """products with the Hessian for these pairs, each of them a pass; if not given, FOSI's 4 (k + l), or
    2 (k + l) + 4 with refresh_every = "auto", where they have to pay"""
    refresh_every: Count | Literal["auto"] = 800
    """T: rounds after which the pairs are computed anew; auto: at a quarter of the planned rounds, at a
    sixteenth, and so on, as often as a twentieth of these rounds' gradients pays for"""
    planned_rounds: Count | None = None
    """refresh_every = "auto": the rounds of which a twentieth may be spent; run.rounds if not given"""
    handover_rounds: Count | Literal["ready"] = 100
    """concurrent: h, rounds from a snapshot until its pairs are in use, at most refresh_every; ready: as soon
    as all ranks have them, which depends on the machine's pace"""
    curvature_batch: Count | None = None
    """rows of each worker from which they are computed; the problem's batch size if not given, or, with
    refresh_every = "auto", a quarter of it, and of all workers two rows at least for each pair"""
    warmup: Whole | None = None
    """rounds of the base alone before the pairs are computed for the first time, not the learning rate's
    warmup_rounds; if not given, 100, or, with refresh_every = "auto", as few as it needs"""
    warmup_lr: Positive | None = None
    """learning rate in these rounds, on the same schedule; lr if not given"""
    alpha: Positive | Literal["auto"] = 0.1
    """α: length of Newton's step in the span of the eigenvectors; 1 solves a quadratic there; auto: it, and
    how many times as long as by itself the base's step is, become what curvature and noise allow, on the
    learning rate's schedule and without momentum in the span"""
    base: Literal["sgd", "momentum", "adam", "adamw"] = "momentum"
    """the first-order step in the rest of the space"""
    momentum: Fraction = 0.9
    """coefficient of the heavy ball: of base = "momentum", and of the gradient in the span; "sgd" has none"""
    beta1: Fraction = 0.9
    """adam, adamw: decay of the first moment"""
    beta2: Fraction = 0.999
    """adam, adamw: decay of the second moment"""
    eps: Positive = 1e-8
    """adam, adamw: added to the root of the second moment"""
    weight_decay: NonNegative = 0.0
    """adamw: all of x is shortened by η times it in each step"""
    clip: NonNegative = 0.0
    """largest norm of the gradient, the sum over all workers; a longer one is shortened to it before it is
    split; 0: none"""
    damping: NonNegative = 0.0
    """added to the |λ| that Newton's step divides by"""
    floor: Annotated[float, Field(gt=0, lt=1)] = 1e-3
    """the smallest of these, as a fraction of the largest: below it, |λ| is taken to be that"""
    sigma: Positive = 0.1
    """admm: σ, added to the eigenvalues, and what the multiplier grows by per displacement"""
    outer_every: Count = 100
    """admm: c, rounds between outer steps"""
    outer_damping: Fraction = 0.0
    """admm: by which fraction the multiplier, the sum of all displacements, shrinks before each outer step"""
    outer_reset: bool = False
    """admm: the multiplier is forgotten where the last displacement goes against it"""

    @model_validator(mode="after")
    def _iterations_suffice(self) -> DHO2Table:
        if self.lanczos_iterations is not None and self.lanczos_iterations < self.pairs:
            raise ValueError(
                f"lanczos_iterations = {self.lanczos_iterations}, but largest + smallest = {self.pairs}: "
                "needs at least one for each of these, better 4"
            )
        return self

    @model_validator(mode="after")
    def _the_base_decays(self) -> DHO2Table:
        if self.weight_decay and self.base != "adamw":
            raise ValueError(
                f'weight_decay = {self.weight_decay}: is for base = "adamw", not "{self.base}"; a λx in the '
                "gradient is a part of f, and so of its Hessian: problem.regularisation adds it to both"
            )
        return self

    @model_validator(mode="after")
    def _outer_steps_have_a_period(self) -> DHO2Table:
        if self.variant == "admm" and "auto" in (self.refresh_every, self.alpha):
            raise ValueError(
                'variant = "admm": refresh_every and alpha are numbers; "auto" is for variant = "fosi": it '
                "knows nothing of outer steps"
            )
        return self

    @model_validator(mode="after")
    def _snapshots_have_a_period(self) -> DHO2Table:
        if self.variant != "concurrent":
            return self
        if "auto" in (self.refresh_every, self.alpha):
            raise ValueError(
                'variant = "concurrent": refresh_every and alpha are numbers; "auto" is for variant = '
                '"fosi", whose pairs are in use where they are due'
            )
        h, every = self.handover_rounds, self.refresh_every
        if isinstance(h, int) and isinstance(every, int) and h > every:
            raise ValueError(
                f"handover_rounds = {h}, but refresh_every = {every}: pairs are in use before the next "
                f"snapshot is taken, so at most {every}"
            )
        if not self.pairs:
            raise ValueError('variant = "concurrent": largest + smallest = 0, but there have to be pairs')
        return self

    @property
    def beside(self) -> bool:
        """See `Table`."""
        return self.variant == "concurrent"

    @property
    def adaptive(self) -> bool:
        """Whether the base is no step along the gradient."""
        return self.base in ("adam", "adamw")

    @property
    def products(self) -> int:
        """With the Hessian, of a refresh."""
        least = 2 * self.pairs + 4 if self.refresh_every == "auto" else 4 * self.pairs
        return self.lanczos_iterations or least

    @property
    def rounds_alone(self) -> int:
        """Of the base, at least, before the first refresh."""
        return (0 if self.refresh_every == "auto" else 100) if self.warmup is None else self.warmup

    @property
    def pairs(self) -> int:
        """k + l."""
        return self.largest + self.smallest

    def first_order(self) -> FirstOrder:
        """The base's own table."""
        keys = {*LearningRate.model_fields, "beta1", "beta2", "eps", "weight_decay"}
        own: dict[str, Any] = {
            "optimizer": self.base if self.adaptive else "sgd",
            "momentum": self.momentum if self.base == "momentum" else 0.0,
        }
        return FirstOrder(**own, **self.model_dump(include=keys))
