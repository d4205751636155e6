"""Who sends which rows to whom, and the in-process twin of Neighbours against a dense W."""

import time

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from hpcopt.comm.local_ports import LocalPorts
from hpcopt.comm.neighbours.local_neighbours import LocalNeighbours
from hpcopt.comm.neighbours.schedule import schedule, travelling
from hpcopt.ground.placement import Placement, block
from hpcopt.math import averages
from hpcopt.math.averages import Averages
from hpcopt.math.mixing import mixing

TOPOLOGIES = ("ring", "torus", "star", "complete", "exponential", "erdos_renyi", "one_peer_exponential")
ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-13}


def placed(W, ranks, rank=0):
    return Placement.even(W.shape[0], ranks, rank)


def matrices(topology, N):
    return mixing(topology, "metropolis", N, probability=0.6)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize(("N", "ranks"), [(4, 4), (9, 4), (16, 3), (64, 7)])
def test_plans_of_all_ranks_fit_together(topology, N, ranks):
    """What one sends the other expects, in the same order; nothing is sent that nobody needs."""
    numbers = np.arange(1.0, N + 1)
    for W in matrices(topology, N).matrices:
        plans = [schedule(W, placed(W, ranks, rank)) for rank in range(ranks)]
        dense, owner = W.toarray(), Placement.even(N, ranks).owners
        for p, of_p in enumerate(plans):
            here = block(N, ranks, p)
            for q, of_q in enumerate(plans):
                needed = [j for j in here if p != q and dense[owner == q, j].any()]
                assert [here.start + row for row in of_p.sends.get(q, ())] == needed
                assert len(of_q.receives.get(p, ())) == len(needed)
            landing = [
                numbers[block(N, ranks, q).start + row] for q in of_p.receives for row in plans[q].sends[p]
            ]
            assert sorted(slot for slots in of_p.receives.values() for slot in slots) == [
                *range(of_p.received)
            ]
            sources = [*numbers[here.start : here.stop], *landing]
            mixed = [sum(w * sources[k] for k, w in terms) for terms in of_p.terms]
            assert np.allclose(mixed, (W @ numbers)[here.start : here.stop])
            for i, terms in zip(here, of_p.terms, strict=True):
                assert [numbers.tolist().index(sources[k]) for k, _ in terms] == np.flatnonzero(
                    dense[i]
                ).tolist()
        assert sum(of_p.sent for of_p in plans) == travelling(W, placed(W, ranks))
        assert (
            sum(of_p.fan_out for of_p in plans)
            == travelling(W, placed(W, N))
            == np.count_nonzero(dense - np.diag(dense.diagonal()))
        )


def test_a_row_that_many_workers_need_travels_once_for_each_of_their_ranks():
    star = matrices("star", 9).at(
        0
    )  # three workers on a rank; everybody needs worker 0's row, and it everybody's
    assert [schedule(star, placed(star, 3, rank)).sent for rank in range(3)] == [2, 3, 3]
    assert schedule(star, placed(star, 3, 0)).sends == {1: (0,), 2: (0,)}
    assert travelling(matrices("complete", 12).at(0), Placement.even(12, 4)) == 12 * 3
    assert travelling(matrices("ring", 12).at(0), Placement.even(12, 4)) == 4 * 2


def test_a_rank_without_workers_and_a_weight_of_zero_send_nothing():
    W = csr_array((np.array([0.5, 0.5, 0.0, 1.0]), np.array([0, 1, 0, 1]), np.array([0, 2, 4])), shape=(2, 2))
    assert [schedule(W, placed(W, 4, rank)).sent for rank in range(4)] == [0, 1, 0, 0]
    assert schedule(W, placed(W, 4, 3)).terms == ()
    assert schedule(W, placed(W, 4, 1)).terms == (((0, 1.0),),)


