"""Workers are mathematics, ranks are hardware: the same run on any number of ranks, resumed on any other."""

import itertools
import json
import shutil

import numpy as np
import pytest
from mpi4py import MPI

import hpcopt
from hpcopt.api import resume, start
from hpcopt.comm import mpi_ports
from hpcopt.comm.reduce import buckets as overlap
from hpcopt.config import from_tables
from hpcopt.errors import UserError
from hpcopt.problems import groups as of_workers

from .conftest import first_ranks, groups

pytestmark = pytest.mark.mpi(min_size=4)

PROBLEMS = {
    "linear_regression": {"kind": "linear_regression", "dim": 23, "rows_per_worker": 40},
    "quadratic": {"kind": "quadratic", "eigenvalues": "power", "dim": 17},
    "mlp": {
        "kind": "network",
        "dataset": "digits",
        "hidden": [16],
        "batch_size": 8,
        "partition": "dirichlet",
        "logit_adjustment": 1.0,
    },
    "newcomers": {
        "kind": "network",
        "dataset": "digits",
        "hidden": [16],
        "batch_size": 16,
        "partition": "dirichlet",
        "weights": "rows",
        "new_workers": 2,
        "new_worker_steps": 5,
    },
    "dropout": {"kind": "network", "dataset": "digits", "model": "cnn", "dropout": 0.5, "batch_size": 4},
    "batchnorm": {"kind": "tests.parallel.factories:batchnorm"},
}


METHODS = {
    "allreduce_sgd": {"lr": 0.01, "momentum": 0.9},
    # with larger densities there are too few entries whose scores are more than rounding: many inputs are 0
    "regtopk": {"lr": 0.01, "density": 0.1, "density_warmup_rounds": 5, "density_start": 0.15},
    "topk": {"lr": 0.01, "density": 0.3, "select": "global"},
    "randomk": {"lr": 0.01, "density": 0.3, "momentum": 0.9, "clip": 0.5},
    "powersgd": {"lr": 0.01, "rank": 2, "optimizer": "adamw", "weight_decay": 0.1},
    "deprl": {"lr": 0.05, "momentum": 0.5, "head_steps": 2, "body_epochs": 1, "before_mixing": True},
    "dpsgd": {"lr": 0.05, "topology": "one_peer_exponential", "local_steps": 2, "overlap": True},
    "gradient_tracking": {"lr": 0.01, "mixing": "weighted", "optimizer": "adamw", "clip": 0.5},
    "local": {"lr": 0.01, "local_steps": 2, "optimizer": "adamw", "weight_decay": 0.1, "clip": 0.5},
    "fedavg": {"lr": 0.05, "momentum": 0.5, "local_steps": 2, "before_mixing": True},
}
PERSONAL = ("deprl", "dpsgd", "fedavg", "gradient_tracking", "local")
COMPRESSED = sorted(METHODS.keys() - {"allreduce_sgd", *PERSONAL})


TOGETHER = ((1, 3), (2,), (4,))
"""numbers of ranks, some of them at the same time"""


def made(comm, out, problem, method="allreduce_sgd", options=None, **keys):
    base = {"workers": 6, "rounds": 12, "evaluate_every": 3, "out": str(out), "device": "cpu"}
    tables = {
        "run": base | {"method": method} | keys,
        "method": options or METHODS[method],
        "problem": PROBLEMS[problem],
    }
    return start(comm, from_tables(tables, "test"))


def run(*arguments, **keys):
    return hpcopt.load(made(*arguments, **keys))


def curves(comm, where, problem, **keys):
    """The run's results for 1, 2, 3 and 4 ranks, on every rank."""
    found = {}
    for counts in TOGETHER:
        with groups(comm, *counts) as sub:
            file = made(sub, where / f"{problem}{sub.size}", problem, **keys) if sub is not None else None
        for ranks, first in zip(counts, itertools.accumulate(counts, initial=0), strict=False):
            metrics = hpcopt.load(file)["metrics"].to_dataset() if comm.rank == first else None
            found[ranks] = comm.bcast(metrics, first)
    return [found[ranks] for ranks in range(1, 5)]


MEASURED = ("seconds", "bytes_sent", "peak_memory")  # what may depend on the ranks


def largest_difference(runs):
    """Over all metrics but the measured ones, relative to the largest value of the metric."""
    differences = [
        float(np.max(np.abs(other[name] - runs[0][name])) / np.max(np.abs(runs[0][name])))
        for other in runs[1:]
        for name in runs[0].data_vars
        if name not in MEASURED
    ]
    return max(differences)


@pytest.mark.parametrize("problem", ["linear_regression", "quadratic", "mlp", "dropout"])
def test_float64_agrees_to_1e_6(comm, mpi_tmp_path, problem):
    runs = curves(comm, mpi_tmp_path, problem, dtype="float64")
    assert largest_difference(runs) < 1e-6
    assert [run["bytes_sent"][-1] > 0 for run in runs] == [False, True, True, True]


