"""Blocks of workers of about equal work: against all blocks there are, and what methods say their work is."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hpcopt
from hpcopt.config.methods import method_table
from hpcopt.engine.build import place
from hpcopt.engine.names import config_in_python
from hpcopt.engine.ranks import OneRank
from hpcopt.ground.placement import WORTH, Placement


def largest(work, counts):
    """The work of the largest block."""
    return max(sum(part) for part in np.split(np.array(work), np.cumsum(counts)[:-1]))


@given(st.lists(st.integers(0, 20), min_size=1, max_size=9), st.integers(1, 9))
def test_the_largest_block_is_as_small_as_can_be(work, ranks):
    ranks = min(ranks, len(work))
    cuts = combinations(range(1, len(work)), ranks - 1)
    best = min(largest(work, np.diff([0, *cut, len(work)])) for cut in cuts)
    counts, even = Placement.balanced(work, ranks).counts, Placement.even(len(work), ranks).counts
    assert (len(counts), sum(counts)) == (ranks, len(work))
    assert min(counts) >= 1
    assert largest(work, counts) == best or counts == even
    assert largest(work, counts) <= WORTH * best
    if largest(work, even) == best:
        assert counts == even


def test_blocks_share_what_the_largest_leaves_them():
    """One worker has most of the work; the others are not all on one rank because that would do."""
    assert Placement.balanced([100] + [1] * 30, 4).counts == (1, 10, 10, 10)
    assert Placement.balanced([1] * 30 + [100], 4).counts == (10, 10, 10, 1)


@pytest.mark.parametrize(
    ("method", "settings", "work"),
    [
        ("allreduce_sgd", {}, [8, 3]),
        ("local", {}, [40, 15]),
        ("dpsgd", {"local_steps": 2}, [16, 6]),
        ("fedavg", {"local_epochs": 2}, [200, 6]),
        ("deprl", {"head_steps": 2, "body_epochs": 1}, [116, 9]),
        ("deprl", {"body_epochs": 1, "order": "together"}, [100, 3]),
        ("tron", {}, [100, 3]),
    ],
)
def test_what_workers_of_100_and_3_rows_do(method, settings, work):
    table = method_table(method)(**settings)
    assert [table.rows_a_round(rows, min(8, rows)) for rows in (100, 3)] == work


def test_rows_count_where_epochs_or_full_batches_do():
    """The same partition, by what the method and the problem make of it."""
    sizes = np.array([61] * 10 + [300] * 9 + [6413])
    ends = np.cumsum(sizes)
    x = np.zeros((ends[-1], 2), np.float32)
    rows = [range(end - size, end) for end, size in zip(ends, sizes, strict=True)]

    def counts(method, **keys):
        import torch

        model, loss = torch.nn.Linear(2, 1), torch.nn.functional.mse_loss
        recipe = hpcopt.Network(model, loss, (x, x[:, :1]), workers=20, rows=rows, **keys)
        config = config_in_python("test", method, recipe, (), {"rounds": 1, "out": None})
        return place(OneRank(), config, method, recipe, 2, 0).counts

    assert counts(hpcopt.FedAvg(local_steps=5), batch_size=32) == (10, 10)
    assert counts(hpcopt.FedAvg(local_epochs=1), batch_size=32) == (19, 1)
    assert counts(hpcopt.AllreduceSGD(), batch_size="full") == (19, 1)
