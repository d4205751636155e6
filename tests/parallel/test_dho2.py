"""Hybrid steps on slices: the same on any number of ranks, resumed on any other, and what they send."""

import numpy as np
import pytest

import hpcopt
from hpcopt.api import resume, start
from hpcopt.config import from_tables

from .conftest import ON_2_OR_4, first_ranks

pytestmark = [pytest.mark.mpi(min_size=2), ON_2_OR_4]

PAIRS = {"largest": 4, "smallest": 1, "lanczos_iterations": 14, "refresh_every": 4, "warmup": 2}
METHODS = {
    "fosi": PAIRS | {"lr": 0.05, "warmup_lr": 0.02, "curvature_batch": 6},
    "auto": PAIRS | {"lr": 0.05, "refresh_every": "auto", "alpha": "auto", "planned_rounds": 1 << 14},
    "admm": PAIRS
    | {"variant": "admm", "base": "adamw", "lr": 0.01, "outer_every": 3, "outer_reset": True}
    | {"weight_decay": 0.1, "clip": 0.1},
}
DIGITS = {
    "kind": "logistic",
    "dataset": "digits",
    "positive": [3, 8],
    "regularisation": 0.01,
    "partition": "unequal",
    "alpha": 5.0,
    "batch_size": 12,
}
ROUNDS = {"fosi": 9, "auto": 42, "admm": 9}
"""with two refreshes, the second at round 6, or 40"""


def run(comm, out, settings, method="dho2", problem=DIGITS, **keys):
    base = {"workers": 5, "rounds": 9, "evaluate_every": 1, "out": str(out), "dtype": "float64"}
    tables = {
        "run": base | {"method": method, "device": "cpu", "reduction": "mpi"} | keys,
        "method": settings,
        "problem": problem,
    }
    return hpcopt.load(start(comm, from_tables(tables, "test")))


def on(comm, ranks, call):
    """What a call on the first ranks gives on rank 0, on every rank."""
    with first_ranks(comm, ranks) as sub:
        found = call(sub) if sub is not None else None
    return comm.bcast(found if comm.rank == 0 else None)


def curves(comm, ranks, where, *args, **keys):
    """Losses, counts, eigenvalues."""

    def call(sub):
        data = run(sub, where, *args, **keys)
        names = ("loss", "gradients", "passes", "spectrum_age", "bytes_sent")
        kept = {name: data["metrics"][name].values for name in names if name in data["metrics"]}
        return kept | {name: data["spectrum"][name].values for name in data.get("spectrum", {})}

    return on(comm, ranks, call)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_run_on_any_number_of_ranks(comm, mpi_tmp_path, method):
    keys = {"rounds": ROUNDS[method]}
    one, other = (
        curves(comm, ranks, mpi_tmp_path / f"{method}{ranks}", METHODS[method], **keys)
        for ranks in (1, comm.size)
    )
    assert one["eigenvalue"].shape == (2, 5)
    for name in ("gradients", "passes", "spectrum_age"):
        np.testing.assert_array_equal(other[name], one[name], err_msg=name)
    np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-9)
    np.testing.assert_allclose(other["eigenvalue"], one["eigenvalue"], rtol=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_resumed_around_a_refresh(comm, mpi_tmp_path, method):
    """Interrupted after the first refresh and before the second.

    On as many ranks to the bit, on others up to rounding.
    """
    rounds, keys = ROUNDS[method], {"deterministic": True, "keep_checkpoints": 1}
    all, fewer = comm.size, comm.size - 1
    want = curves(comm, all, mpi_tmp_path / "whole", METHODS[method], rounds=rounds, **keys)
    stops = {
        "fosi": [(3, all, all), (5, all, fewer), (5, fewer, all)],
        "auto": [(15, all, all), (25, all, fewer)],
        "admm": [(5, all, all)],
    }
    for at, before, after in stops[method]:
        out = mpi_tmp_path / f"{at}-{before}-{after}"
        on(comm, before, lambda sub, out=out, at=at: run(sub, out, METHODS[method], rounds=at, **keys) and 0)
        on(comm, after, lambda sub, out=out: resume(out, comm=sub, overrides=(f"run.rounds={rounds}",)) and 0)
        if comm.rank == 0:
            found, rounding = hpcopt.load(out), 0.0 if before == after else 1.0
            metrics, values = found["metrics"], found["spectrum"]["eigenvalue"]
            np.testing.assert_allclose(metrics["loss"], want["loss"], rtol=1e-9 * rounding)
            np.testing.assert_array_equal(metrics["passes"], want["passes"])
            np.testing.assert_allclose(values, want["eigenvalue"], rtol=1e-7 * rounding)
        comm.Barrier()


@pytest.mark.parametrize(
    ("base", "plain"), [("momentum", {"momentum": 0.9}), ("adam", {"optimizer": "adam"})]
)
def test_without_pairs_it_is_its_base_to_the_bit(comm, mpi_tmp_path, base, plain):
    same, keys = {"lr": 0.01, "schedule": "cosine"}, {"dtype": "float32", "deterministic": True}
    settings = same | {"base": base, "largest": 0}
    mine = curves(comm, comm.size, mpi_tmp_path / "dho2", settings, **keys)
    sgds = curves(comm, comm.size, mpi_tmp_path / "sgd", same | plain, "allreduce_sgd", **keys)
    assert np.array_equal(mine["loss"], sgds["loss"])
    assert np.array_equal(mine["bytes_sent"], sgds["bytes_sent"])


def test_what_is_sent(comm, mpi_tmp_path):
    """A step: little more than an allreduce. A product with the Hessian: than 2 (P − 1)/P d numbers."""
    d, pairs, products = 6_000, 10, 40
    problem = {"kind": "linear_regression", "dim": d, "rows_per_worker": 12}
    settings = {"lr": 1e-4, "largest": pairs, "warmup": 1, "alpha": 0.01}
    keys = {"problem": problem, "rounds": 3, "dtype": "float32"}
    dense = curves(comm, comm.size, mpi_tmp_path / "dense", {"lr": 1e-4}, "allreduce_sgd", **keys)
    sent = curves(comm, comm.size, mpi_tmp_path / "dho2", settings, **keys)
    assert sent["bytes_sent"][0] == 0  # not the rehearsal
    allreduce = np.diff(dense["bytes_sent"])[0]
    base, refresh, step = np.diff(sent["bytes_sent"])
    assert base == allreduce
    assert allreduce < step <= 1.02 * allreduce
    assert (refresh - step) / products / comm.size <= 9 * d * (comm.size - 1) / comm.size
    assert np.diff(sent["passes"]).tolist() == [1, products + 1, 1]
