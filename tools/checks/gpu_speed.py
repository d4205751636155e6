"""Speeds in tools/gpu_check: the selection, rounds on one rank, what `deterministic` costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI
from torch import Tensor

import hpcopt
from hpcopt.math.carried import CarriedLargest
from hpcopt.math.topk import largest
from tools.checks.gpu_common import Outcome, Report, quiet, timed
from tools.checks.gpu_runs import images

DENSITY, WORKERS = 0.001, 4
SIZES = {"cuda": 11_000_000, "cpu": 100_003}
"""d"""
ROUNDS = 20
Choose = Callable[[Tensor, int], Tensor]


def selection(device: torch.device, report: Report) -> None:
    """The k largest entries, from nothing and from the last round's threshold, beside torch.topk. Local."""
    d = SIZES[device.type]
    k = math.ceil(DENSITY * d)

    def topk(X: Tensor) -> Tensor:
        return X.abs().topk(k, sorted=False).indices

    for n in (1, WORKERS):
        X = torch.randn(n, d, device=device)
        want, known = largest(X.cpu(), k), CarriedLargest()
        known(X, k)
        _, base = timed(MPI.COMM_SELF, topk, X)
        ways: dict[str, Choose] = {"carried": known, "from nothing": largest}
        for name, choose in ways.items():

            def call(X: Tensor, choose: Choose = choose) -> Tensor:
                return choose(X, k)

            got, seconds = timed(MPI.COMM_SELF, call, X)
            wrong = float((got.cpu() != want).sum())
            report(Outcome(f"largest, {n} × d, {name}", d, "float32", wrong, 0.0, base, seconds))


def rounds(device: torch.device, report: Report, folder: Path) -> None:
    """Rounds of one rank: compressed beside dense, deterministic convolutions beside others. Local."""
    d = SIZES[device.type]
    layer = _layer(d)
    dense, sparse = hpcopt.AllreduceSGD(lr=0.1), hpcopt.RegTopK(lr=0.1, density=DENSITY)
    plain = _round(dense, layer, folder / "dense", device=device.type, dtype="float32")
    seconds = _round(sparse, layer, folder / "sparse", device=device.type, dtype="float32")
    report(Outcome("a round, dense: compressed", d, "float32", None, 0.0, plain, seconds))
    keys = {"device": device.type, "dtype": "float32"}
    free = _round(dense, images(), folder / "free", **keys)
    same = _round(dense, images(), folder / "same", **keys, deterministic=True)
    report(Outcome("convolutions: deterministic", 0, "float32", None, 0.0, free, same))


def _layer(d: int) -> hpcopt.Network:
    """One linear layer of about d parameters, for whose gradients there is little to compute."""
    features = math.isqrt(d) // 3
    rows = torch.randn(8 * WORKERS, features).numpy(), torch.arange(8 * WORKERS).numpy()
    model = torch.nn.Linear(features, d // features)
    return hpcopt.Network(model, torch.nn.functional.cross_entropy, rows, workers=WORKERS, batch_size=8)


def _round(method: Any, recipe: Any, out: Path, **keys: Any) -> float:
    """Seconds of a round on the optimisation clock, without the first ones."""
    keys |= {"rounds": 2 * ROUNDS, "evaluate_every": ROUNDS, "evaluate": []}
    with quiet():
        file = hpcopt.run(method, recipe, comm=MPI.COMM_SELF, out=out, **keys)
    clock: Any = hpcopt.load(file)["metrics/seconds"]
    return float(clock[-1] - clock[1]) / ROUNDS
