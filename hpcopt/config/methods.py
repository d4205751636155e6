"""The [method] table, one class per method."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from hpcopt.config.base import Count, FirstOrder, Fraction, LearningRate, NonNegative, Positive, Table
from hpcopt.errors import UserError
from hpcopt.ground.own_code import is_own, load_own
from hpcopt.ground.words import suggestion

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
    density_warmup_rounds: Annotated[int, Field(ge=0)] = 0
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


class OwnStepsTable(LearningRate):
    """The SGD steps that workers make on their own between exchanges; mixed into every method with such."""

    momentum: Fraction = 0.0
    """momentum coefficient (heavy ball)"""
    weight_decay: NonNegative = 0.0
    """λ of the λx that is added to the gradient"""
    clip: NonNegative = 0.0
    """largest norm of a worker's gradient (deprl: of each part), longer ones are shortened to it; 0: none"""


class LocalStepsTable(OwnStepsTable):
    """How many of them, where all parameters move together."""

    local_steps: Count | None = None
    """steps on its own that a worker makes in a round; 5 if local_epochs is not given either"""
    local_epochs: Count | None = None
    """the same in passes through the worker's rows, so that workers with more rows make more steps"""

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


class MixingTable(BeforeMixingTable):
    """Who averages with whom; mixed into every method that gossips."""

    topology: str = "ring"
    """ring, torus, star, complete, erdos_renyi, exponential, one_peer_exponential (another graph every
    round), or a file of edges, one "i j" a line, workers counted from 0"""
    mixing: str = "metropolis"
    """weights of the average with the neighbours: metropolis, laplacian, uniform (only row-stochastic on
    irregular graphs, where workers with more neighbours count more), or a file of lines "i j weight": without
    a line "j i" that has the same weight, without "i i" that is the rest of the row; if it is the topology,
    too, it says which edges there are"""
    probability: Annotated[float, Field(gt=0, le=1)] = 0.25
    """erdos_renyi: the probability of an edge; the graph is drawn once, from run.seed"""


class OverlapTable(MixingTable):
    """Mixed into methods whose exchange may travel during the workers' own steps."""

    overlap: bool = False
    """neighbours' models as they were at the beginning of the round are averaged in at its end, so that they
    travel meanwhile; another method mathematically (run.overlap is about sums and changes nothing)"""


class DPSGDTable(OverlapTable, LocalStepsTable):
    """Gossip of whole models (D-PSGD, arXiv 1705.09056)."""


class GradientTrackingTable(MixingTable, LearningRate):
    """Gossip of models and of an estimate of the mean gradient (DIGing, arXiv 1607.03218)."""


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


class MarginsTable(Table):
    """Mixed into every method that needs the margins of a linear model."""

    kinds = ("logistic", "squared_hinge", "least_squares")


class SpanTable(MarginsTable):
    """How f is minimised over a few directions with kept margins; mixed into every method that does so."""

    fixed = frozenset({"keep"})
    keep: Count | Literal["auto"] = "auto"
    """directions that are kept from round to round, with their margins: as many numbers per row and d/P per
    rank, and about half their square in a sum per Newton step; "auto": √(d/5), at least 8, at most 40"""
    diagonal_every: Count = 30
    """passes between computations of the Hessian's diagonal, each of them a pass; the first is after 4"""
    margins_every: Count = 20
    """rounds between computations of the margins from the model, against rounding; each is half a pass"""


