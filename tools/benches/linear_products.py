"""`tools/bench linear`: X w and Xᵀ c of `hpcopt.math.matrix` against SciPy's and NumPy's, on one core.

Bytes are what a product has to read and to write at least: the matrix and both vectors, each once. Beside
them: what this machine copies, read and written bytes both counted.
"""

from __future__ import annotations

import statistics

import numpy as np
import torch
from mpi4py import MPI
from scipy.sparse import csr_matrix

from hpcopt.math.matrix import Matrix, matrix_of
from hpcopt.problems.base import Share
from hpcopt.problems.linear import Logistic
from tools.benches.common import in_turn, ratios, spread

REPEATS = 15
COPIED = 2**25
"""numbers"""
DENSE = (60_000, 785)
"""Fashion-MNIST's training rows, with a bias"""


def text(name: str) -> Matrix:
    """All training rows of a file as a problem keeps them, with a bias."""
    problem = Logistic(f"runs/text/{name}.h5", workers=1, partition="blocks").bind(Share(range(1), 1, seed=0))
    return problem.rows_of_worker(0)


def dense() -> Matrix:
    """Random pixels."""
    return matrix_of(torch.rand(DENSE, dtype=torch.float64), torch.float64, torch.device("cpu"))


def compare(name: str, X: Matrix, copied: float) -> None:
    """Prints a line for each of the products.

    Args:
        name: of the data.
        X: the matrix.
        copied: bytes per second of a copy.
    """
    numbers = X.arrays()
    theirs = numbers[0] if len(numbers) == 1 else csr_matrix(numbers, shape=X.shape)
    library = "NumPy" if len(numbers) == 1 else "SciPy"
    w, c = (torch.randn(size, dtype=torch.float64) for size in reversed(X.shape))
    by_rows, by_columns = w.numpy(), c.numpy()
    assert np.allclose(X.times(w), theirs @ by_rows)
    assert np.allclose(X.transposed_times(c), theirs.T @ by_columns)
    calls = {
        "X w": lambda: X.times(w),
        "their X w": lambda: theirs @ by_rows,
        "Xᵀ c": lambda: X.transposed_times(c),
        "their Xᵀ c": lambda: theirs.T @ by_columns,
    }
    times = in_turn(MPI.COMM_SELF, calls, REPEATS)
    places = "" if len(numbers) == 1 else f", places {numbers[1].dtype} and {numbers[2].dtype}"
    print(f"{name}: {X.shape[0]:,} x {X.shape[1]:,}, {X.nbytes / 1e6:.0f} MB{places}")
    for product in ("X w", "Xᵀ c"):
        rate = (X.nbytes + 8 * sum(X.shape)) / statistics.median(times[product])
        milliseconds = [1e3 * took for took in times[product]]
        print(
            f"  {product:5} {spread(milliseconds, 2)} ms  / {library}'s "
            f"{ratios(times[product], times[f'their {product}'])}  {rate / 1e9:.2f} GB/s, "
            f"{rate / copied:.2f} of a copy's",
            flush=True,
        )


def main() -> None:
    """See above."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    here, there = np.ones(COPIED), np.empty(COPIED)
    times = in_turn(MPI.COMM_SELF, {"copy": lambda: np.copyto(there, here)}, REPEATS)["copy"]
    rates = [2 * here.nbytes / took for took in times]
    print(f"one core, float64, medians of {REPEATS} [min, max]; aim: ratios of at most 1")
    print(f"a copy of {here.nbytes / 1e6:.0f} MB: {spread([rate / 1e9 for rate in rates], 1)} GB/s")
    for name in ("words", "bigrams"):
        compare(f"text, {name}", text(name), statistics.median(rates))
    compare("dense", dense(), statistics.median(rates))


if __name__ == "__main__":
    main()
