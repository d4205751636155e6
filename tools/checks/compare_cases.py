"""What tools/compare runs: every method, and every way through its code, on small problems.

Nothing here may depend on a clock: no exchange = "auto" on several ranks, no density = "auto". Densities are
such that in float64 no rounding decides which entries are selected.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

ROUNDS, INTERRUPTED_AT = 8, 5
"""off the grid of records, so that the last record of the first job is one more"""
RUN = {"workers": 5, "evaluate_every": 3, "device": "cpu", "reduction": "mpi", "stall_seconds": 60.0}
"""three ranks have 2, 2 and 1 of the workers, and fifths are never exact"""
DOUBLE = {"dtype": "float64"}
"""of methods that refuse another one"""
DTYPES = {"float64": {"dtype": "float64"}, "float32": {"dtype": "float32", "deterministic": True}}

LINEAR = {"kind": "linear_regression", "dim": 23, "rows_per_worker": 40}
MLP = {
    "kind": "network",
    "dataset": "digits",
    "hidden": [16],
    "batch_size": 16,
    "partition": "dirichlet",
    "logit_adjustment": 1.0,
    "new_workers": 2,
    "new_worker_steps": 3,
}
MARGINS = {"dataset": "digits", "positive": [3, 8], "regularisation": 0.01}
PROBLEMS: dict[str, dict[str, Any]] = {
    "linear": LINEAR,
    "batches": LINEAR | {"batch_size": 6},
    "quadratic": {"kind": "quadratic", "eigenvalues": "power", "dim": 17},
    "toy": {"kind": "toy_logistic", "spread": 10.0},
    "mlp": MLP,
    "uneven": MLP | {"partition": "unequal", "alpha": 5.0, "batch_size": 40, "regularisation": 0.01},
    "logistic": MARGINS | {"kind": "logistic"},
    "hinge": MARGINS | {"kind": "squared_hinge", "partition": "unequal", "alpha": 5.0},
    "squares": MARGINS | {"kind": "least_squares"},
    "unequal": MLP
    | {"partition": "unequal", "alpha": 5.0, "batch_size": 40, "weights": "rows", "regularisation": 0.01},
    "own": {"kind": "compare_problem:factory", "hidden": 6},
}


class Case(NamedTuple):
    """One run.

    Attributes:
        method, problem: names.
        settings: the [method] table.
        run: keys of the [run] table beside `RUN`.
        ranks: the most on which nothing depends on a clock.
    """

    method: str
    problem: str
    settings: dict[str, Any]
    run: Mapping[str, Any] = MappingProxyType({})
    ranks: int = 1_000

    def tables(self, dtype: str, rounds: int, out: str) -> dict[str, dict[str, Any]]:
        """The config."""
        run = RUN | {"method": self.method, "rounds": rounds, "out": out} | DTYPES[dtype] | dict(self.run)
        return {"run": run, "method": self.settings, "problem": PROBLEMS[self.problem]}


# on the quadratic all workers do the same: how far they are from each other would be nothing but rounding
MAIN: list[tuple[str, str, dict[str, Any]]] = [
    ("allreduce_sgd", "linear quadratic mlp own", {"lr": 0.01, "momentum": 0.9}),
    (
        "regtopk",
        "linear quadratic mlp own",
        {
            "lr": 0.01,
            "density": 0.1,
            "density_warmup_rounds": 4,
            "density_start": 0.15,
            "exchange": "allgather",
        },
    ),
    ("topk", "linear mlp", {"lr": 0.01, "density": 0.2, "select": "global", "exchange": "allgather"}),
    ("randomk", "linear mlp", {"lr": 0.01, "density": 0.3, "momentum": 0.9}),
    ("powersgd", "linear mlp own", {"lr": 0.01, "rank": 2}),
    (
        "deprl",
        "mlp own",
        {"lr": 0.05, "momentum": 0.5, "head_steps": 2, "body_epochs": 1, "before_mixing": True},
    ),
    (
        "dpsgd",
        "linear mlp own",
        {"lr": 0.02, "topology": "one_peer_exponential", "local_steps": 2, "overlap": True},
    ),
    ("gradient_tracking", "linear mlp own", {"lr": 0.02}),
    ("local", "linear mlp own", {"lr": 0.02, "local_steps": 2}),
    ("fedavg", "linear mlp own", {"lr": 0.02, "momentum": 0.5, "local_steps": 2, "before_mixing": True}),
    ("delayed_sgd", "linear mlp own", {"lr": 0.01, "delay": [3, 0, 1, 2, 2], "compensation": 0.1}),
    ("fadl", "logistic hinge", {"inner_iterations": 3}),
    ("tron", "logistic hinge", {"cg_iterations": 2}),
    ("lbfgs", "linear mlp logistic", {"memory": 3}),
    ("cocoa", "logistic hinge squares", {"local_passes": 1}),
    ("averaging", "logistic", {}),
    (
        "dho2",
        "linear mlp own",
        {"lr": 0.01, "largest": 3, "smallest": 1, "warmup": 2, "refresh_every": 4, "curvature_batch": 9},
    ),
]
KEPT = {"keep": 3, "diagonal_every": 3, "margins_every": 4}
DECAY = {"lr": 0.02, "weight_decay": 0.01}
MORE = {
    # what workers make of a linear model
    "common-logistic": Case("common_directions", "logistic", KEPT, run=DOUBLE),
    "common-hinge": Case("common_directions", "hinge", KEPT, run=DOUBLE),
    "fadl-adaptive": Case(
        "fadl", "hinge", {"approximation": "adaptive", "inner_iterations": 2, "keep": 3}, run=DOUBLE
    ),
    "fadl-nonlinear": Case("fadl", "hinge", {"approximation": "nonlinear", "inner_iterations": 3}),
    "fadl-svrg": Case(
        "fadl",
        "logistic",
        {"approximation": "linear", "inner_solver": "svrg", "inner_iterations": 1, "warm_start": 1},
    ),
    "tron-diagonal": Case("tron", "hinge", {"preconditioner": "diagonal", "cg_iterations": 2}),
    # the update rule and the schedule of the learning rate
    "allreduce_sgd-adam": Case("allreduce_sgd", "mlp", DECAY | {"optimizer": "adam", "schedule": "cosine"}),
    "allreduce_sgd-nesterov": Case(
        "allreduce_sgd", "unequal", DECAY | {"momentum": 0.9, "nesterov": True, "schedule": "step"}
    ),
    "allreduce_sgd-overlapped": Case(
        "allreduce_sgd", "mlp", {"lr": 0.02, "warmup_rounds": 4}, {"overlap": True}
    ),
    "allreduce_sgd-target": Case(
        "allreduce_sgd", "batches", {"lr": 0.02, "schedule": "exponential"}, {"target_loss": 78.0}
    ),
    # the form of the hybrid step, and its base
    "dho2-admm": Case(
        "dho2",
        "mlp",
        {
            "variant": "admm",
            "base": "adam",
            "lr": 0.01,
            "largest": 2,
            "warmup": 1,
            "refresh_every": 3,
            "outer_every": 2,
            "outer_damping": 0.1,
            "outer_reset": True,
        },
    ),
    "dho2-base": Case("dho2", "batches", {"lr": 0.01, "largest": 0, "warmup": 4, "warmup_lr": 0.002}),
    # which entries, and how they travel
    "regtopk-k": Case(
        "regtopk", "batches", {"lr": 0.01, "k": 5, "denominator": "accumulated", "exchange": "owner"}
    ),
    "regtopk-layers": Case(
        "regtopk",
        "mlp",
        {"lr": 0.01, "density": 0.05, "per_layer": True, "momentum": 0.9, "exchange": "dense"},
    ),
    "regtopk-global": Case(
        "regtopk", "mlp", {"lr": 0.01, "density": 0.05, "select": "global", "exchange": "owner"}
    ),
    "regtopk-adam": Case(
        "regtopk", "linear", {"lr": 0.01, "density": 0.2, "optimizer": "adam", "exchange": "owner"}
    ),
    "regtopk-auto": Case("regtopk", "mlp", {"lr": 0.01, "density": 0.05}, ranks=1),
    "topk-from-dense": Case(
        "topk",
        "mlp",
        DECAY
        | {"density": 0.05, "density_warmup_rounds": 3, "density_start": 1.0}
        | {"momentum": 0.9, "nesterov": True, "exchange": "owner"},
        {"overlap": True},
    ),
    "topk-global-dense": Case(
        "topk", "batches", {"lr": 0.01, "k": 4, "select": "global", "exchange": "dense"}
    ),
    "topk-all": Case("topk", "linear", {"lr": 0.01, "density": 1.0, "exchange": "dense"}),
    "regtopk-toy": Case("regtopk", "toy", {"lr": 0.01, "k": 1, "exchange": "owner"}, {"workers": 6}),
    "randomk-layers": Case(
        "randomk",
        "unequal",
        DECAY
        | {"density": 0.1, "per_layer": True, "density_warmup_rounds": 6, "momentum": 0.5, "nesterov": True},
    ),
    "randomk-k": Case("randomk", "linear", {"lr": 0.01, "k": 5, "optimizer": "adam"}),
    "powersgd-nesterov": Case("powersgd", "unequal", DECAY | {"rank": 1, "momentum": 0.5, "nesterov": True}),
    "powersgd-adam": Case("powersgd", "mlp", {"lr": 0.01, "rank": 4, "optimizer": "adam"}),
    # the workers' own steps, and whom they average with
    "deprl-body-first": Case(
        "deprl",
        "mlp",
        DECAY | {"lr_head": 0.05, "clip": 1.0, "order": "body_first", "topology": "star", "overlap": True},
    ),
    "deprl-together": Case(
        "deprl",
        "own",
        {"lr": 0.05, "lr_body": 0.02, "body_steps": 2, "order": "together"}
        | {"topology": "one_peer_exponential"},
    ),
    "deprl-epochs": Case(
        "deprl",
        "uneven",
        {"lr": 0.05, "head_epochs": 1, "body_steps": 1, "mixing": "laplacian", "overlap": True},
    ),
    "dpsgd-ring": Case(
        "dpsgd", "mlp", DECAY | {"local_steps": 1, "momentum": 0.5, "clip": 1.0, "before_mixing": True}
    ),
    "dpsgd-epochs": Case(
        "dpsgd", "own", {"lr": 0.02, "local_epochs": 1, "topology": "erdos_renyi", "probability": 0.6}
    ),
    "dpsgd-torus": Case(
        "dpsgd",
        "batches",
        {"lr": 0.02, "local_steps": 2, "topology": "torus", "mixing": "uniform", "overlap": True},
        {"workers": 6},
    ),
    "gradient_tracking-cosine": Case(
        "gradient_tracking", "uneven", {"lr": 0.05, "topology": "star", "schedule": "cosine"}
    ),
    "local-epochs": Case("local", "unequal", DECAY | {"local_epochs": 1, "momentum": 0.5, "clip": 0.5}),
    "fedavg-epochs": Case("fedavg", "unequal", DECAY | {"local_epochs": 1, "clip": 0.5, "schedule": "step"}),
}
CASES = {
    f"{method}-{problem}": Case(method, problem, settings)
    for method, problems, settings in MAIN
    for problem in problems.split()
} | MORE


def chosen(pattern: str) -> dict[str, Case]:
    """The cases whose names match a regular expression somewhere."""
    return {name: case for name, case in CASES.items() if re.search(pattern, name)}
