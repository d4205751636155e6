"""Selection of the largest entries against a plain sort, and the pieces of error feedback."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hpcopt.math import carried, topk
from hpcopt.math.carried import CarriedLargest, in_turn
from hpcopt.math.rows_together import together
from hpcopt.math.topk import largest, survival, take, union


def by_sorting(x, k):
    """The largest magnitudes, nan as infinity, of equal ones the lowest index."""
    magnitude = np.abs(np.nan_to_num(x.double().numpy(), nan=np.inf, posinf=np.inf, neginf=np.inf))
    return np.sort(np.lexsort((np.arange(len(x)), -magnitude))[:k])


@pytest.fixture(params=[True, False], ids=["sorted at once", "through a threshold"])
def _way(request, monkeypatch):
    """Small vectors take the way of long ones."""
    if not request.param:
        monkeypatch.setattr(topk, "STACKED", 0)
        monkeypatch.setattr(topk, "SAMPLE", 64)
        monkeypatch.setattr(topk, "CHUNK", 37)


VECTORS = {
    "normal": lambda g: torch.randn(1000, generator=g),
    "float64": lambda g: torch.randn(1000, generator=g, dtype=torch.float64),
    "ties": lambda g: torch.randint(-3, 4, (1000,), generator=g).float(),
    "all equal": lambda g: torch.full((1000,), -2.0),
    "mostly zero": lambda g: torch.randn(1000, generator=g) * (torch.rand(1000, generator=g) < 0.01),
    "heavy tails": lambda g: torch.randn(1000, generator=g) / torch.rand(1000, generator=g) ** 2,
    "sorted": lambda g: torch.arange(1000.0),
    "unlike its sample": lambda g: torch.arange(1000) % 15 * 1.0,  # a stride of 15 sees only zeros
    "nan and inf": lambda g: torch.cat([torch.tensor([math.nan, math.inf, -math.inf]), torch.randn(997)]),
}


@pytest.mark.usefixtures("_way")
@pytest.mark.parametrize("kind", VECTORS)
@pytest.mark.parametrize("k", [0, 1, 2, 10, 300, 999, 1000])
def test_the_largest_are_those_of_a_sort(kind, k):
    x = VECTORS[kind](torch.Generator().manual_seed(k))
    rows = torch.stack([x, x.flip(0)])
    found = largest(rows, k)
    assert found.dtype == torch.int64
    for row, indices in zip(rows, found, strict=True):
        assert np.array_equal(indices.numpy(), by_sorting(row, k))


@settings(max_examples=200)
@given(
    st.lists(st.floats(width=32, allow_nan=True, allow_infinity=True), min_size=1, max_size=200),
    st.data(),
)
def test_any_vector(values, data):
    x = torch.tensor(values, dtype=torch.float32)
    k = data.draw(st.integers(0, len(values)))
    assert np.array_equal(largest(x[None], k)[0].numpy(), by_sorting(x, k))
    if 0 < k < len(x):
        assert np.array_equal(topk._largest(x, k).numpy(), by_sorting(x, k))


def test_a_long_vector_is_found_through_its_threshold():
    x = torch.randn(300_000, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(largest(x[None], 300)[0].numpy(), by_sorting(x, 300))


def test_what_is_taken_and_what_stays_is_what_was_there():
    E = torch.randn(3, 50, dtype=torch.float64)
    before, indices = E.clone(), largest(E, 7)
    values = take(E, indices)
    assert torch.equal(torch.zeros_like(E).scatter_(1, indices, values) + E, before)
    assert torch.count_nonzero(E) == 3 * 43


def test_survival_follows_the_paper():
    sent = torch.tensor([2.0, 2.0, 0.0, 0.0, -1.0], dtype=torch.float64)
    back = torch.tensor([1.0, 0.0, 5.0, 0.0, 3.0], dtype=torch.float64)
    delta = (back - sent) / sent
    expected = torch.tanh((1 + delta).abs() / 4)
    expected[2:4] = 1.0  # nothing was sent: Δ = Q
    assert torch.allclose(survival(sent, back, 4.0), expected, rtol=1e-15)
    now = torch.tensor([4.0, 1.0, 1.0, 2.0, 0.0], dtype=torch.float64)
    other = torch.tanh((1 + (back - sent) / now).abs() / 4)
    other[2:] = 1.0
    assert torch.allclose(survival(sent, back, 4.0, now), other, rtol=1e-15)
    # for a μ that is not small against Q, entries that were not sent are still ranked by |a|
    assert survival(sent, back, 1e8)[2] == 1.0


@given(st.lists(st.integers(-5, 5), max_size=30))
def test_union_is_the_sorted_set(numbers):
    assert union(torch.tensor(numbers, dtype=torch.int64)).tolist() == sorted(set(numbers))


ENTRIES = st.one_of(
    st.integers(-3, 3).map(float),  # ties and zeros
    st.floats(width=32, allow_nan=True, allow_infinity=True),
)


@settings(max_examples=100)
@given(st.data())
def test_a_threshold_from_elsewhere_changes_no_result(data):
    """All rows together and one by one, from nothing and from thresholds of other rows."""
    n, d = data.draw(st.integers(1, 4)), data.draw(st.integers(2, 40))
    row = st.lists(ENTRIES, min_size=d, max_size=d)
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    X = torch.tensor(data.draw(st.lists(row, min_size=n, max_size=n)), dtype=dtype)
    wide = torch.stack([X, X], dim=2)[:, :, 0]  # its rows lie apart, as those of a tensor among others do
    k = data.draw(st.integers(1, d - 1))
    reach = torch.tensor([[abs(data.draw(ENTRIES.filter(lambda x: x == x)))] for _ in X], dtype=dtype)
    kth = X.double().abs().nan_to_num(nan=math.inf, posinf=math.inf).sort(1).values[:, -k, None].to(dtype)
    for given_ in (None, reach, kth, 0.5 * kth):
        for select in (together, in_turn):
            found, least = select(X, k, given_)
            assert found.dtype == torch.int64
            assert np.array_equal(found.numpy(), [by_sorting(x, k) for x in X])
            assert torch.equal(least, kth)
        assert torch.equal(together(wide, k, given_)[0], found)


def test_the_same_result_round_after_round(monkeypatch):
    """Rows that change little, much, and in shape."""
    monkeypatch.setattr(carried, "SHORT", 0)
    monkeypatch.setattr(topk, "STACKED", 0)
    g = torch.Generator().manual_seed(1)
    chooser = CarriedLargest()
    X = torch.randn(3, 2000, generator=g)
    for scale in (1.0, 1.1, 0.95, 0.0, 1e-3, 1e3, math.nan, 1.0):
        X = torch.randn(3, 2000, generator=g) * 0.1 + scale * X.nan_to_num(0.5)
        for rows, k in ((X, 20), (X, 3), (X[:1], 20), (X[:, :70], 20), (X.double(), 1), (X, 2000), (X, 0)):
            assert torch.equal(chooser(rows, k), largest(rows, k))


class Waits(TorchDispatchMode):
    """What a GPU would make the host wait for, but for copies."""

    def __init__(self):
        super().__init__()
        self.named = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = func is torch.ops.aten.index.Tensor and any(m.dtype is torch.bool for m in args[1])
        if masks or func.overloadpacket.__name__ in (
            "nonzero",
            "_local_scalar_dense",
            "bincount",
            "_unique2",
        ):
            self.named.append(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("n", [1, 4])
def test_the_host_waits_once_for_the_candidates(n):
    X = torch.randn(n, 5000, generator=torch.Generator().manual_seed(n))
    reach = X.abs().topk(60).values[:, -1:]
    with Waits() as waits:
        together(X, 50, reach)
    assert waits.named == ["nonzero"]
