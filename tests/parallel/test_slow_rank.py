"""A rank that is slower than the others: who waits for it, and what reports make of that."""

import time

import numpy as np
import pytest

import hpcopt
from hpcopt.report.runs import find
from hpcopt.report.tables.costs import times

pytestmark = pytest.mark.mpi


class Paced(hpcopt.Objective):
    """A quadratic whose first worker needs longer for a gradient."""

    dim: int = 4
    """parameters"""
    even: float = 0.01
    """for a gradient of every worker [s]"""
    more: float = 0.0
    """of the first one [s]"""

    def data(self, worker, seed):
        return (np.array([[self.even + (self.more if worker == 0 else 0.0)]]),)

    def loss(self, x, seconds):
        return (x - 1).square().sum() / 2

    def gradient(self, x, seconds):
        time.sleep(float(seconds[0, 0]))
        return x - 1


def test_a_slow_rank_is_imbalance_and_waiting_and_not_communication(comm, tmp_path):
    if comm.size != 2:
        pytest.skip("it takes a while, and two say it all")
    home = comm.bcast(tmp_path)
    for name, more in (("even", 0.0), ("slow", 0.1)):
        method, problem = hpcopt.AllreduceSGD(lr=0.1), Paced(comm.size, more=more)
        hpcopt.run(method, problem, comm=comm, out=home / name, rounds=10, evaluate_every=10)
    if comm.rank == 0:
        found = find([home / "even", home / "slow"])
        even, slow = map(times, found.runs)
        assert slow.imbalance > even.imbalance + 0.2
        assert slow.waiting / slow.seconds > even.waiting / even.seconds + 0.1
        assert slow.share < min(0.25, even.share + 0.05)
    comm.Barrier()