class LocalModelsTable(MarginsTable):
    """How workers minimise models of the objective; mixed into every method that averages such steps."""

    approximation: Literal["quadratic", "hybrid", "nonlinear", "linear", "adaptive"] = "quadratic"
    """a worker's model of f around w, whose gradient there is ∇f(w), and whose curvature is that of its rows:
    scaled to all rows at w ("quadratic") or everywhere ("nonlinear"), scaled at w and its own elsewhere
    ("hybrid"), or only its own ("linear"); "adaptive": quadratic, the average being one of the directions of
    `common_directions`, in the rounds in which it pays"""
    inner_iterations: Count = 10
    """k̂: what a worker spends on its model in a round: conjugate-gradient iterations in all, or, with "svrg"
    and "sgd", passes through its rows"""
    inner_solver: Literal["auto", "cg", "tron", "svrg", "sgd"] = "auto"
    """cg: conjugate gradients, for "quadratic" alone; tron: Newton steps in a trust region; svrg, sgd: one
    row after the other, for "linear" alone; auto: cg where it applies, else tron"""
    inner_lr: Positive | None = None
    """learning rate of svrg, sgd and the warm start, for f over its rows; from their norms if not given"""
    combination: Literal["uniform", "rows"] = "uniform"
    """weights of the workers' steps: equal for all that have rows, or in proportion to these"""
    angle: Fraction = 0.0
    """cos θ: a worker whose step has a smaller cosine with −∇f gives −∇f instead; 0: where f does not fall"""

    @model_validator(mode="after")
    def _the_solver_fits(self) -> LocalModelsTable:
        solver, model = self.inner_solver, self.approximation
        if solver == "cg" and model not in ("quadratic", "adaptive"):
            raise ValueError(
                f'inner_solver = "cg" solves approximation = "quadratic" only; for "{model}" take "tron"'
            )
        if solver in ("svrg", "sgd") and model != "linear":
            raise ValueError(
                f'inner_solver = "{solver}" is for approximation = "linear" only; for "{model}" take "auto"'
            )
        return self


class FADLTable(LocalModelsTable, SpanTable):
    """Workers minimise models of the whole objective, their steps are averaged (FADL, JMLR 19(74) 2018)."""

    fixed = SpanTable.fixed | {"approximation"}
    tolerance: Fraction = 0.0
    """ε: the run ends where ‖∇f(w)‖ ≤ ε times what it was in the first round that computed it; 0: never"""
    warm_start: Annotated[int, Field(ge=0)] = 0
    """the first round is so many epochs of each worker's own SGD, averaged; 0: none"""
    cost_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 2.0
    """adaptive: what a round with the workers' directions costs, in rounds without; 2 where passes are what
    costs, more where local work counts, too"""

    @model_validator(mode="after")
    def _adaptive_starts_at_zero(self) -> FADLTable:
        if self.approximation == "adaptive" and self.warm_start:
            raise ValueError('warm_start: approximation = "adaptive" has none; leave this key out')
        return self


class CommonDirectionsTable(SpanTable):
    """The true objective minimised over the gradient and a few directions that are kept (SESOP, 2005)."""


class TRONTable(MarginsTable):
    """Newton's method by conjugate gradients on all rows of a linear model (TRON, TERA; JMLR 9, 2008)."""

    preconditioner: Literal["none", "diagonal"] = "none"
    """diagonal: LIBLINEAR's, 0.99 I + 0.01 times the Hessian's diagonal, for one more pass per round"""
    cg_tolerance: Fraction = 0.1
    """a step ends where the residual of Newton's equation is so many times the gradient"""
    cg_iterations: Count = 1000
    """the most conjugate-gradient iterations of a step, each of them a pass"""


class LBFGSTable(Table):
    """The last steps tell the curvature (L-BFGS, Math. Prog. 45, 1989)."""

    fixed = frozenset({"memory"})
    memory: Count = 10
    """m: pairs of steps and changes of the gradient that are kept, 2m vectors on every rank"""
    wolfe: Annotated[float, Field(gt=1e-4, lt=1)] | Literal["auto"] = "auto"
    """how small the slope at the end of a step has to be, relative to that at its beginning; "auto": 0.1 on a
    linear model, where trials cost no pass, else 0.9"""


class AveragingTable(MarginsTable):
    """Every worker minimises its own objective, once, and the models are averaged; a linear model."""

    combination: Literal["rows", "uniform"] = "rows"
    """weights of the workers' models: in proportion to their rows, or equal for all that have some"""
    inner_tolerance: Annotated[float, Field(gt=0, lt=1)] = 1e-6
    """a worker has its minimum where the gradient is so many times what it was at 0"""


class CoCoATable(MarginsTable):
    """Workers ascend the dual of a linear model on rows of their own (CoCoA+, JMLR 18(230), 2018)."""

    local_passes: Count = 10
    """how often a worker goes through its rows in a round"""


