"""Under which conditions runs were measured, in words for a caption."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from hpcopt.report.runs import Run

OVERCOMMITTED = "more ranks than cores: times are not those of a parallel machine"
LISTED = 6
"""different numbers that a caption lists one by one"""


def conditions(runs: Sequence[Run], repeats: Iterable[int]) -> str:
    """Ranks, workers, hosts and cores of runs, and how many of each there are."""
    about = [run.tree.attrs for run in runs]
    hosts = [len(run.about("hosts")) for run in runs]
    return in_words(
        [one.get("ranks") for one in about],
        [one.get("workers") for one in about],
        hosts,
        [one.get("cores") for one in about],
        repeats,
    )


def in_words(ranks: Any, workers: Any, hosts: Any, cores: Any, repeats: Any) -> str:
    """The same of numbers."""
    P, N = several(ranks), several(workers)
    return (
        f"P = {P} rank{'s' * (P != '1')}, N = {N} worker{'s' * (N != '1')}; hosts: {several(hosts)}; "
        f"cores: {several(cores)}; repeats: {several(repeats)}."
    )


def several(numbers: Iterable[Any]) -> str:
    """The different ones of some numbers: a list, or from where to where."""
    given = list(numbers)
    known = sorted({int(number) for number in given if number is not None and np.isfinite(number)})
    if not known:
        return "unknown"
    text = ", ".join(map(str, known)) if len(known) <= LISTED else f"{known[0]} to {known[-1]}"
    return text + (" or unknown" if len([one for one in given if one is None]) else "")


def overcommitted(runs: Iterable[Run]) -> bool:
    """Whether one of them had more ranks than cores."""
    return any(run.tree.attrs.get("ranks", 0) > run.tree.attrs.get("cores", np.inf) for run in runs)
