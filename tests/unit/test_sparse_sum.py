"""The in-process twin of SparseSum, the plans' arithmetic, and selection over ranks."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from hpcopt.comm.sparse.costs import Costs, bounds, sample
from hpcopt.comm.sparse.local_sparse_sum import LocalSparseSum
from hpcopt.comm.sparse.selection import keep_largest
from hpcopt.costs.volumes import EXCHANGES, Shape, worker_cost
from hpcopt.math.topk import largest

D, K, N = 200_000, 2000, 32


def masks(kind, workers=N, k=K, dim=D):
    """(workers, k) ascending indices: evenly spread, or nine in ten of them in a hundredth of the range."""
    generator = np.random.default_rng(7)
    rows = []
    for _ in range(workers):
        weights = np.ones(dim)
        if kind == "skewed":
            weights[: dim // 100] = 900
        elif kind == "same":
            generator = np.random.default_rng(7)
        rows.append(np.sort(generator.choice(dim, k, replace=False, p=weights / weights.sum())))
    return torch.from_numpy(np.array(rows))


def test_the_twin_is_a_dense_sum():
    indices = masks("skewed", workers=5)
    values = torch.randn(indices.shape, dtype=torch.float64)
    total = LocalSparseSum(5, torch.zeros(D, dtype=torch.float64)).sum(indices, values)
    dense = torch.zeros(5, D, dtype=torch.float64).scatter_(1, indices, values).sum(0)
    assert torch.allclose(total.dense, dense, rtol=0, atol=1e-14)
    assert len(total.support) == len(np.unique(indices))
    assert total.holds(indices).all()
    assert not total.holds(torch.tensor([next(i for i in range(D) if i not in total.support)])).any()


@pytest.mark.parametrize("kind", ["even", "skewed", "same"])
def test_bytes_of_the_owner_plan(kind):
    """Own entries and the union, flat in P with a global selection: counted for 2 to 32 ranks."""
    indices, entry, word = masks(kind), 8, 4
    values = torch.randn(indices.shape)
    words = []
    for ranks in (2, 4, 8, 16, 32):
        chosen = indices[:ranks], values[:ranks]
        exact = LocalSparseSum(ranks, torch.zeros(D), "owner", ranks=ranks)
        union = len(exact.sum(*chosen).support)
        assert exact.counter.bytes <= 1.1 * entry * (K + union)
        again = LocalSparseSum(ranks, torch.zeros(D), "owner", "global", ranks=ranks)
        assert len(again.sum(*chosen).support) == min(K, union)
        words.append(again.counter.bytes / word)
    assert max(words) <= 6 * K
    assert words[-1] <= 1.5 * words[1]


def test_the_owners_share_skewed_entries_evenly():
    for kind in ("even", "skewed", "same"):
        indices = masks(kind).numpy()
        for ranks in (2, 3, 7, 32):
            cut = bounds(np.array([sample(row) for row in indices[:ranks]]), ranks, D)
            assert (cut[0], cut[-1]) == (0, D)
            owned = [((indices[:ranks] >= a) & (indices[:ranks] < b)).sum() for a, b in pairwise(cut)]
            assert max(owned) <= 2.5 * K, kind  # K on average


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 10, 99, 100, 1000])
def test_selection_by_histograms(dtype, k):
    for values in (torch.randn(100, dtype=dtype), torch.tensor([1.0, -1, 2, 2, 0, -0.0] * 16, dtype=dtype)):
        kept, _ = keep_largest(values.numpy(), k, np.asarray, lambda _: 0)
        assert np.array_equal(np.flatnonzero(kept), largest(values[None], min(k, len(values)))[0].numpy())


def test_the_plan_follows_the_costs():
    shape = Shape(dim=11_000_000, workers=4, itemsize=4)
    slow = Costs(4, latency=1e-4, bandwidth=1e8, dense=5e-8, select=1e-9)
    assert slow.fastest(shape, 100, 400) == "allgather"
    assert slow.fastest(shape, 110_000, 110_000) == "owner"  # everybody sends the same
    assert slow.fastest(shape, 5_000_000, 9_500_000) == "dense"
    far = Costs(4, latency=1.0, bandwidth=1e8, dense=5e-8, select=1e-9)
    assert far.fastest(shape, 110_000, 440_000) == "dense"


def test_density_auto_is_never_dearer_than_dense():
    shape = Shape(dim=11_000_000, workers=4, itemsize=4)
    for bandwidth in (1e6, 1e7, 1e8, 1e9, 1e10, 1e12):
        costs = Costs(4, latency=1e-4, bandwidth=bandwidth, dense=8 / bandwidth, select=1e-9)
        density = costs.affordable(shape, (1.0, 0.1, 0.01, 0.001))
        if density < 1:
            k = round(density * shape.dim)
            plan = costs.fastest(shape, k, shape.chance(k, 4))
            seconds = costs.exchange(plan, shape, k, shape.chance(k, 4)) + costs.select * shape.dim
            assert seconds <= costs.dense * shape.dim
    assert costs.affordable(shape, (1.0, 0.1, 0.01, 0.001)) == 1.0  # nothing is faster than no limit
    one = Costs(1, latency=0.0, bandwidth=1e12, dense=0.0, select=1e-9)
    assert one.affordable(shape, (1.0, 0.001)) == 1.0


def test_indices_travel_as_32_bits_while_they_fit():
    assert Shape(2**31 - 1, 2, 4).record.itemsize == 8
    assert Shape(2**31, 2, 4).record.itemsize == 12
    assert Shape(10, 2, 8).record.itemsize == 12


def test_workers_bytes_are_those_of_the_leanest_plan():
    shape = Shape(1000, 4, 4)
    each = {plan: worker_cost(plan, shape, 10, 10)[0] for plan in EXCHANGES}
    assert each == {"allgather": 3 * 80, "owner": 2 * 0.75 * 80, "dense": 2 * 0.75 * (4000 + 125)}
    again = worker_cost("owner", Shape(1000, 4, 4, selects=True), 10, 10)[0]
    assert again == each["owner"] + 7 * 2 * 0.75 * 32 * 8  # seven histograms of 32 numbers
    assert worker_cost("auto", shape, 10, 10) == (each["owner"], 0.0)
    assert worker_cost("auto", shape, 900, 1000) == (each["dense"], 1.0)
