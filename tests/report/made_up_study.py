"""Scaling studies that nobody made: samples as a study leaves them, with times that are given."""

from pathlib import Path

import numpy as np
import xarray

from hpcopt.report.runs import Scaling

PHASES = ["compute", "reduce.sum", "evaluation", "files"]
ROUNDS = 20
"""of a block"""


def study(times, mode="strong", cores=4, waiting=0.0):
    """A study.

    Args:
        times: ranks -> seconds of a round, a block each, of two repeats in turn.
        mode: strong or weak.
        cores: that the ranks may use.
        waiting: part of the clock that the mean over the ranks waits for the slowest.
    """
    rows = [(ranks, at, one) for ranks, some in times.items() for at, one in enumerate(some)]
    ranks, block, seconds = (np.array(column) for column in zip(*rows, strict=True))
    count, clock = len(rows), seconds * ROUNDS
    columns = {
        "ranks": ranks,
        "workers": np.full(count, 8) if mode == "strong" else ranks,
        "hosts": np.ones(count, int),
        "cores": np.full(count, cores),
        "repeat": block % 2,
        "launch": np.arange(count),
        "block": block,
        "rounds": np.full(count, ROUNDS),
        "seconds": clock,
        "gradients": np.full(count, 100.0),
        "bytes_sent": ranks * 1e6,
        "peak_memory": np.full(count, 3e8),
        "overcommitted": (ranks > cores).astype(int),
    }
    # a quarter of the clock is communication, and what the slowest rank computes is the rest
    port = np.array([0.25 + 2 * waiting, 0.25, 0.25 + waiting])
    computing = np.array([0.75, 0.75 - 2 * waiting, 0.75 - waiting])
    names = ("phase_seconds", "phase_seconds_min", "phase_seconds_mean")
    phases = {
        name: (("sample", "phase"), np.outer(clock, [a, b, 0.0, 0.0]))
        for name, a, b in zip(names, computing, port, strict=True)
    }
    samples = xarray.Dataset(
        {name: ("sample", column) for name, column in columns.items()} | phases,
        {"sample": np.arange(count), "phase": PHASES},
    )
    about = {"schema": "hpcopt-scaling", "schema_version": 1, "mode": mode, "method": "topk", "config": "{}"}
    tree = xarray.DataTree.from_dict({"/": xarray.Dataset(attrs=about), "samples": samples})
    return Scaling(f"{mode}-study", Path(mode), tree)
