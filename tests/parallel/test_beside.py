"""Eigenpairs computed beside the rounds: the same run whoever computes them; no round waits for them."""

import time

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.api import resume
from hpcopt.comm.beside.by_mail import ByMail
from hpcopt.comm.beside.route import Route, meetings
from hpcopt.comm.beside.service import Service
from hpcopt.comm.ports import Answer, Task
from hpcopt.comm.staging import Staging
from hpcopt.control.crew import Crew
from hpcopt.errors import UserError
from hpcopt.ground.placement import block

from .conftest import ON_2_OR_4
from .factories import PRODUCTS
from .test_dho2 import PAIRS, curves, on, run

pytestmark = [pytest.mark.mpi(min_size=2), ON_2_OR_4]

LATE = PAIRS | {"variant": "concurrent", "handover_rounds": 3, "lr": 0.05, "warmup_lr": 0.02}
"""snapshots in rounds 2, 6, 10, in use from 5, 9 and 13 on"""
ROUNDS = 14


def sides(comm):
    """How many ranks may compute beside the others."""
    return range(min(3, comm.size))


def test_the_same_run_whoever_computes(comm, mpi_tmp_path):
    keys = {"rounds": ROUNDS, "evaluate_every": 4}
    one = curves(comm, 1, mpi_tmp_path / "one", LATE, **keys)
    assert one["eigenvalue"].shape == (3, 5)
    for C in sides(comm):
        other = curves(comm, comm.size, mpi_tmp_path / f"{C}", LATE, curvature_ranks=C, **keys)
        for name in ("gradients", "spectrum_age", "passes"):
            np.testing.assert_array_equal(other[name], one[name], err_msg=f"{name}, C = {C}")
        np.testing.assert_allclose(other["loss"], one["loss"], rtol=1e-9)
        np.testing.assert_allclose(other["eigenvalue"], one["eigenvalue"], rtol=1e-7)


def test_resumed_while_pairs_are_computed(comm, mpi_tmp_path):
    """After round 8, between a snapshot and its use; on as many ranks, then on fewer that compute in line."""
    all, C = comm.size, sides(comm)[-1]
    keys = {"deterministic": True, "keep_checkpoints": 1, "evaluate_every": 4}
    want = curves(comm, all, mpi_tmp_path / "whole", LATE, rounds=ROUNDS, curvature_ranks=C, **keys)
    for after, beside in ((all, C), (all - 1, 0)):
        out = mpi_tmp_path / f"{after}"
        on(comm, all, lambda sub, out=out: run(sub, out, LATE, rounds=8, curvature_ranks=C, **keys) and 0)
        more = (f"run.rounds={ROUNDS}", f"run.curvature_ranks={beside}")
        on(comm, after, lambda sub, out=out, more=more: resume(out, comm=sub, overrides=more) and 0)
        if comm.rank == 0:
            found, rounding = hpcopt.load(out), 0.0 if after == all else 1.0
            metrics, values = found["metrics"], found["spectrum"]["eigenvalue"]
            np.testing.assert_allclose(metrics["loss"], want["loss"], rtol=1e-9 * rounding)
            np.testing.assert_allclose(values, want["eigenvalue"], rtol=1e-7 * rounding)
            np.testing.assert_array_equal(metrics["gradients"], want["gradients"])
        comm.Barrier()


def test_taken_when_they_are_ready(comm, mpi_tmp_path):
    settings = LATE | {"handover_rounds": "ready", "refresh_every": 10}
    problem = {"kind": "tests.parallel.factories:SlowHessian", "seconds": 0.0, "pause": 2e-3}
    keys = {"problem": problem, "workers": 4, "curvature_ranks": 1, "rounds": 60, "evaluate_every": 5}
    found = curves(comm, comm.size, mpi_tmp_path / "ready", settings, dtype="float32", **keys)
    assert len(found["eigenvalue"]) > 1
    assert np.nanmin(found["spectrum_age"]) >= 2
    assert np.isfinite(found["loss"]).all()


def test_nobody_waits_for_what_is_not_due(comm, mpi_tmp_path):
    """Neither records nor checkpoints nor the end, while pairs are computed: in 12 products of 2 s."""
    problem = {"kind": "tests.parallel.factories:SlowHessian", "seconds": 2.0}
    keys = {"problem": problem, "rounds": 6, "checkpoint_every": 2, "curvature_ranks": 1, "workers": 4}
    before = len(PRODUCTS)
    run(comm, mpi_tmp_path / "slow", LATE | {"handover_rounds": 100, "refresh_every": 100}, **keys)
    assert comm.allreduce(len(PRODUCTS) - before) in range(4, 12 * 4, 4)


@pytest.mark.parametrize(
    ("run_keys", "keys", "words"),
    [
        ({"curvature_ranks": 4}, {}, ["curvature_ranks = 4", "there are {P} ranks", "at most {C}"]),
        ({"workers": 1, "curvature_ranks": 1}, {}, ["workers = 1", "at most 2 ranks"]),
        ({"curvature_ranks": 1}, {"largest": 99, "lanczos_iterations": 400}, ["more eigenpairs than the 65"]),
    ],
)
def test_what_is_refused_on_every_rank(comm, mpi_tmp_path, run_keys, keys, words):
    if "workers" in run_keys and comm.size == 2:
        return
    with pytest.raises(UserError) as error:
        run(comm, mpi_tmp_path / "refused", LATE | keys, **run_keys)
    for word in words:
        assert word.format(P=comm.size, C=comm.size - 1) in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 2, 11])
def test_slices_and_numbers_arrive_as_they_were_sent(comm, size, dtype):
    """Twice, and while a third request is computed the others go; some of the ranks have no slice."""
    for C in range(1, comm.size):
        crew, like = Crew(comm, C), torch.zeros(size, dtype=dtype)
        seen = []

        def compute(request, number, going, seen=seen):
            seen.append(number)
            while number == 2:  # for ever, but that nobody wants it
                going()
                time.sleep(1e-3)
            columns = torch.stack([request[0] + number, request[1], -request[0]], 1)
            return Answer(columns, torch.tensor([1 / 3, number], dtype=torch.float64))

        route = Route(comm, crew.rounders, Task(size, 2, 3, 2, compute), Staging(like.device), like)
        if crew.makes_rounds:
            own, way = block(size, crew.rounders, comm.rank), ByMail(route, lambda where: None)
            x = torch.arange(own.start, own.stop, dtype=dtype)
            for number in range(3):
                way.ask(torch.stack([x, 2 * x]), number)
                if number < 2:
                    answer = way.take()
                    assert torch.equal(answer.columns, torch.stack([x + number, 2 * x, -x], 1))
                    assert answer.numbers.tolist() == [1 / 3, number]
            assert not way.arrived()
            samples = answer.samples
            way.free()
        else:
            Service(
                route, crew.comm, lambda seen=seen: [7.0 * len(seen), 0, 0, 0, 0], lambda where: None
            ).serve()
            assert seen == [0, 1, 2]
            samples = 0
        # each rank beside has told one of the others what the second answer cost
        assert comm.allreduce(samples) == 7 * C
        crew.free()


def test_two_ways_to_cut_a_vector(comm):
    for size, ours, theirs in ((10, 3, 2), (7, 1, 4), (2, 3, 5), (1, 4, 1)):
        found = meetings(size, ours, theirs)
        for count, which in ((ours, 0), (theirs, 1)):
            for rank in range(count):
                parts = [both for *pair, both in found if pair[which] == rank]
                assert parts, "everybody meets somebody"
                assert sorted(i for part in parts for i in part) == list(block(size, count, rank))
