"""Eigenpairs in slices on any number of ranks: the dense Hessian's, and what they cost."""

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.comm.reduce.local_reducer import LocalReducer
from hpcopt.comm.reduce.mpi_reducer import MPIReducer
from hpcopt.comm.staging import Staging
from hpcopt.costs.volumes import gather_bytes
from hpcopt.ground.placement import Placement
from hpcopt.math.lanczos import lanczos, random_start
from hpcopt.problems.base import Share

from .conftest import first_ranks

pytestmark = pytest.mark.mpi
WORKERS = 5
CPU = torch.device("cpu")


def logistic(d=23, last=0.0):
    """Five workers of unequal size, one without rows; at 0 the Hessian is XᵀX/4n + λI."""
    draw = np.random.default_rng(8)
    X = draw.standard_normal((203, d)) * np.logspace(0, -1, d)
    X[-1, 0] += last
    y = np.sign(X @ draw.standard_normal(d) + 0.3 * draw.standard_normal(203))
    rows = np.split(np.arange(203), [21, 21, 112, 119])
    recipe = hpcopt.Logistic((X, y), workers=WORKERS, rows=rows, regularisation=1e-3, bias=False)
    return recipe, np.linalg.eigvalsh(X.T @ X / 4 / 203 + 1e-3 * np.eye(d))


def copies(d=67):
    """Multiple and clustered eigenvalues, zeros and negative ones."""
    spectrum = [5.0] * 3 + [4 + 1e-8, 4.0, 3.0] + list(np.linspace(0, 1, d - 15)) + [0.0] * 5 + [-1.0] * 4
    return hpcopt.Quadratic(WORKERS, eigenvalues=spectrum), np.sort(spectrum)


def both_ends(values, largest, smallest):
    return np.concatenate([values[:smallest], values[len(values) - largest :]])


@pytest.mark.parametrize("make", [logistic, copies])
@pytest.mark.parametrize(("dtype", "loose"), [("float64", 1e-6), ("float32", 1e-4)])
def test_the_dense_hessians_eigenvalues(comm, make, dtype, loose):
    recipe, values = make()
    tree = hpcopt.spectrum(recipe, comm, largest=10, smallest=3, dtype=dtype, probes=0)
    found = tree["spectrum/eigenvalue"].values[0]
    np.testing.assert_allclose(found, both_ends(values, 10, 3), rtol=0, atol=loose * np.abs(values).max())
    everywhere = comm.allgather((found, tree["spectrum/residual"].values))
    assert all(np.array_equal(a, b) for one in everywhere for a, b in zip(one, everywhere[0], strict=True))


def test_the_density_of_the_same_random_vectors(comm):
    trees = []
    for ranks in (comm.size, 1):
        with first_ranks(comm, ranks) as some:
            if some is not None:
                trees.append(hpcopt.spectrum(logistic()[0], some, largest=1, probes=2, nodes=4))
    for name in ("density/eigenvalue", "density/weight"):
        assert all(np.array_equal(trees[0][name], other) for other in comm.allgather(trees[0][name].values))
        np.testing.assert_allclose(trees[0][name], trees[-1][name], rtol=1e-8)


def test_one_row_of_the_last_worker_counts(comm):
    for last in (0.0, 3.0):
        recipe, values = logistic(last=last)
        tree = hpcopt.spectrum(recipe, comm, largest=2, probes=0)
        np.testing.assert_allclose(tree["spectrum/eigenvalue"][0], values[-2:], rtol=1e-6)
    assert abs(logistic()[1][-1] - values[-1]) > 1e-3


def test_fewer_parameters_than_ranks(comm):
    recipe = hpcopt.Quadratic(WORKERS, eigenvalues=[3.0, -2.0])
    tree = hpcopt.spectrum(recipe, comm, largest=1, smallest=1)
    np.testing.assert_allclose(tree["spectrum/eigenvalue"][0], [-2, 3])


def cheap(problem, reduce):
    """Ten products at the start, from a random vector."""
    x, d = problem.initial(), problem.dim
    own, part = reduce.own(d), reduce.contribution(d)

    def product(v):
        assert len(v) == len(own)
        return part.add_hvps(problem, x, reduce.allgather(v, d)).scatter()

    start = random_start(own, 7, x.dtype, CPU)[:, None]
    return lanczos(product, reduce.slices, start, d, own, largest=4, smallest=1, iterations=10)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float64, 1e-9), (torch.float32, 1e-3)])
def test_the_cheap_use_is_the_same_on_any_number_of_ranks(comm, dtype, rounding):
    """Values, and vectors with their signs; a product costs two halves of a pass and two small sums."""
    recipe, _ = logistic(d=1001)
    placement = Placement.even(WORKERS, comm.size, comm.rank)
    problem, whole = (
        recipe.bind(Share(workers, WORKERS, 1, dtype)) for workers in (placement.here, range(WORKERS))
    )
    port = MPIReducer(comm, placement, Staging(CPU), problem.initial())
    found = cheap(problem, port)
    twin = cheap(whole, LocalReducer(WORKERS, whole.initial()))
    largest = float(twin.values.abs().max())
    assert found.vectors.shape == (len(port.own(1001)), 5)
    torch.testing.assert_close(found.values, twin.values, rtol=0, atol=rounding * largest)
    torch.testing.assert_close(found.residuals, twin.residuals, rtol=0, atol=rounding * largest)
    vectors = torch.stack([port.allgather(column.contiguous(), 1001) for column in found.vectors.T], 1)
    torch.testing.assert_close(vectors, twin.vectors, rtol=0, atol=rounding)
    counters = port.counters
    assert (counters["scatter"].calls, counters["slices"].calls) == (10, 22)
    sent = sum(counters[verb].bytes for verb in ("scatter", "slices")) + 10 * gather_bytes(
        1001 * dtype.itemsize, comm.size
    )
    assert sent <= 10 * 9 / 4 * dtype.itemsize * 1001
    port.free()
