"""Sums that travel while their buffer is being filled."""

import threading

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.comm.reduce import buckets as overlap
from hpcopt.comm.reduce.buckets import BucketedSum
from hpcopt.problems.base import Draw, Share


@pytest.mark.parametrize("size", [0, 1, 10, 11, 37])
def test_every_bucket_leaves_once_in_order_and_not_before_it_is_complete(monkeypatch, size):
    monkeypatch.setattr(overlap, "BUCKET_BYTES", 80)  # 10 numbers
    vector, sent = np.zeros(size), []

    def allreduce(part):
        assert (part == 1).all()
        sent.append(len(part))
        part += 1

    parts = BucketedSum(vector, allreduce)
    for start in reversed(range(0, size, 7)):
        vector[start : start + 7] = 1
        parts.ready(start, min(start + 7, size))
    parts.finish()
    assert (vector == 2).all()
    assert sent == [10] * (size // 10) + [size % 10] * (size % 10 > 0)


def test_the_first_bucket_leaves_while_the_rest_is_computed(monkeypatch):
    monkeypatch.setattr(overlap, "BUCKET_BYTES", 80)
    left = threading.Event()
    parts = BucketedSum(np.zeros(20), lambda part: left.set())
    parts.ready(10, 20)
    assert left.wait(10)
    parts.finish()


def test_an_error_in_the_thread_is_raised_by_finish():
    def fails(part):
        raise ValueError("broken link")

    parts = BucketedSum(np.zeros(3), fails)
    with pytest.raises(ValueError, match="broken link"):
        parts.finish()


@pytest.mark.parametrize("batch_size", [5, 600])  # 600: the batch passes in two pieces
def test_a_network_tells_every_element_once_when_it_is_final(batch_size):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
    data = torch.randn(1300, 4), torch.randint(0, 2, (1300,))
    loss = torch.nn.functional.cross_entropy
    network = hpcopt.Network(model, loss, data, workers=2, batch_size=batch_size, regularisation=0.1)
    problem = network.bind(Share(range(2), 2, seed=0))
    x, out = problem.initial(), torch.empty(problem.dim, dtype=torch.float64)
    told = []
    problem.total_gradient(x, Draw(0), out=out, ready=lambda a, b: told.append((a, b, out[a:b].clone())))
    assert sorted(i for a, b, _ in told for i in range(a, b)) == list(range(problem.dim))
    assert told[0][1] == problem.dim  # from the end
    assert all(torch.equal(values, out[a:b]) for a, b, values in told)
    assert torch.equal(out, problem.total_gradient(x, Draw(0)))
