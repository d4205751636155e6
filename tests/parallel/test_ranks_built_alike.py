"""Ranks that were given different things are told so, all of them, before round 0."""

import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from mpi4py import MPI

import hpcopt
from hpcopt.engine.reporter import Reporter

from .conftest import ON_2_OR_4

pytestmark = [pytest.mark.mpi(min_size=2), ON_2_OR_4]

X = np.random.default_rng(0).standard_normal((40, 3))
Y = np.arange(40) % 3
CE = torch.nn.functional.cross_entropy


class Fixed(torch.nn.Module):
    """A matrix that is neither a parameter nor a buffer."""

    def __init__(self, scale, inner):
        super().__init__()
        self.A, self.inner = scale * torch.eye(3), inner

    def forward(self, x):
        return self.inner(x @ self.A.to(x))


def network(x=X, y=Y, seed=0, frozen=1.0, fixed=1.0, loss=CE, workers=None, buffer=0.0, **keys):
    torch.manual_seed(seed)
    frozen_layer, head = torch.nn.Linear(3, 4), torch.nn.Linear(4, 3)
    with torch.no_grad():
        frozen_layer.weight.copy_(frozen * torch.arange(12.0).reshape(4, 3).cos())
    frozen_layer.requires_grad_(False).bias.zero_()
    frozen_layer.register_buffer("offset", torch.full((1,), buffer))
    model = Fixed(fixed, torch.nn.Sequential(frozen_layer, torch.nn.Tanh(), head))
    if buffer is not None:
        frozen_layer.register_forward_hook(lambda layer, _, output: output + layer.offset)
    return hpcopt.Network(model, loss, (x, y), workers=workers or MPI.COMM_WORLD.size, batch_size=5, **keys)


class Mine(hpcopt.Objective):
    """Rows and a loss that depend on more than they should."""

    dim: int = 3
    """d"""
    shift: float = 0.0
    """of the targets"""

    def data(self, worker, seed):
        return X[:10] + RANK["data"], Y[:10] + self.shift

    def common(self, seed):
        return (np.full(3, RANK["common"]),)

    def loss(self, x, A, b, c):
        return (A @ x - b).square().mean() + (RANK["penalty"] + c @ c) * x.square().sum()


RANK = {"data": 0.0, "common": 0.0, "penalty": 0.1}


@dataclass(kw_only=True)
class DrawnState(hpcopt.State):
    """What every rank should hold."""

    x: torch.Tensor = hpcopt.replicated()
    directions: torch.Tensor = hpcopt.replicated()


class Drawn(hpcopt.Method[hpcopt.Table, DrawnState]):
    """Draws without a seed."""

    def start(self, problem, ports):
        return DrawnState(x=problem.initial(), directions=torch.full((2,), float(MPI.COMM_WORLD.rank)))

    def step(self, state):
        return hpcopt.StepInfo()


def recipe(**keys):
    return lambda other: network(**(keys if other else {}))


def mine(**keys):
    def make(other):
        RANK.update({"data": 0.0, "common": 0.0, "penalty": 0.1} | (keys if other else {}))
        return Mine(MPI.COMM_WORLD.size)

    return make


def logistic(**keys):
    return lambda other: hpcopt.Logistic(
        (X * (keys.get("scale", 1) if other else 1), 2 * (Y > 0) - 1),
        workers=MPI.COMM_WORLD.size,
        regularisation=keys.get("regularisation", 0.1) if other else 0.1,
    )


PLAIN = hpcopt.AllreduceSGD(lr=0.1)
CASES = {
    "data drawn before the seed": (recipe(x=X[::-1] + 1), "the data set"),
    "labels numbered through a set": (recipe(y=(Y + 1) % 3), "the data set"),
    "fewer rows": (recipe(x=X[:39], y=Y[:39]), "how many rows each worker has"),
    "another spread": (recipe(partition="classes", classes_per_worker=1), "which rows each worker has"),
    "another start": (recipe(seed=1), "the start"),
    "frozen parameters": (recipe(frozen=1.1), "0.weight, which is not trained"),
    "a fixed matrix": (recipe(fixed=2.0), "loss and output of some rows"),
    "a fixed buffer": (recipe(buffer=1.0), "loss and output of some rows"),
    "another loss": (recipe(loss=lambda o, y: CE(o, y) * 2), "loss and output of some rows"),
    "another key": (recipe(regularisation=0.1), r"\[problem\] regularisation: is 0.0 on rank 0, but 0.1"),
    "an objective's rows": (mine(data=0.1), "the rows of worker 0"),
    "what workers have in common": (mine(common=0.1), "what all workers have in common"),
    "an objective's loss": (mine(penalty=0.2), "loss and gradient of worker 0"),
    "an objective's key": (
        lambda other: Mine(MPI.COMM_WORLD.size, shift=float(other)),
        r"\[problem\] shift: is 0.0 on rank 0, but 1.0",
    ),
    "rows of a linear model": (logistic(scale=2.0), "the data set"),
    "its regularisation": (logistic(regularisation=0.2), r"\[problem\] regularisation"),
}


