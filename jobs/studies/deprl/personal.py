"""Personalised accuracy on Fashion-MNIST: DePRL against shared models and workers by themselves.

A method is a line of `METHODS`, a split of the data a line of `COLUMNS`; runs and tables follow from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs.studies.study import Case

CONFIG = Path(__file__).resolve().with_name("personal.toml")
SEEDS = (1, 2, 3)
MORE_SEEDS = {(16, "rich-0.1"): (4, 5, 6, 7, 8)}
"""(workers, column) -> seeds added where three left open whether ours is better than local only"""
ROUNDS = {16: 100, 128: 50}
"""workers N -> rounds: 128 workers pass through their fewer rows as often in half of them"""


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        label: in the tables.
        settings: "table.key" -> value, changes of personal.toml.
        workers: the numbers of workers that it is run with.
    """

    label: str
    settings: dict[str, Any]
    workers: tuple[int, ...] = (16, 128)


def _method(name: str, **settings: Any) -> dict[str, Any]:
    return {"run.method": name} | {f"method.{key}": value for key, value in settings.items()}


_EXPONENTIAL = {"topology": "exponential"}
_SHARED = {"local_steps": 5, "before_mixing": True}
_TEN = {"local_steps": 10, "lr": 0.1}  # as many mini-batches as DePRL's 5 + 5, and the rate that suits "ours"

METHODS = {
    "deprl-ring": Method("DePRL, ring", _method("deprl", topology="ring"), (16,)),
    "deprl": Method("DePRL, exponential", _method("deprl", **_EXPONENTIAL)),
    "dpsgd": Method("D-PSGD, exponential", _method("dpsgd", **_EXPONENTIAL, **_SHARED)),
    "fedavg": Method("FedAvg", _method("fedavg", **_SHARED)),
    "local": Method("local only", _method("local", local_steps=5)),
    "ours": Method(
        "ours, exponential",
        _method("dpsgd", **_EXPONENTIAL, **_SHARED | _TEN) | {"problem.logit_adjustment": 1.0},
    ),
    "dpsgd-10": Method("D-PSGD as ours", _method("dpsgd", **_EXPONENTIAL, **_SHARED | _TEN), (16,)),
    "local-10": Method("local only as ours", _method("local", **_TEN), (16,)),
}
"""name -> row; a new one is a line here, and in `COMPARED` where its differences from others are wanted"""
COMPARED = ("deprl", "ours")
"""whose paired differences from all other rows are shown"""


@dataclass(frozen=True)
class Column:
    """One split of the data.

    Attributes:
        label: in the tables.
        settings: "table.key" -> value.
        first: run before the other columns: the claims are about it.
    """

    label: str
    settings: dict[str, Any]
    first: bool = False


_POOR = {"problem.samples_per_worker": 100}

COLUMNS = {
    "rich-0.1": Column("all rows, α 0.1", {"problem.alpha": 0.1}, first=True),
    "rich-0.3": Column("all rows, α 0.3", {"problem.alpha": 0.3}),
    "rich-0.5": Column("all rows, α 0.5", {"problem.alpha": 0.5}),
    "poor-0.1": Column("100 each, α 0.1", {"problem.alpha": 0.1} | _POOR, first=True),
    "poor-0.3": Column("100 each, α 0.3", {"problem.alpha": 0.3} | _POOR),
    "poor-0.5": Column("100 each, α 0.5", {"problem.alpha": 0.5} | _POOR, first=True),
}


def methods(workers: int) -> list[str]:
    """Names of the rows of one table."""
    return [name for name, method in METHODS.items() if workers in method.workers]


def case(workers: int, column: str, method: str, seed: int) -> Case:
    """A run."""
    settings = METHODS[method].settings | COLUMNS[column].settings
    settings |= {"run.workers": workers, "run.rounds": ROUNDS[workers], "run.seed": seed}
    return Case(f"{column}/{method}-seed{seed}", CONFIG, settings)


def seeds(workers: int, column: str) -> tuple[int, ...]:
    """Of all runs in one column."""
    return SEEDS + MORE_SEEDS.get((workers, column), ())


def cases(workers: int) -> list[Case]:
    """All runs of one table: seed by seed, so that a study that was stopped has whole seeds to compare."""
    return [
        case(workers, column, method, seed)
        for first in (True, False)
        for seed in sorted({seed for column in COLUMNS for seed in seeds(workers, column)})
        for column, split in COLUMNS.items()
        if split.first is first and seed in seeds(workers, column)
        for method in methods(workers)
    ]
