"""FADL: the same iterates on any number of ranks, with uneven workers, one of them without rows."""

import numpy as np
import pytest

import hpcopt
from hpcopt.api import resume, start
from hpcopt.config import from_tables

from .conftest import ON_2_OR_4, first_ranks

pytestmark = [pytest.mark.mpi(min_size=2), ON_2_OR_4]

CASES = {
    "quadratic": {"inner_iterations": 6},
    "svrg": {"approximation": "linear", "inner_solver": "svrg", "inner_iterations": 2, "warm_start": 1},
}
SAME = ("loss", "accuracy", "auprc", "passes", "gradients")


def uneven(workers):
    """Five workers; an outlying eigenvalue, which makes plain conjugate gradients amplify rounding errors."""
    draw = np.random.default_rng(8)
    X = 1 + draw.standard_normal((263, 23)) * np.logspace(0, -1.5, 23)
    y = np.sign((X - 1) @ draw.standard_normal(23) + 0.3 * draw.standard_normal(263))
    rows = np.split(np.arange(203), [21, 21, 112, 119])
    return hpcopt.Logistic(
        (X[:203], y[:203]), (X[203:], y[203:]), workers=workers, rows=rows, regularisation=1e-4
    )


def run(comm, out, case, **keys):
    base = {"workers": 5, "rounds": 6, "evaluate_every": 2, "out": str(out), "method": "fadl"}
    tables = {
        "run": base | {"dtype": "float64", "keep_checkpoints": 1} | keys,
        "method": CASES[case],
        "problem": {"kind": "tests.parallel.test_fadl:uneven"},
    }
    return hpcopt.load(start(comm, from_tables(tables, "test")))


def on(comm, ranks, what, *args, **keys):
    """The metrics of a run on the first ranks, on every rank."""
    with first_ranks(comm, ranks) as sub:
        data = what(sub, *args, **keys) if sub is not None else None
    return comm.bcast(data["metrics"].to_dataset() if comm.rank == 0 else None)


def going_on(comm, out):
    resume(out, comm=comm, overrides=("run.rounds=6",))
    return hpcopt.load(out)


@pytest.mark.parametrize("case", CASES)
def test_the_same_run_on_any_number_of_ranks(comm, mpi_tmp_path, case):
    """To 1e-8; where sums are ordered to the bit, also where it is interrupted and goes on on other ranks."""
    whole = on(comm, 1, run, mpi_tmp_path / "whole", case, deterministic=True)
    plain = on(comm, comm.size, run, mpi_tmp_path / "plain", case)
    np.testing.assert_allclose(plain["loss"], whole["loss"], rtol=1e-8)
    assert np.array_equal(plain["passes"], whole["passes"])
    before, after = (comm.size, comm.size - 1) if case == "quadratic" else (1, comm.size)
    out = mpi_tmp_path / "resumed"
    on(comm, before, run, out, case, rounds=3, deterministic=True)
    metrics = on(comm, after, going_on, out)
    kept = np.isin(metrics["round"], whole["round"])
    for name in SAME:
        assert np.array_equal(metrics[name][kept], whole[name]), name