def refused(comm, words, method, problem, out, **keys):
    """Every rank gets the same message, and nothing was begun."""
    with pytest.raises(hpcopt.UserError, match=words) as caught:
        hpcopt.run(method, problem, comm=comm, out=out, rounds=2, **keys)
    assert len(set(comm.allgather(str(caught.value)))) == 1
    assert "on rank 0, but" in str(caught.value)
    assert str(caught.value).endswith(f"{comm.size - 1}")
    assert not (out / "run.h5").exists()


@pytest.mark.parametrize("case", CASES)
def test_a_problem_that_is_another_one_on_the_last_rank(comm, mpi_tmp_path, case):
    make, words = CASES[case]
    refused(comm, words, PLAIN, make(comm.rank == comm.size - 1), mpi_tmp_path / "run")


def test_settings_that_are_others_on_the_last_rank(comm, mpi_tmp_path):
    last = comm.rank == comm.size - 1
    words = r"\[method\] lr: is 0.1 on rank 0, but 0.2 on rank"
    refused(comm, words, hpcopt.AllreduceSGD(lr=0.2 if last else 0.1), network(), mpi_tmp_path / "a")
    words = r"\[run\] rounds: is 2 on rank 0, but 3 on rank"
    with pytest.raises(hpcopt.UserError, match=words):
        hpcopt.run(PLAIN, network(), comm=comm, out=mpi_tmp_path / "b", rounds=3 if last else 2)
    words = r"\[run\] method: is 'allreduce_sgd' on rank 0, but 'dpsgd' on rank"
    refused(comm, words, hpcopt.DPSGD(lr=0.1) if last else PLAIN, network(), mpi_tmp_path / "c")
    words = r"\[run\] out: is '.* on rank 0, but '.* on rank"
    with pytest.raises(hpcopt.UserError, match=words):
        hpcopt.run(PLAIN, network(), comm=comm, out=mpi_tmp_path / f"e{int(last)}", rounds=2)
    assert not list(mpi_tmp_path.glob("e*"))
    words = r"\[run\] curvature_ranks: is 0 on rank 0, but 1 on rank"
    concurrent = hpcopt.DHO2(variant="concurrent")
    refused(comm, words, concurrent, network(), mpi_tmp_path / "f", curvature_ranks=int(last))
    # one that is wrong there alone
    with pytest.raises(hpcopt.UserError, match="rounds"):
        hpcopt.run(PLAIN, network(), comm=comm, out=mpi_tmp_path / "d", rounds=-1 if last else 2)


def test_other_workers_on_the_last_rank(comm, mpi_tmp_path):
    workers = comm.size * (1 + (comm.rank == comm.size - 1))
    refused(comm, r"\[run\] workers", PLAIN, network(workers=workers), mpi_tmp_path / "run")
    words = "but the problem was made for"
    with pytest.raises(hpcopt.UserError, match=words):
        hpcopt.run(
            PLAIN, network(workers=workers), comm=comm, out=mpi_tmp_path / "run", rounds=1, workers=comm.size
        )


def test_a_state_that_is_drawn_anew_on_every_rank(comm, mpi_tmp_path):
    refused(comm, r"DrawnState.directions \(replicated\)", Drawn(), network(), mpi_tmp_path / "run")


@pytest.mark.parametrize("make", [recipe(), mine(), logistic()], ids=["network", "objective", "linear"])
def test_what_is_the_same_runs(comm, mpi_tmp_path, make):
    hpcopt.run(PLAIN, make(False), comm=comm, out=mpi_tmp_path / "run", rounds=2)
    hpcopt.resume(mpi_tmp_path / "run", problem=make(False), comm=comm, overrides=("run.rounds=3",))


def test_a_slow_log_takes_no_time_of_anybodys_clock(comm, mpi_tmp_path, monkeypatch):
    """Rank 0 writes while the others would already wait for it in the next round."""
    event = Reporter.event

    def slow(self, name, **values):
        if comm.rank == 0 and name in ("record", "checkpoint"):
            time.sleep(0.1)
        event(self, name, **values)

    monkeypatch.setattr(Reporter, "event", slow)
    problem = hpcopt.Quadratic(comm.size, "power", 5)
    keys = {"rounds": 6, "evaluate_every": 1, "checkpoint_every": 2}
    hpcopt.run(PLAIN, problem, comm=comm, out=mpi_tmp_path / "run", **keys)
    if comm.rank == 0:
        assert hpcopt.load(mpi_tmp_path / "run")["metrics/seconds"].values[-1] < 0.1


def test_an_h5py_that_cannot_write_together_is_told_before_round_0(comm, mpi_tmp_path, monkeypatch):
    monkeypatch.setattr("hpcopt.storage.checkpoint.parallel_hdf5", lambda: False)
    with pytest.raises(hpcopt.UserError, match="built with parallel HDF5"):
        hpcopt.run(PLAIN, network(), comm=comm, out=mpi_tmp_path / "run", rounds=2)
    assert not (mpi_tmp_path / "run").exists()
