"""Traces of free workers on any number of ranks: kept where the run rests, made again to the bit, resumed."""

import os
import re
import signal

import h5py
import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.api import resume
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.config import from_tables
from hpcopt.errors import Interrupted, UserError
from hpcopt.math.mixing import mixing
from hpcopt.problems.base import Share
from hpcopt.storage.trace import read
from hpcopt.storage.trace_file import TraceFile
from tests.unit.free_cases import replay_averaging

from .conftest import first_ranks, groups
from .test_same_trajectory import PROBLEMS, TOGETHER, run

pytestmark = pytest.mark.mpi(min_size=4)
N, LR, ROUNDS, RESTS = 6, 0.003, 4, (2, 4)


def scripted(path, dtype):
    """A run of free workers in this process, its trace in a file; the models where it rests."""
    keys = {key: value for key, value in PROBLEMS["linear_regression"].items() if key != "kind"}
    problem = hpcopt.LinearRegression(workers=N, **keys).bind(Share(range(N), N, 0, getattr(torch, dtype)))
    method = hpcopt.DelayedSGD(mode="free", lr=LR, window=10, trace_out=True)
    method.prepare(problem)
    delay = lambda origin, to, number: (3 * origin + 5 * to + number) % 11  # noqa: E731
    state = method.start(problem, LocalPorts(N, problem.initial(), delay=delay))
    file, models = TraceFile(path, {"workers": N, "dim": problem.dim}, 0), []
    for round in range(1, ROUNDS + 1):
        method.step(state)
        state.round = round
        if round in RESTS:
            method.pause(state)
            file.append(round, method.trace(state))
            models.append(state.x.numpy().copy())
    file.close()
    return models


def traced(comm, path, out, rounds=ROUNDS, problem="linear_regression", update=None, **keys):
    options = {"mode": "trace", "trace": str(path), "lr": LR} | (update or {})
    every = {"evaluate_every": 1, "checkpoint_every": 2, "keep_checkpoints": 9, "method": "delayed_sgd"}
    return run(comm, out, problem, options=options, rounds=rounds, **(every | keys))


def model(out, round, name="x"):
    with h5py.File(out / f"checkpoints/round-{round:08d}.h5") as file:
        return file[f"state/{name}"][...]


def test_a_scripted_run_again_on_1_to_4_ranks(comm, mpi_tmp_path):
    models = comm.bcast(scripted(mpi_tmp_path / "trace.h5", "float32") if comm.rank == 0 else None)
    for counts in TOGETHER:
        with groups(comm, *counts) as sub:
            if sub is not None:
                out = mpi_tmp_path / f"{sub.size}"
                traced(sub, mpi_tmp_path / "trace.h5", out, dtype="float32", deterministic=True)
    if comm.rank == 0:
        outs = [mpi_tmp_path / f"{ranks}" for ranks in range(1, 5)]
        losses = [hpcopt.load(out)["metrics/loss"].values for out in outs]
        for out, found in zip(outs, losses, strict=True):
            assert all(np.array_equal(model(out, rest), x) for rest, x in zip(RESTS, models, strict=True))
            assert np.array_equal(found, losses[0])  # where the run never rested, too
        assert len(np.unique(losses[0])) == ROUNDS + 1


def test_resume_on_another_number_of_ranks(comm, mpi_tmp_path):
    path = mpi_tmp_path / "trace.h5"
    if comm.rank == 0:
        scripted(path, "float64")
    comm.Barrier()
    keys = {"dtype": "float64", "deterministic": True}
    whole = traced(comm, path, mpi_tmp_path / "whole", **keys)
    for before, after, stop in ((1, 3, 1), (4, 2, 3)):
        out = mpi_tmp_path / f"{before}-{after}"
        with first_ranks(comm, before) as sub:
            if sub is not None:
                traced(sub, path, out, rounds=stop, **keys)
        with first_ranks(comm, after) as sub:
            if sub is not None:
                resume(out, comm=sub, overrides=("run.rounds=99",))
        data = hpcopt.load(out)
        assert data.attrs["stopped_by"] == "method"  # the trace is over
        for name in ("metrics/loss", "metrics/staleness_p95", "staleness_by_worker/count"):
            assert np.array_equal(data[name], whole[name]), name
        comm.Barrier()


def test_a_free_run_again_on_other_numbers_of_ranks(comm, mpi_tmp_path):
    """With moments, which stay with the slices' owners while it runs."""
    path = mpi_tmp_path / "free"
    keys = {"dtype": "float32", "method": "delayed_sgd", "checkpoint_every": 1, "evaluate_every": 1}
    update = {"optimizer": "adamw", "weight_decay": 0.1, "clip": 0.5}
    free = {"mode": "free", "lr": LR, "window": 40, "trace_out": True} | update
    run(comm, path, "mlp", options=free, rounds=1, **keys)
    resume(path, comm=comm, overrides=("run.rounds=2",))
    assert [segment.end for segment in read(path / "trace.h5").segments] == [1, 2]
    for ranks in (1, 3):
        out = mpi_tmp_path / f"again{ranks}"
        with first_ranks(comm, ranks) as sub:
            if sub is not None:
                traced(sub, path / "trace.h5", out, rounds=2, problem="mlp", update=update, **keys)
        for round in (1, 2):
            for name in ("x", "m", "v", "updates"):
                assert np.array_equal(model(out, round, name), model(path, round, name)), name
        counts = [hpcopt.load(one)["staleness_by_worker/count"] for one in (out, path)]
        assert np.array_equal(*counts)
        comm.Barrier()