def test_a_large_ring_is_cheap_to_plan():
    W = matrices("ring", 4096).at(0)
    start = time.process_time()
    assert schedule(W, placed(W, 4096, 17)).sends == {16: (0,), 18: (0,)}
    assert time.process_time() - start < 0.1


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("N", [4, 9, 64])
@pytest.mark.parametrize("dtype", ROUNDING)
def test_the_twin_multiplies_by_every_w(topology, N, dtype, monkeypatch):
    monkeypatch.setattr(averages, "_width", lambda rows, X: 8)
    mixes = matrices(topology, N)
    wide = torch.randn(N, 23, dtype=dtype, generator=torch.Generator().manual_seed(N))
    X, beyond = wide[:, :19], wide[:, 19:].clone()
    port = LocalPorts(N, X[0]).neighbours(X[0], mixes)
    mean = X.double().mean(0)
    for t in range(mixes.period + 2):
        want = torch.from_numpy(mixes.at(t).toarray()) @ X.double()
        port.mix(X, t)
        assert torch.allclose(X.double(), want, rtol=0, atol=ROUNDING[dtype])
    assert torch.equal(wide[:, 19:], beyond)
    assert torch.allclose(X.double().mean(0), mean, rtol=0, atol=ROUNDING[dtype])
    assert port.counter.calls == mixes.period + 2


def test_an_overlapped_mix_adds_what_has_changed_since():
    mixes = matrices("ring", 5)
    X = torch.randn(5, 7, dtype=torch.float64)
    old, step = X.clone(), torch.randn(5, 7, dtype=torch.float64)
    port = LocalNeighbours(X[0], mixes, ranks=5)
    snapshot = port.begin(X, 0)
    X += step
    assert torch.equal(snapshot, old)
    port.finish(X, snapshot)
    want = old + step + torch.from_numpy(mixes.at(0).toarray()) @ old - old
    assert torch.allclose(X, want, rtol=0, atol=1e-13)
    assert (port.counter.calls, port.counter.bytes, port.counter.bytes_workers) == (1, 2 * 56, 5 * 2 * 56)


@pytest.mark.parametrize(("topology", "rows"), [("ring", 2), ("one_peer_exponential", 1)])
def test_bytes_of_a_worker_do_not_grow_with_their_number(topology, rows):
    for N in (4, 64, 256, 1024):
        like = torch.zeros(3)
        port = LocalNeighbours(like, matrices(topology, N), ranks=N)
        port.mix(torch.zeros(N, 3), 0)
        assert port.counter.bytes == rows * 12
        assert port.counter.bytes_workers == N * rows * 12


def test_many_terms_are_a_product_of_matrices_unless_the_order_matters():
    """Rows of others included; the sums are the same up to rounding."""
    W = mixing("complete", "metropolis", 40).at(0)
    part = schedule(W, placed(W, 2, 0))
    X, others = torch.randn(2, 20, 33, dtype=torch.float64)
    rows, want = torch.cat([X, others]), X.clone()
    Averages(part.terms, part.received, X, ordered=True).replace(want, others)
    fast = Averages(part.terms, part.received, X, ordered=False)
    assert isinstance(fast._sum, averages._Dense)
    gpu = averages._TermByTerm(part.terms)(X, others)
    fast.replace(X, others)
    assert torch.allclose(gpu, want, rtol=0, atol=1e-14)
    assert torch.allclose(X, want, rtol=0, atol=1e-14)
    assert torch.allclose(X, torch.from_numpy(W.toarray())[:20] @ rows, rtol=0, atol=1e-14)
    ring = schedule(mixing("ring", "metropolis", 40).at(0), Placement.even(40, 2))
    assert isinstance(Averages(ring.terms, ring.received, X, ordered=False)._sum, averages._Sparse)


def test_a_period_has_a_plan_for_each_of_its_matrices():
    mixes = matrices("one_peer_exponential", 8)
    X = torch.eye(8, dtype=torch.float64)
    port = LocalNeighbours(X[0], mixes)
    for t in range(3):
        port.mix(X, t)
    assert torch.equal(X, torch.full((8, 8), 1 / 8, dtype=torch.float64))
