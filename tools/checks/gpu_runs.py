"""Whole runs of tools/gpu_check: every method, deterministic convolutions, from device to device, memory."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from mpi4py import MPI
from scipy.sparse import csr_matrix
from torch import nn

import hpcopt
from hpcopt.ground.words import counted
from hpcopt.methods.base import Method
from hpcopt.problems.base import Recipe
from hpcopt.storage.slab import parallel_hdf5
from tools.checks.gpu_common import WORKERS, Outcome, Report, asleep, difference, quiet

ROUNDS, FEW, MANY = 40, 6, 1000
DIM, ROWS, SIDE = 300, 200, 12
WARM = 100
"""rounds after which a run has all the memory that it needs"""
LEAK = 4 << 20
"""bytes by which it may have grown after `MANY` rounds: less than 5 KB a round"""
Made = Method[Any, Any]
ON_QUADRATIC: tuple[Made, ...] = (
    hpcopt.AllreduceSGD(lr=0.5, momentum=0.9),
    hpcopt.DelayedSGD(lr=0.1, delay=[2, 0, 3, 1, 2]),
    hpcopt.TopK(lr=0.2, density=0.1),
    hpcopt.RegTopK(lr=0.2, density=0.1),
    hpcopt.RandomK(lr=0.2, density=0.2),
    hpcopt.PowerSGD(lr=0.5),
    hpcopt.DPSGD(lr=0.2, topology="one_peer_exponential", overlap=True),
    hpcopt.GradientTracking(lr=0.1),
    hpcopt.Local(lr=0.2, local_steps=2),
    hpcopt.FedAvg(lr=0.2, local_steps=2),
    hpcopt.DHO2(lr=0.5, largest=4, smallest=1, warmup=5, refresh_every=15),
    # resumed while pairs are computed; where there are two ranks, by one of its own
    hpcopt.DHO2(variant="concurrent", lr=0.5, largest=4, warmup=5, refresh_every=12, handover_rounds=8),
)
ON_MARGINS: tuple[Made, ...] = (
    hpcopt.FADL(),
    hpcopt.FADL(approximation="adaptive"),
    hpcopt.CommonDirections(),
    hpcopt.TRON(),
    hpcopt.LBFGS(),
    hpcopt.CoCoA(),
    hpcopt.Averaging(),
)
ON_IMAGES: tuple[Made, ...] = (
    hpcopt.AllreduceSGD(lr=0.05, momentum=0.9),
    hpcopt.DePRL(lr=0.05, head_steps=1, body_steps=2, momentum=0.5),
)
ACROSS: tuple[Made, ...] = (
    hpcopt.RegTopK(lr=0.2, density=0.1, momentum=0.5),
    hpcopt.DPSGD(lr=0.2, topology="ring"),
)


class Runs:
    """Runs on a device and on the CPU. Every call is collective.

    Args:
        comm: the ranks.
        device: "cuda" or, in a rehearsal, "cpu".
        report: gets the lines.
        folder: for their directories.
    """

    def __init__(self, comm: MPI.Comm, device: str, report: Report, folder: Path) -> None:
        self._comm, self._device, self._report, self._folder = comm, device, report, folder
        shared = comm.size == 1 or parallel_hdf5()
        if not shared and comm.rank == 0:
            print("h5py is built without parallel HDF5: every rank makes its own runs on one rank")
        self._ranks = comm if shared else MPI.COMM_SELF
        self._own = folder if shared else folder / str(comm.rank)
        self._rehearses, self._number = device == "cpu", 0

    def methods(self) -> None:
        """A run on the device, and one from a checkpoint made there, against a run on the CPU."""
        quadratic, sparse, dense = _quadratic(), _margins(sparse=True), _margins(sparse=False)
        cases: list[tuple[Made, Recipe, str, int]]
        cases = [(method, quadratic, "", ROUNDS) for method in ON_QUADRATIC]
        cases += [(method, sparse, ", sparse", _few(method)) for method in ON_MARGINS]
        if not self._rehearses:
            cases += [(method, dense, ", dense", _few(method)) for method in ON_MARGINS]
        cases += [(method, images(), ", images", FEW) for method in ON_IMAGES]
        for method, recipe, kind, rounds in cases:
            keys = {"dtype": "float64", "device": self._device}
            want, base = self._alone(method, recipe, rounds, **keys | {"device": "cpu"})
            if not self._rehearses:  # on the same device one that is resumed says it all
                got, seconds = self._whole(method, recipe, rounds, **keys)
                self._same(f"{_name(method)}{kind}: run", got, want, 1e-9, base, seconds)
            again, later = self._halves(method, recipe, rounds, self._device, **keys)
            self._same(f"{_name(method)}{kind}: resumed", again, want, 1e-9, base, later)

    def across(self) -> None:
        """Begun on the one, resumed on the other."""
        for method in ACROSS[: 1 if self._rehearses else None]:
            want, base = self._alone(method, _quadratic(), ROUNDS, device="cpu")
            for first, second in sorted({(self._device, "cpu"), ("cpu", self._device)}):
                got, seconds = self._halves(method, _quadratic(), ROUNDS, second, device=first)
                self._same(f"{_name(method)}: {first}, then {second}", got, want, 1e-9, base, seconds)

    def deterministic(self) -> None:
        """Convolutions in float32: the same bits twice on one rank, and once on several."""
        for method in ON_IMAGES:
            keys = {"dtype": "float32", "device": self._device, "deterministic": True}
            want, once = self._alone(method, images(), FEW, **keys)
            for where, make in (("again", self._alone), (counted(self._comm.size, "rank"), self._whole)):
                got, seconds = make(method, images(), FEW, **keys)
                self._same(f"{_name(method)}, same bits: {where}", got, want, 0.0, once, seconds, "float32")

    def memory(self) -> None:
        """Many rounds, of which the later ones take no memory."""
        method = hpcopt.RegTopK(lr=0.01, density=0.1)
        keys = {"device": self._device, "metrics": [memory], "evaluate_every": WARM}
        recipe = _quadratic() if self._rehearses else images()
        _, seconds = self._whole(method, recipe, MANY, dtype="float32", **keys)
        found: Any = hpcopt.load(self._own / f"run{self._number}")["metrics"]
        for which in ("gpu", "host"):
            series = found[f"memory_{which}"].values
            grown = float(np.max(series[2:]) - series[1])
            name = f"{MANY:,} rounds, {which}: grown by [bytes]"
            self._report(Outcome(name, DIM, "float32", max(0.0, grown), LEAK, 0.0, seconds))

    def _same(
        self,
        name: str,
        got: dict[str, Any],
        want: dict[str, Any],
        limit: float,
        base: float,
        seconds: float,
        dtype: str = "float64",
    ) -> None:
        worst = max(difference(self._comm, got[key], want[key]) for key in want)
        self._report(Outcome(name, DIM, dtype, worst, limit, base, seconds))

    def _alone(self, method: Made, recipe: Recipe, rounds: int, **keys: Any) -> tuple[dict[str, Any], float]:
        """On rank 0; what came out, everywhere."""
        found, out = None, self._folder / f"alone{self._next()}"
        if self._comm.rank == 0:
            seconds = _run(method, recipe, MPI.COMM_SELF, out, rounds, **keys)
            found = _state(out), seconds
        asleep(self._comm)
        return self._comm.bcast(found)

    def _whole(self, method: Made, recipe: Recipe, rounds: int, **keys: Any) -> tuple[dict[str, Any], float]:
        out = self._own / f"run{self._next()}"
        seconds = _run(method, recipe, self._ranks, out, rounds, **keys)
        return _state(out), seconds

    def _halves(
        self, method: Made, recipe: Recipe, rounds: int, then: str, **keys: Any
    ) -> tuple[dict[str, Any], float]:
        """Ended half-way and gone on with on another device; the time of the rest."""
        out = self._own / f"run{self._next()}"
        _run(method, recipe, self._ranks, out, rounds // 2, **keys)
        start = time.perf_counter()
        with quiet():
            overrides = (f"run.rounds={rounds}", f"run.device={then}")
            hpcopt.resume(out, problem=recipe, comm=self._ranks, overrides=overrides)
        return _state(out), time.perf_counter() - start

    def _next(self) -> int:
        self._number += 1
        return self._number


def memory(problem: hpcopt.Problem, model: torch.Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """A metric: what the process has of either memory, as each worker sees it."""
    gpu = torch.cuda.memory_reserved(model.device) if model.device.type == "cuda" else 0
    host = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {"gpu": np.full(problem.share.n, float(gpu)), "host": np.full(problem.share.n, float(host))}


def _run(method: Made, recipe: Recipe, ranks: MPI.Comm, out: Path, rounds: int, **keys: Any) -> float:
    """Its seconds, files included. Collective over the ranks."""
    start = time.perf_counter()
    beside = int(ranks.size > 1 and method.settings.beside)
    keys = {"evaluate_every": 1, "seed": 3, "curvature_ranks": beside} | keys
    with quiet():
        hpcopt.run(method, recipe, comm=ranks, out=out, rounds=rounds, **keys)
    return time.perf_counter() - start


def _state(out: Path) -> dict[str, Any]:
    """Everything that the run's last checkpoint holds, and its losses."""
    newest = max((out / "checkpoints").glob("*.h5"))
    with h5py.File(newest) as file:
        state = {name: np.asarray(array) for name, array in file["state"].items() if array.size}
    with h5py.File(out / "run.h5") as file:
        return state | {"loss": np.asarray(file["metrics/loss"])}


