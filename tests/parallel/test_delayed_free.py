"""Free workers over MPI: whatever the timing was, the log replays the run to the bit on one process."""

import time

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.staging import Staging
from hpcopt.ground.placement import Placement
from hpcopt.math.mixing import mixing
from hpcopt.problems.base import Share
from tests.unit.free_cases import replay, replay_averaging

pytestmark = pytest.mark.mpi
N, LR = 6, 0.01
RECIPE = hpcopt.LinearRegression(workers=N, dim=11, rows_per_worker=20, batch_size=5)


def bound(workers, dtype=torch.float64):
    return RECIPE.bind(Share(workers, N, seed=3, dtype=dtype))


def begun(comm, dtype=torch.float64, pause=0.0, slower=4, **keys):
    """A method over MPI whose gradients take so many seconds, on the last rank several times as long."""
    method = hpcopt.DelayedSGD(mode="free", lr=LR, trace_out=True, **keys)
    placement = Placement.even(N, comm.size, comm.rank)
    problem = bound(placement.here, dtype)
    gradient = problem.gradient

    def slow(*arguments):
        time.sleep(pause * (slower if comm.rank == comm.size - 1 else 1))
        return gradient(*arguments)

    problem.gradient = slow
    ports = MPIPorts(comm, placement, Staging(torch.device("cpu")), problem.initial(), "auto", False, {})
    method.prepare(problem)
    return method, method.start(problem, ports), ports


def windows(comm, method, state, count, every=1):
    """Rounds, with a pause after some: models, steps made and logs of all ranks there."""
    pauses = []
    for number in range(count):
        method.step(state)
        state.round += 1
        if number % every == every - 1:
            method.pause(state)
            log = comm.gather(tuple(method.trace(state).values()))
            pauses.append((method.model(state).clone(), state.made.clone(), log))
    return pauses


@pytest.mark.parametrize("transport", ["windows", "messages"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_free_run_is_replayed_on_one_process(comm, dtype, transport):
    method, state, ports = begun(comm, dtype, pause=0.001, window=40, transport=transport)
    pauses = windows(comm, method, state, 4, every=2)
    same = comm.allgather([x.numpy().tobytes() for x, _, _ in pauses])
    assert all(models == same[0] for models in same)
    made = sum(comm.allgather(int(state.made.sum())))
    assert made >= 160
    assert int(state.counts.sum()) == made * N
    if comm.rank == 0:
        problem = bound(range(N), dtype)
        again = replay(problem, problem.initial(), [log for _, _, log in pauses], lambda round: LR)
        assert all(torch.equal(one, x) for one, (x, _, _) in zip(again, pauses, strict=True))
    ports.free()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("topology", ["ring", "one_peer_exponential"])
def test_so_is_one_of_neighbours(comm, topology, dtype):
    keys = {"layout": "neighbours", "topology": topology, "pause": 0.001, "window": 40}
    method, state, ports = begun(comm, dtype, **keys)
    pauses = windows(comm, method, state, 4, every=2)
    models = comm.gather([X.numpy() for X, _, _ in pauses])
    if comm.rank == 0:
        problem = bound(range(N), dtype)
        logs, W = [log for _, _, log in pauses], mixing(topology, "metropolis", N)
        again = replay_averaging(problem, problem.initial(), logs, lambda round: LR, W)
        for one, parts in zip(again, zip(*models, strict=True), strict=True):
            assert np.array_equal(one.numpy(), np.concatenate(parts))
    ports.free()


def test_the_wish_of_one_rank_is_heard_by_all_in_the_same_window(comm):
    method, state, ports = begun(comm, pause=0.001, window=20)
    wishes = []
    for number in range(30):
        if number == 3:
            ports.wish = lambda: 2 * (comm.rank == comm.size - 1)
        wishes.append(method.step(state).wish)
        state.round += 1
        if wishes[-1]:
            break
    method.pause(state)
    assert len(set(map(tuple, comm.allgather(wishes)))) == 1
    assert wishes[-1] == 2
    ports.free()


def test_workers_of_one_rank_are_never_late(comm):
    if comm.size > 1:
        pytest.skip("several ranks")
    method, state, ports = begun(comm, window=100)
    windows(comm, method, state, 2)
    assert int(state.counts[:, 1:].sum()) == 0
    ports.free()


def test_a_window_needs_no_gradient_of_every_rank(comm):
    if comm.size < 2:
        pytest.skip("one rank has to fill the window")
    method, state, ports = begun(comm, pause=0.001, slower=100, window=1)
    windows(comm, method, state, 60, every=60)
    made = comm.allgather(int(state.made.sum()))
    assert sum(made) >= 60
    assert made[-1] < 30  # in as many windows, each of its gradients taking a hundred times as long
    ports.free()


def test_a_slow_worker_is_late(comm):
    if comm.size < 2:
        pytest.skip("nobody is slower than others")
    method, state, ports = begun(comm, pause=0.002, slower=20, window=200)
    windows(comm, method, state, 2)
    made = np.concatenate(comm.allgather(state.made.numpy()))
    mean = (state.counts * torch.arange(state.counts.shape[1])).sum(1) / state.counts.sum(1)
    quick, slow = Placement.even(N, comm.size).at(0), Placement.even(N, comm.size).at(comm.size - 1)
    assert made[slow.start] < made[quick.start]
    assert mean[slow.start] > mean[quick.start]
    ports.free()
