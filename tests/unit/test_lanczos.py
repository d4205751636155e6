"""Lanczos over slices, here one slice that is everything, against dense eigenvalues and Krylov matrices."""

from __future__ import annotations

from itertools import count, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hpcopt.math.lanczos import lanczos, random_start
from hpcopt.math.quadrature import quadrature

CPU = torch.device("cpu")
LOOSE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""|Δλ|, relative to max |λ|"""
draw = np.random.default_rng(0)
SPECTRA = {
    "plain": draw.normal(size=201),
    "every copy": np.concatenate([[9.0] * 4, [7.0] * 3, draw.uniform(0, 1, 190), [-5.0] * 3]),
    "tight clusters": np.concatenate([9 + 1e-7 * np.arange(5), draw.uniform(0, 1, 90), -1e-9 * np.arange(5)]),
    "zeros": np.zeros(30),
    "one value": np.full(30, 2.5),
    "rank 2": np.concatenate([[3.0, -2.0], np.zeros(100)]),
    "negative": -np.arange(1.0, 101),
    "copies across the boundary": np.concatenate([np.arange(8), [7.0] * 9, draw.uniform(-1, 1, 99)]),
    "fewer than the basis": draw.normal(size=17),
    "as many as pairs": draw.normal(size=13),
}


class Dense:
    """H with a spectrum, and how often it was used."""

    def __init__(self, eigenvalues, dtype=torch.float64, seed=1):
        self.d, self.dtype = len(eigenvalues), dtype
        generator = np.random.default_rng(seed)
        Q = np.linalg.qr(generator.standard_normal((self.d, self.d)))[0]
        H = (Q * np.asarray(eigenvalues)) @ Q.T
        self.H = (H + H.T) / 2
        self._H = torch.from_numpy(self.H).to(dtype)
        self.products = self.sums = 0

    def times(self, v):
        assert v.dtype is self.dtype
        self.products += 1
        return self._H @ v

    def add(self, values):
        assert values.dtype is torch.float64
        self.sums += 1
        return values.clone()

    def start(self, index=0):
        return random_start(range(self.d), 3, self.dtype, CPU, index)[:, None]

    def pairs(self, start=None, **keys):
        start = self.start() if start is None else start
        return lanczos(self.times, self.add, start, self.d, range(self.d), **keys)

    def norm(self):
        return np.abs(np.linalg.eigvalsh(self.H)).max()


def ends(H, largest, smallest):
    values = np.linalg.eigvalsh(H)
    return np.concatenate([values[:smallest], values[len(values) - largest :]])


def assert_honest(dense, found):
    """Residuals are as said but for rounding, and for what sweeps gave up, added as if it were orthogonal."""
    V = found.vectors.double().numpy()
    true = np.linalg.norm(dense.H @ V - V * found.values.numpy(), axis=0)
    rounding = 100 * torch.finfo(dense.dtype).eps * dense.norm()
    assert (true <= 2 * found.residuals.numpy() + rounding).all()


@pytest.mark.parametrize("dtype", LOOSE)
@pytest.mark.parametrize("name", SPECTRA)
def test_both_ends_of_a_dense_spectrum_with_every_copy(name, dtype):
    dense = Dense(SPECTRA[name], dtype)
    found = dense.pairs(largest=10, smallest=3, iterations=40, tolerance=LOOSE[dtype] / 10, copies=True)
    loose = LOOSE[dtype] * dense.norm()
    np.testing.assert_allclose(found.values, ends(dense.H, 10, 3), rtol=0, atol=loose)
    V = found.vectors.double().numpy()
    assert found.vectors.dtype is dtype
    assert np.abs(V.T @ V - np.eye(13)).max() < (1e-6 if dtype is torch.float32 else 1e-13)
    np.testing.assert_allclose(dense.H @ V, V * found.values.numpy(), rtol=0, atol=loose)
    assert found.products == dense.products
    assert (found.residuals <= loose).all()
    assert_honest(dense, found)


@settings(max_examples=60)
@given(
    values=st.lists(st.integers(-4, 4), min_size=1, max_size=30),
    largest=st.integers(0, 6),
    smallest=st.integers(0, 6),
    room=st.integers(4, 20),
    vectors=st.integers(1, 3),
)
def test_any_multiplicities(values, largest, smallest, room, vectors):
    d = len(values)
    largest = min(largest, d)
    smallest = min(smallest, d - largest)
    if not largest + smallest:
        return
    dense = Dense(np.array(values, float))
    start = torch.cat([dense.start(i) for i in range(vectors)], 1)
    found = dense.pairs(
        start,
        largest=largest,
        smallest=smallest,
        iterations=largest + smallest + room,
        tolerance=1e-7,
        copies=True,
    )
    np.testing.assert_allclose(found.values, ends(dense.H, largest, smallest), rtol=0, atol=1e-6)
    assert_honest(dense, found)
    assert found.products < 300


def test_the_cheap_use_is_one_krylov_space():
    """24 products, two sums each, and the Ritz pairs of span {v, Hv, …, H²³v}; residuals are true ones."""
    m, dense = 24, Dense(np.concatenate([np.geomspace(100, 10, 10), draw.uniform(0, 1, 190)]))
    found = dense.pairs(largest=10, smallest=2, iterations=m)
    assert found.products == dense.products == m
    assert dense.sums == 2 * (m + 1)  # the start is made a unit vector, too
    krylov = [dense.start().numpy()[:, 0]]
    for _ in range(m - 1):  # orthogonalised on the way, or rounding would hide the space
        w = dense.H @ krylov[-1]
        for _ in range(3):
            basis = np.linalg.qr(np.array(krylov).T)[0]
            w -= basis @ (basis.T @ w)
        krylov.append(w / np.linalg.norm(w))
    Q = np.linalg.qr(np.array(krylov).T)[0]
    np.testing.assert_allclose(found.values, ends(Q.T @ dense.H @ Q, 10, 2), rtol=0, atol=1e-10)
    V = found.vectors.numpy()
    true = np.linalg.norm(dense.H @ V - V * found.values.numpy(), axis=0)
    np.testing.assert_allclose(found.residuals, true, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 5e-7), (torch.float64, 1e-15)])
def test_the_whole_basis_is_orthogonal_where_eigenvalues_have_long_converged(dtype, rounding):
    dense = Dense(np.concatenate([[1e6, 1e5, 1e4], draw.uniform(0, 1, 300)]), dtype)
    V = dense.pairs(largest=60, iterations=60).vectors.double().numpy()
    assert np.abs(V.T @ V - np.eye(60)).max() < 5 * rounding


def test_a_basis_is_bounded_and_its_sums_are_two_per_product():
    dense = Dense(SPECTRA["plain"])
    longest = []

    def add(values):
        longest.append(len(values))
        return values.clone()

    found = lanczos(
        dense.times, add, dense.start(), dense.d, range(dense.d), largest=4, iterations=12, tolerance=1e-8
    )
    assert found.products > 3 * 12
    assert max(longest) <= 12 + 1
    assert len(longest) == 2 * (found.products + 1)


@pytest.mark.parametrize("restarts", [0, 2])
def test_restarts_come_to_an_end(restarts):
    dense = Dense(SPECTRA["plain"])
    keys = {"largest": 4, "smallest": 1, "iterations": 12, "tolerance": 1e-8, "copies": True}
    found = dense.pairs(**keys, restarts=restarts)
    assert found.products <= (1 + restarts) * 12
    assert (found.residuals > 1e-8).any()
    assert_honest(dense, found)


def test_the_sum_of_earlier_eigenvectors_is_a_better_start():
    before, dense = Dense(100 / np.arange(1.0, 201)), Dense(100 / np.arange(1.0, 201))
    change = torch.from_numpy(np.random.default_rng(2).standard_normal((200, 200)))
    dense._H += 0.005 * (change + change.T)
    values = torch.linalg.eigvalsh(dense._H)[-10:]
    keys = {"largest": 10, "iterations": 20}
    V = before.pairs(**keys).vectors
    good, plain = (
        float((dense.pairs(start, **keys).values - values).abs().sum())
        for start in (V.sum(1, keepdim=True), dense.start())
    )
    assert good < plain / 10


@pytest.mark.parametrize("columns", ["nothing", "the same twice"])
def test_starts_without_content(columns):
    dense = Dense(SPECTRA["plain"])
    start = torch.zeros(dense.d, 2, dtype=torch.float64)
    if columns != "nothing":
        start += dense.start()
    found = dense.pairs(start, largest=3, iterations=30, tolerance=1e-8)
    np.testing.assert_allclose(found.values, ends(dense.H, 3, 0), atol=1e-6)


def test_an_exhausted_space_goes_on_with_a_random_vector_and_not_with_a_rounding():
    """H = I: v alone is a space that H leaves invariant, though rounding leaves something of H v."""
    dense = Dense(np.ones(50))
    V = dense.pairs(largest=3, iterations=3, seed=8).vectors.numpy()
    for index in (1, 2):
        v = random_start(range(50), 8, torch.float64, CPU, index).numpy()
        np.testing.assert_allclose(V @ (V.T @ v), v, atol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_ends_it(value):
    dense = Dense(np.ones(20))
    dense._H[3, 3] = value
    found = dense.pairs(largest=3, iterations=10, tolerance=1e-8, copies=True)
    assert found.values.isnan().all()
    assert found.vectors.shape == (20, 3)
    assert found.products == 1


@pytest.mark.parametrize(
    "keys",
    [
        {"largest": 0, "iterations": 5},
        {"largest": 15, "smallest": 6, "iterations": 40},
        {"largest": 4, "smallest": 2, "iterations": 5},
        {"largest": 4, "iterations": 5, "tolerance": 1e-3},
        {"largest": 4, "smallest": 1, "iterations": 8, "tolerance": 1e-3, "copies": True},
    ],
)
def test_what_cannot_be(keys):
    with pytest.raises(ValueError, match="eigenpairs"):
        Dense(np.ones(20)).pairs(**keys)


@given(cuts=st.lists(st.integers(0, 10_000), max_size=4))
@settings(max_examples=20)
def test_random_vectors_do_not_depend_on_how_they_are_cut(cuts):
    ends = sorted({0, 10_000, *cuts})
    whole = random_start(range(10_000), 5, torch.float32, CPU)
    pieces = [random_start(range(a, b), 5, torch.float32, CPU) for a, b in pairwise(ends)]
    assert torch.equal(torch.cat(pieces), whole)
    assert len(random_start(range(7, 7), 5, torch.float32, CPU)) == 0
    assert not torch.equal(random_start(range(10_000), 5, torch.float32, CPU, 1), whole)
    assert abs(float(whole.mean())) < 0.05
    assert abs(float(whole.std()) - 1) < 0.05


@pytest.mark.parametrize("d", [6, 50])
def test_quadrature_has_the_moments_of_each_probe(d):
    """Σ w θ^p = vᵀ Hᵖ v of unit v, for p up to 2m − 1; with as many nodes as parameters for all p."""
    m, dense = 7, Dense(np.linspace(-1, 1, d))
    fresh = (dense.start(i)[:, 0] for i in count())
    nodes, weights = quadrature(dense.times, dense.add, d, fresh, dense.start()[:, 0], probes=2, nodes=m)
    assert nodes.shape == weights.shape == (2, min(m, d))
    assert dense.products == 2 * min(m, d)
    for probe in range(2):
        v = dense.start(probe).numpy()[:, 0]
        power = v / np.linalg.norm(v)
        for p in range(2 * m):
            moment = float((weights[probe] * nodes[probe] ** p).sum())
            assert moment == pytest.approx(v @ power / np.linalg.norm(v), abs=1e-12)
            power = dense.H @ power


def test_the_mean_of_probes_is_the_distribution():
    eigenvalues = np.concatenate([np.zeros(150), np.ones(50)])
    dense = Dense(eigenvalues)
    fresh = (dense.start(i)[:, 0] for i in count())
    nodes, weights = quadrature(dense.times, dense.add, 200, fresh, dense.start()[:, 0], probes=20, nodes=5)
    ones = float(weights[nodes > 0.5].sum() / 20)
    assert ones == pytest.approx(0.25, abs=0.03)