def _few(method: Made) -> int:
    """Rounds on a linear model: averaging makes one."""
    return 1 if isinstance(method, hpcopt.Averaging) else FEW


def _name(method: Made) -> str:
    adaptive = " adaptive" if getattr(method.settings, "approximation", "") == "adaptive" else ""
    return type(method).__name__ + adaptive + " concurrent" * method.settings.beside


def _quadratic() -> hpcopt.Quadratic:
    return hpcopt.Quadratic(workers=WORKERS, eigenvalues="geometric", dim=DIM)


def _margins(sparse: bool) -> hpcopt.Logistic:
    """Logistic regression on 400 rows of 299 numbers and a bias."""
    generator = np.random.default_rng(3)
    rows = generator.standard_normal((400, DIM - 1)) * (generator.random((400, DIM - 1)) < 0.1)
    labels = np.sign(rows[:, :20].sum(1) + generator.standard_normal(400))
    given = csr_matrix(rows) if sparse else rows
    return hpcopt.Logistic((given, labels), workers=WORKERS, regularisation=0.01)


def images() -> hpcopt.Network:
    """Two layers of convolutions on small random images of four classes."""
    generator = np.random.default_rng(4)
    rows = generator.standard_normal((ROWS, 1, SIDE, SIDE)), generator.integers(0, 4, ROWS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Tanh()),
            *(nn.Flatten(), nn.Linear(64, 4)),
        )
    loss = nn.functional.cross_entropy
    return hpcopt.Network(model, loss, rows, workers=WORKERS, batch_size=8, private=["6.*"])