class DHO2Table(LearningRate):
    """Newton's step where f is steep, a first-order step elsewhere (FOSI, arXiv 2302.08484; DHO2)."""

    fixed = frozenset({"variant", "largest", "smallest", "base"})
    variant: Literal["fosi", "admm"] = "fosi"
    """fosi: the plain step; admm: with DHO2's outer steps, of weight sigma"""
    largest: Annotated[int, Field(ge=0)] = 10
    """k: eigenpairs of the Hessian with the largest eigenvalues"""
    smallest: Annotated[int, Field(ge=0)] = 0
    """l: eigenpairs with the smallest ones; with k = l = 0 the method is its base"""
    lanczos_iterations: Count | None = None
    """products with the Hessian for these pairs, each of them a pass; 4 (k + l) if not given"""
    refresh_every: Count = 800
    """T: rounds after which the pairs are computed anew"""
    curvature_batch: Count | None = None
    """rows of each worker from which they are computed; the problem's batch size if not given"""
    warmup: Annotated[int, Field(ge=0)] = 100
    """rounds of the base alone before the pairs are computed for the first time; not the learning rate's
    warmup_rounds"""
    warmup_lr: Positive | None = None
    """learning rate in these rounds, on the same schedule; lr if not given"""
    alpha: Positive = 0.1
    """α: length of Newton's step in the span of the eigenvectors; 1 solves a quadratic there"""
    base: Literal["sgd", "momentum", "adam"] = "momentum"
    """the first-order step in the rest of the space"""
    momentum: Fraction = 0.9
    """coefficient of the heavy ball: of base = "momentum", and of the gradient in the span; "sgd" has none"""
    beta1: Fraction = 0.9
    """adam: decay of the first moment"""
    beta2: Fraction = 0.999
    """adam: decay of the second moment"""
    eps: Positive = 1e-8
    """adam: added to the root of the second moment"""
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

    @property
    def pairs(self) -> int:
        """k + l."""
        return self.largest + self.smallest

    def first_order(self) -> FirstOrder:
        """The base's own table."""
        keys = {*LearningRate.model_fields, "beta1", "beta2", "eps"}
        own: dict[str, Any] = {
            "optimizer": "adam" if self.base == "adam" else "sgd",
            "momentum": self.momentum if self.base == "momentum" else 0.0,
        }
        return FirstOrder(**own, **self.model_dump(include=keys))


def _only_one(table: Table, *keys: str) -> None:
    if sum(getattr(table, key) is not None for key in keys) > 1:
        raise ValueError(f"{' and '.join(keys)} say the same thing: give one of them")


METHODS = {
    "allreduce_sgd": "AllreduceSGD",
    "regtopk": "RegTopK",
    "topk": "TopK",
    "randomk": "RandomK",
    "powersgd": "PowerSGD",
    "deprl": "DePRL",
    "dpsgd": "DPSGD",
    "gradient_tracking": "GradientTracking",
    "local": "Local",
    "fedavg": "FedAvg",
    "common_directions": "CommonDirections",
    "fadl": "FADL",
    "tron": "TRON",
    "lbfgs": "LBFGS",
    "averaging": "Averaging",
    "cocoa": "CoCoA",
    "dho2": "DHO2",
}
"""the built-in methods: CLASS stands in hpcopt/methods/NAME.py, its settings are CLASSTable above"""
METHOD_TABLES: dict[str, type[Table]] = {name: globals()[f"{kind}Table"] for name, kind in METHODS.items()}


class UncheckedTable(Table):
    """The settings of a method of the user's own where its module cannot be imported (on a login node)."""

    model_config = ConfigDict(extra="allow")


def method_table(name: str) -> type[Table]:
    """The class of a method's settings: of a built-in one's name, or of "package.module:Class".

    Raises:
        UserError: there is no such method.
    """
    if not is_own(name):
        if name in METHOD_TABLES:
            return METHOD_TABLES[name]
        allowed = ", ".join(f'"{method}"' for method in METHODS)
        raise UserError(
            f'[run] method = "{name}": no such method{suggestion(name, METHODS)}; allowed: {allowed}, '
            'or "package.module:Class"'
        )
    try:
        table = getattr(load_own("[run] method", name, "Class"), "table", None)
    except ModuleNotFoundError:  # what the user's module imports: torch, say, which jobs have
        return UncheckedTable
    if not (isinstance(table, type) and issubclass(table, Table)):
        raise UserError(f'[run] method = "{name}": is no hpcopt.Method[Settings, State]')
    return table
