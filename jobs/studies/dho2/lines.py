"""The methods that the study compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobs.studies.tuning import Variant

FORGET = 0.5
"""part of the sum of displacements that an outer step forgets, ADMM's and outer momentum's"""


@dataclass(frozen=True)
class Line(Variant):
    """A method.

    Attributes:
        base: of a hybrid, the name of the line that it is without curvature; else None.
        tuned: whether it has a learning rate of its own; a hybrid without one has its base's.
    """

    base: str | None = None
    tuned: bool = True


def _line(
    name: str, label: str, method: str, base: str | None = None, tuned: bool = True, /, **keys: Any
) -> Line:
    settings = {"run.method": method} | {f"method.{key}": value for key, value in keys.items()}
    return Line(name, label, settings, base, tuned)


PAIRS = {"largest": 10, "smallest": 0, "lanczos_iterations": 24}
"""of the Hessian of as many rows as a quarter of a mini-batch has"""
AUTO = {"refresh_every": "auto", "alpha": "auto"}
OUTER = "jobs.studies.dho2.outer:OuterMomentum"
FIRST_ORDER = [
    _line("sgd", "heavy ball, 0.9", "allreduce_sgd", momentum=0.9),
    _line("sgd99", "heavy ball, 0.99", "allreduce_sgd", momentum=0.99),
    _line("adam", "Adam", "allreduce_sgd", optimizer="adam"),
]
TUNED = [
    _line("fosi", "FOSI, heavy ball 0.9", "dho2", "sgd", variant="fosi", base="momentum", **PAIRS),
    _line("fosi-adam", "FOSI, Adam", "dho2", "adam", variant="fosi", base="adam", **PAIRS),
    _line(
        *("admm", "ADMM, heavy ball 0.9", "dho2", "sgd"),
        variant="admm",
        base="momentum",
        outer_damping=FORGET,
        **PAIRS,
    ),
    _line("outer", "outer momentum, heavy ball 0.9", OUTER, momentum=0.9, outer_momentum=1 - FORGET),
]
AUTOMATIC = [
    _line("auto", "auto, heavy ball 0.9", "dho2", "sgd", False, base="momentum", **PAIRS, **AUTO),
    _line("auto-adam", "auto, Adam", "dho2", "adam", False, base="adam", **PAIRS, **AUTO),
]
LBFGS = _line("lbfgs", "L-BFGS, all rows", "lbfgs", None, False)
BASES = {line: next(base for base in FIRST_ORDER if base.name == line.base) for line in AUTOMATIC}
"""automatic line -> what it is compared with, pair by pair"""