@pytest.mark.parametrize("problem", ["linear_regression", "quadratic", "mlp"])
def test_float32_agrees_to_1e_4(comm, mpi_tmp_path, problem):
    assert largest_difference(curves(comm, mpi_tmp_path, problem, dtype="float32", rounds=20)) < 1e-4


@pytest.mark.parametrize("problem", ["linear_regression", "mlp", "dropout", "batchnorm"])
def test_deterministic_is_bit_identical(comm, mpi_tmp_path, problem):
    keys = {"dtype": "float32", "deterministic": True}
    assert largest_difference(curves(comm, mpi_tmp_path, problem, **keys)) == 0.0


def test_overlap_changes_nothing_but_the_rounding(comm, mpi_tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "BUCKET_BYTES", 4096)
    runs = [curves(comm, mpi_tmp_path / str(on), "mlp", dtype="float64", overlap=on) for on in (False, True)]
    for plain, overlapped in zip(*runs, strict=True):
        assert largest_difference([plain, overlapped]) < 1e-6
        assert np.array_equal(plain["bytes_sent"], overlapped["bytes_sent"])


@pytest.mark.parametrize("problem", ["linear_regression", "mlp"])
@pytest.mark.parametrize("method", COMPRESSED)
def test_compressed_gradients_agree_to_1e_6(comm, mpi_tmp_path, method, problem):
    """Where entries cancel to rounding, which of them is sent may differ, and with it what is counted."""
    counted = ["bytes_workers", "density_union"] if "density" in METHODS[method] else []
    runs = curves(comm, mpi_tmp_path, problem, method=method, dtype="float64")
    assert largest_difference([run.drop_vars(counted) for run in runs]) < 1e-6
    assert largest_difference([run[[*counted, "loss"]] for run in runs]) < 1e-2


@pytest.mark.parametrize("method", COMPRESSED)
def test_compressed_gradients_deterministic(comm, mpi_tmp_path, method):
    keys = {"dtype": "float32", "deterministic": True}
    assert largest_difference(curves(comm, mpi_tmp_path, "mlp", method=method, **keys)) == 0.0


@pytest.mark.parametrize("method", PERSONAL)
def test_models_of_the_workers_own_agree(comm, mpi_tmp_path, monkeypatch, method):
    """To 1e-6, gradients mapped on 1 rank, workers computed together on 2 and in turn on 3 and 4;
    deterministic to the bit; what evaluation sends is in no count. On 3 and 4 ranks some have no newcomer."""
    taken = []

    def fastest(comm, ways, remembered):
        taken.append([*ways][{1: -1, 2: 1}.get(comm.size, 0)])
        return taken[-1]

    monkeypatch.setattr(of_workers, "FEWEST", 2)
    monkeypatch.setattr(mpi_ports, "fastest", fastest)
    for keys, bound in (({"dtype": "float64"}, 1e-6), ({"dtype": "float32", "deterministic": True}, 0.0)):
        runs = curves(comm, mpi_tmp_path / keys["dtype"], "newcomers", method=method, **keys)
        assert "new_worker_accuracy" in runs[0]
        zero = [name for name in runs[0].data_vars if not runs[0][name].any()]
        assert all(not run[name].any() for run in runs for name in zero if name not in MEASURED)
        assert largest_difference([run.drop_vars(zero) for run in runs]) <= bound
        sent = [float(run["bytes_sent"][-1]) for run in runs]
        assert sent[0] == 0
        assert [s > 0 for s in sent[1:]] == [method != "local"] * 3
    assert comm.rank or taken[:3] == ["mapped", "together", "together"]


def test_metrics_of_ones_own(comm, mpi_tmp_path):
    """On any number of ranks the same; a number that the ranks do not have in common is refused on all."""
    keys = {"metrics": ["tests.parallel.factories:size"], "deterministic": True}
    runs = curves(comm, mpi_tmp_path, "linear_regression", method="local", options={"lr": 0.01}, **keys)
    assert largest_difference([run[["size"]] for run in runs]) == 0.0
    assert (np.diff(runs[0]["size"]) > 0).all()
    keys["metrics"] = ["tests.parallel.factories:first_worker"]
    with pytest.raises(UserError, match=r"first_worker gave .* 0\.0\} on rank 0 and .* 2\.0\} on rank 1"):
        run(comm, mpi_tmp_path / "other", "linear_regression", **keys)


SLICED = "tests.parallel.factories:Sliced"


