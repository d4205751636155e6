"""What tests of linear models share: rows, shards of unequal size, one of them empty, dense or sparse."""

from dataclasses import replace

import numpy as np
import torch
from scipy.sparse import csr_matrix

import hpcopt
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.problems.base import Share
from hpcopt.problems.data.arrays import SparseArraySplit

KINDS = {"logistic": hpcopt.Logistic, "squared_hinge": hpcopt.SquaredHinge, "squares": hpcopt.LeastSquares}
UNEVEN = [np.arange(13), np.arange(0), np.arange(13, 70), np.arange(70, 90)]


def rows(n=90, d=7, seed=0):
    """Half of the features 0, one column empty, and labels that the others do not quite tell."""
    draw = np.random.default_rng(seed)
    X = draw.standard_normal((n, d)) * (draw.random((n, d)) < 0.5) * np.logspace(0, -1, d)
    X[:, 3] = 0
    y = np.sign(X @ draw.standard_normal(d) + 0.3 * draw.standard_normal(n))
    return X, np.where(y == 0, 1.0, y)


def recipe(kind, sparse=False, shards=UNEVEN, **keys):
    """Four workers, one of them without rows."""
    X, y = rows()
    made = KINDS[kind]((X, y), workers=len(shards), rows=shards, **{"regularisation": 1e-3} | keys)
    if sparse:
        made.train = replace(made.train, split=SparseArraySplit(csr_matrix(X), y))
    return made


def bound(recipe, workers=None):
    """All workers, or some."""
    return recipe.bind(Share(workers or range(recipe.workers), recipe.workers, seed=0))


def begun(method, recipe, ordered=False):
    """The bound problem, ports and the state of round 0."""
    problem = bound(recipe)
    ports = LocalPorts(recipe.workers, problem.initial(), ordered)
    sums = [ports.reduce.sum(rows).clone() for rows in problem.statistics()]
    if sums:
        problem.settle(torch.cat(sums))
    method.prepare(problem)
    return problem, ports, method.start(problem, ports)


def passes(ports):
    return sum(counter.passes for counter in ports.counters().values())


def objective(problem, w):
    """f."""
    z = problem.margins(w)
    return float(problem.loss.value(z, problem.y).sum() + problem.regularisation / 2 * w @ w)


def gradient(problem, w):
    """∇f."""
    g = problem.regularisation * w
    problem.transposed(problem.loss.slope(problem.margins(w), problem.y), g)
    return g
