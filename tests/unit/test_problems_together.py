"""A problem that computes all workers of a rank at once, and measures that need everybody's rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import hpcopt
from hpcopt.problems.base import Problem, Share, row


def bound(recipe, workers) -> Problem:
    return recipe.bind(Share(workers, recipe.workers, seed=4))


def points(problem: Problem, n: int) -> torch.Tensor:
    return torch.randn(n, problem.dim, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class TogetherProblem(Problem):
    """Least squares with the rows of all workers here in one matrix: f_n(x) = ‖A_n x − b_n‖² / D.

    ``A`` is (n·D, d); one product with it serves every worker, and there is no loop over them.
    """

    def __init__(self, recipe: hpcopt.LinearRegression, share: Share) -> None:
        D = recipe.rows_per_worker
        super().__init__(share, recipe.layout, [D] * share.total, recipe.weights)
        drawn = [recipe.data(worker, share.seed) for worker in share.workers]
        self._recipe, self._D = recipe, D
        self._A = self._of([A for A, _ in drawn], (0, self.dim))
        self._b = self._of([b for _, b in drawn], (0,))

    def _of(self, pieces, empty) -> torch.Tensor:
        stacked = np.concatenate(pieces) if pieces else np.empty(empty)
        return torch.tensor(stacked, dtype=self.share.dtype)

    def initial(self):
        return torch.tensor(self._recipe.initial(self.share.seed), dtype=self.share.dtype)

    def batch_rows(self, i, draw):
        return self._D

    def _product(self, X) -> torch.Tensor:
        """A_n x_n, (n, D)."""
        if X.ndim == 1:
            return (self._A @ X).view(-1, self._D)
        return torch.einsum("nij,nj->ni", self._A.view(-1, self._D, self.dim), X)

    def _residual(self, X) -> torch.Tensor:
        return self._product(X) - self._b.view(-1, self._D)

    def _back(self, R, weighted) -> torch.Tensor:
        """(2/D) A_nᵀ r_n, (n, d)."""
        scale = 2 / self._D * (self.weights[:, None] if weighted else 1)
        return torch.einsum("nij,ni->nj", self._A.view(-1, self._D, self.dim), scale * R)

    def _total(self, R, out) -> torch.Tensor:
        c = 2 / self._D * self.weights[:, None] * R
        return torch.mv(self._A.T, c.ravel(), out=torch.empty(self.dim).to(R) if out is None else out)

    def losses(self, X, draw=None):
        return self._residual(X).square().mean(1)

    def gradients(self, X, draw=None, *, weighted=False, out=None):
        self.samples += len(self._b)
        G = self._back(self._residual(X), weighted)
        return G if out is None else out.add_(G)

    def total_gradient(self, X, draw=None, *, out=None, ready=None):
        self.samples += len(self._b)
        return self._total(self._residual(X), out)

    def gradient(self, i, x, draw, part="all"):
        self.samples += self._D
        mine = slice(i * self._D, (i + 1) * self._D)
        g = 2 / self._D * self._A[mine].T @ (self._A[mine] @ x - self._b[mine])
        return self.layout.tensors(g, part)

    def hvps(self, X, V, draw=None, *, weighted=False):
        self.samples += 2 * len(self._b)
        return self._back(self._product(V), weighted)

    def total_hvp(self, X, V, draw=None, *, out=None):
        self.samples += 2 * len(self._b)
        return self._total(self._product(V), out)

    def scores(self, X, buffers=None):
        rows = torch.stack([self._product(X).ravel(), self._b], dim=1)
        return {"agreement": rows.double()}

    def score(self, name, rows):
        """How often a prediction has its target's sign."""
        return float((rows[:, 0] * rows[:, 1] > 0).double().mean())


class Together(hpcopt.LinearRegression):
    def bind(self, share):
        return TogetherProblem(self, share)


def test_a_problem_may_compute_all_workers_at_once(tmp_path: Path) -> None:
    keys = {"workers": 5, "dim": 7, "rows_per_worker": 6}
    looped, together = hpcopt.LinearRegression(**keys), Together(**keys)
    for workers in (range(5), range(1, 4), range(2, 2)):
        ours, theirs = bound(together, workers), bound(looped, workers)
        X, V = points(theirs, len(workers)), points(theirs, len(workers)).flip(1)
        for at in (X, theirs.initial()):
            assert torch.allclose(ours.losses(at), theirs.losses(at))
            assert torch.allclose(ours.total_gradient(at), theirs.total_gradient(at))
            for weighted in (False, True):
                found = ours.gradients(at, weighted=weighted, out=torch.ones_like(X))
                assert torch.allclose(found, theirs.gradients(at, weighted=weighted) + 1)
                found = ours.hvps(at, V, weighted=weighted)
                assert torch.allclose(found, theirs.hvps(at, V, weighted=weighted))
            assert torch.allclose(ours.total_hvp(at, V), theirs.total_hvp(at, V))
            assert ours.samples == theirs.samples
        for i in range(len(workers)):
            assert torch.allclose(ours.gradient(i, X[i], None)[0], theirs.gradient(i, X[i], None)[0])
    curves = []
    for name, recipe in (("looped", looped), ("together", together)):
        for method in (hpcopt.AllreduceSGD(lr=0.02), hpcopt.DPSGD(lr=0.02), hpcopt.TopK(lr=0.02, k=2)):
            out = tmp_path / f"{name}-{method.table.__name__}"
            hpcopt.run(method, recipe, out=out, rounds=5, evaluate_every=1)
            curves.append(hpcopt.load(out)["metrics"])
    for one, other in zip(curves[:3], curves[3:], strict=True):
        np.testing.assert_allclose(one["loss"], other["loss"], rtol=1e-10)
        np.testing.assert_array_equal(one["gradients"], other["gradients"])


def test_a_score_is_made_of_everybodys_rows() -> None:
    """What no mean over workers tells: the rows of all ranks, one after the other, in one function."""
    recipe = Together(workers=5, dim=7, rows_per_worker=6)
    whole = bound(recipe, range(5))
    X = points(whole, 5)
    places = (range(2), range(2, 2), range(2, 5))
    pieces = [bound(recipe, workers).scores(X[workers.start : workers.stop]) for workers in places]
    together = torch.cat([piece["agreement"] for piece in pieces])
    assert torch.equal(together[:, 1], whole.scores(X)["agreement"][:, 1])
    predictions = torch.cat([torch.tensor(recipe.data(i, 4)[0]) @ row(X, i) for i in range(5)])
    expected = (predictions.sign() == together[:, 1].sign()).double().mean()
    assert whole.score("agreement", together) == expected
    assert bound(hpcopt.LinearRegression(2), range(2)).scores(torch.zeros(100)) == {}