@pytest.mark.parametrize("problem", ["linear_regression", "mlp"])
def test_a_state_in_slices(comm, mpi_tmp_path, problem):
    """The same bits on any number of ranks, but for a sum over slices; and those of heavy ball."""
    keys = {"dtype": "float64", "deterministic": True}
    runs = curves(comm, mpi_tmp_path, problem, method=SLICED, options={"lr": 0.01}, **keys)
    assert largest_difference([run.drop_vars("speed") for run in runs]) == 0.0
    assert largest_difference([run[["speed"]] for run in runs]) < 1e-12
    with first_ranks(comm, 1) as sub:
        if sub is not None:
            whole = run(sub, mpi_tmp_path / "whole", problem, **keys)["metrics"]
            assert np.array_equal(runs[0]["loss"], whole["loss"])


def test_the_way_to_the_optimum_and_the_same_bits_after_1000_rounds(comm, mpi_tmp_path):
    """Distances above 1e-12 agree; every evaluation fails if the ranks' parameters differ."""
    options = {"density": 0.6, "lr": 0.02, "exchange": "owner"}
    keys = {"dtype": "float64", "rounds": 1000, "evaluate_every": 100, "checkpoint_every": 0}
    runs = []
    for ranks in (1, 3):
        with first_ranks(comm, ranks) as sub:
            if sub is not None:
                data = run(sub, mpi_tmp_path / str(ranks), "linear_regression", "regtopk", options, **keys)
        runs.append(comm.bcast(data["metrics/distance"].values if comm.rank == 0 else None))
    near = int(np.argmax(runs[0] < 1e-12)) or len(runs[0])
    assert near > 3
    np.testing.assert_allclose(runs[1][:near], runs[0][:near], rtol=1e-6)


RESUMED = {
    "momentum": ("allreduce_sgd", {"lr": 0.01, "momentum": 0.9}),
    "adam": ("allreduce_sgd", {"lr": 0.01, "optimizer": "adam"}),
    "regtopk": ("regtopk", METHODS["regtopk"]),
    "powersgd": ("powersgd", METHODS["powersgd"]),
    "deprl": ("deprl", METHODS["deprl"] | {"optimizer": "adamw", "lr": 0.01}),
    "gradient_tracking": ("gradient_tracking", METHODS["gradient_tracking"]),
    "sliced": (SLICED, {"lr": 0.01}),
}


@pytest.mark.parametrize("case", RESUMED)
def test_resume_on_any_other_number_of_ranks(comm, mpi_tmp_path, case):
    """Interrupted by its number of rounds after 7 of 12, off the grid of records, then extended."""
    keys = {"dtype": "float64", "deterministic": True, "keep_checkpoints": 1}
    problem = "linear_regression" if case == "sliced" else "newcomers"
    with first_ranks(comm, 1) as sub:
        out = mpi_tmp_path / "whole"
        whole = run(sub, out, problem, *RESUMED[case], **keys) if sub is not None else None
    every_pair = itertools.product(range(1, 5), repeat=2)
    pairs = list(every_pair) if case in ("momentum", "sliced") else [(1, 3), (4, 2), (3, 3)]
    for before in dict(pairs):
        out = mpi_tmp_path / f"{before}"
        with first_ranks(comm, before) as sub:
            if sub is not None:
                made(sub, out, problem, *RESUMED[case], rounds=7, **keys)
        copies = {after: mpi_tmp_path / f"{before}-{after}" for first, after in pairs if first == before}
        for copy in copies.values() if comm.rank == 0 else ():
            shutil.copytree(out, copy)
        comm.Barrier()
        for counts in TOGETHER:
            with groups(comm, *(ranks for ranks in counts if ranks in copies)) as sub:
                if sub is not None:
                    resume(copies[sub.size], comm=sub, overrides=("run.rounds=12",))
        for after, out in copies.items() if comm.rank == 0 else ():
            data = hpcopt.load(out)
            kept = np.isin(data["metrics/round"], whole["metrics/round"])
            assert data["metrics/round"].values.tolist() == [0, 3, 6, 7, 9, 12]
            same = ("loss", "accuracy", "gradients", "epochs", "bytes_workers", "passes", "new_worker_loss")
            for name in (name for name in same if name in data["metrics"]):
                assert np.array_equal(data["metrics"][name][kept], whole["metrics"][name]), name
            if case == "deprl":  # whose epochs take as long as workers have rows
                assert json.loads(data.attrs["workers_per_rank"]) == {2: [3, 3], 3: [2, 1, 3]}[after]
        comm.Barrier()


def test_sub_communicator_other_than_the_first_ranks(comm, mpi_tmp_path):
    """Two runs at once, on the even and on the odd ranks."""
    half = comm.Split(comm.rank % 2, comm.rank)
    data = run(half, mpi_tmp_path / f"half{comm.rank % 2}", "quadratic")
    losses = comm.allgather(data["metrics/loss"].values.tolist())
    assert all(loss == losses[0] for loss in losses)
    half.Free()
    assert MPI.COMM_WORLD.size == comm.size