@pytest.mark.parametrize(
    ("dtype", "ranks", "topology"),
    [("float32", (4, 1, 3), "one_peer_exponential"), ("float64", (2, 4), "ring")],
)
def test_neighbours_again_on_other_numbers_of_ranks(comm, mpi_tmp_path, topology, dtype, ranks):
    """And on none: in a loop that knows nothing but the file."""
    first, *others = ranks
    path = mpi_tmp_path / "free"
    same = {"layout": "neighbours", "topology": topology, "lr": LR, "schedule": "exponential"}
    free = same | {"mode": "free", "window": 40, "trace_out": True}
    keys = {"dtype": dtype, "method": "delayed_sgd", "checkpoint_every": 2, "evaluate_every": 2}
    with first_ranks(comm, first) as sub:
        if sub is not None:
            run(sub, path, "mlp", options=free, rounds=4, keep_checkpoints=9, **keys)
    for count in others:
        with first_ranks(comm, count) as sub:
            if sub is not None:
                trace = same | {"mode": "trace", "trace": str(path / "trace.h5")}
                run(sub, mpi_tmp_path / f"{count}", "mlp", options=trace, rounds=4, **keys)
    if comm.rank == 0:
        X = model(path, 4, "X")
        for count in others:
            again = mpi_tmp_path / f"{count}"
            assert model(again, 4, "X").tobytes() == X.tobytes()
            counts = [hpcopt.load(one)["staleness_by_worker/count"] for one in (again, path)]
            assert np.array_equal(*counts)
        tables = {"run": {"method": "delayed_sgd", "workers": N}, "problem": PROBLEMS["mlp"]}
        recipe = from_tables(tables, "test").problem.recipe()
        problem = recipe.bind(Share(range(N), N, 0, getattr(torch, dtype)))
        segments = read(path / "trace.h5").segments
        logs = [[(one.gradients, one.applied)] for one in segments]
        W = mixing(topology, "metropolis", N)
        ends = replay_averaging(problem, problem.initial(), logs, lambda round: LR * 0.96**round, W)
        assert [one.end for one in segments] == [2, 4]
        assert ends[-1].numpy().tobytes() == X.tobytes()


def test_a_free_run_that_was_stopped_ends_where_others_do(comm, mpi_tmp_path, monkeypatch):
    """Within the spread of five seeds and a quarter more, for how late gradients are is up to the machine.

    What was in flight when the signal came is applied, counted and kept.
    """
    free = {"mode": "free", "lr": 0.003, "window": 150, "trace_out": True}
    keys = {"options": free, "method": "delayed_sgd", "rounds": 8, "evaluate_every": 2, "dtype": "float64"}
    runs = [run(comm, mpi_tmp_path / str(seed), "mlp", seed=seed, **keys) for seed in range(5)]
    losses = np.stack([data["metrics/loss"].values for data in runs], 1)
    least, most = min(losses[-1]) / 1.25, 1.25 * max(losses[-1])
    assert most < min(losses[1])  # or progress that is lost would not show
    out, step = mpi_tmp_path / "stopped", hpcopt.DelayedSGD.step

    def signalled(method, state):
        if state.round == 4 and comm.rank == comm.size - 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(method, state)

    monkeypatch.setattr(hpcopt.DelayedSGD, "step", signalled)
    with pytest.raises(Interrupted, match="after round") as caught:
        run(comm, out, "mlp", seed=2, **keys)
    (stopped,) = {int(re.findall(r"round (\d+)", text)[0]) for text in comm.allgather(str(caught.value))}
    with h5py.File(out / f"checkpoints/round-{stopped:08d}.h5") as file:
        made, counts = int(file["state/made"][...].sum()), int(file["state/counts"][...].sum())
    segments = read(out / "trace.h5").segments
    assert segments[-1].end == stopped < 8
    assert sum(len(segment.gradients) for segment in segments) == made >= 150 * (stopped - 1)
    assert sum(segment.applied[:, 2].sum() for segment in segments) == counts == made * N
    with first_ranks(comm, 3) as sub:
        if sub is not None:
            resume(out, comm=sub)
    found = hpcopt.load(out)
    assert found["staleness/count"].sum() == found["metrics/gradients"][-1] / 8 * N
    assert least < found["metrics/loss"][-1] < most
    comm.Barrier()


def test_what_is_later_than_the_checkpoint_is_cut_off(comm, mpi_tmp_path):
    out = mpi_tmp_path / "free"
    free = {"mode": "free", "lr": LR, "window": 40, "trace_out": True}
    keys = {"evaluate_every": 1, "checkpoint_every": 2, "keep_checkpoints": 9, "method": "delayed_sgd"}
    run(comm, out, "linear_regression", options=free, rounds=3, **keys)
    assert [segment.end for segment in read(out / "trace.h5").segments] == [1, 2, 3]
    comm.Barrier()
    if comm.rank == 0:
        (out / "checkpoints/round-00000003.h5").unlink()
    comm.Barrier()
    resume(out, comm=comm, overrides=("run.rounds=4", "run.evaluate_every=4"))
    assert [segment.end for segment in read(out / "trace.h5").segments] == [1, 2, 4]


def test_a_trace_of_another_run_is_refused_on_all_ranks(comm, mpi_tmp_path):
    path = mpi_tmp_path / "trace.csv"
    if comm.rank == 0:
        path.write_text("worker,read\n6,0\n")
    comm.Barrier()
    with pytest.raises(UserError, match=r"trace\.csv, line 2: its worker does not exist: .* 0 to 5"):
        traced(comm, path, mpi_tmp_path / "out")
