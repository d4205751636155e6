"""Delayed SGD on any number of ranks, resumed on any other; delays are of workers, not of ranks."""

import numpy as np
import pytest

import hpcopt
from hpcopt.api import resume

from .conftest import first_ranks
from .test_same_trajectory import curves, largest_difference, run

pytestmark = pytest.mark.mpi(min_size=4)
CASES = {
    "exact": {"lr": 0.01, "delay": [5, 0, 2, 2, 1, 3], "compensation": 0.3},
    "random": {"lr_rule": "adaptive", "smoothness": 10.0, "lr_factor": 0.5, "delay": "random:4"},
    "schedule": {"lr": 0.01, "mode": "schedule", "delay": [1, 3, 2, 2, 4, 4], "aggregate": "sum"}
    | {"optimizer": "adamw", "weight_decay": 0.1, "clip": 0.5},
}


@pytest.mark.parametrize("case", CASES)
def test_the_same_curve_on_1_to_4_ranks(comm, mpi_tmp_path, case):
    for keys, limit in (({"dtype": "float64"}, 1e-6), ({"dtype": "float32", "deterministic": True}, 0.0)):
        where = mpi_tmp_path / keys["dtype"]
        runs = curves(comm, where, "mlp", method="delayed_sgd", options=CASES[case], **keys)
        assert largest_difference(runs) <= limit
        assert runs[0]["staleness_max"][-1] > 1


@pytest.mark.parametrize("case", CASES)
def test_resume_on_another_number_of_ranks(comm, mpi_tmp_path, case):
    keys = {"dtype": "float64", "deterministic": True, "method": "delayed_sgd", "options": CASES[case]}
    with first_ranks(comm, 1) as sub:
        whole = run(sub, mpi_tmp_path / "whole", "mlp", **keys) if sub is not None else None
    for before, after in ((1, 3), (4, 2)):
        out = mpi_tmp_path / f"{before}-{after}"
        with first_ranks(comm, before) as sub:
            if sub is not None:
                run(sub, out, "mlp", rounds=7, **keys)
        with first_ranks(comm, after) as sub:
            if sub is not None:
                resume(out, comm=sub, overrides=("run.rounds=12",))
        if comm.rank == 0:
            data = hpcopt.load(out)
            kept = np.isin(data["metrics/round"], whole["metrics/round"])
            for name in ("loss", "accuracy", "staleness_mean", "staleness_p95", "staleness_max"):
                assert np.array_equal(data["metrics"][name][kept], whole["metrics"][name]), name
            assert np.array_equal(data["staleness/count"], whole["staleness/count"])
        comm.Barrier()
