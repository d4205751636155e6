"""Sparse means sparse: the peak memory of whole runs, each in a process of its own."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

ROWS, EACH, FEATURES = 40_000, 60, 400_000
KEEP = 8
RUN = f"""
import sys, hpcopt
history = hpcopt.CommonDirections(keep={KEEP})
method = history if sys.argv[1] == "history" else hpcopt.FADL(inner_iterations=3)
problem = hpcopt.Logistic(sys.argv[2], workers=int(sys.argv[3]), partition="blocks")
run = hpcopt.run(method, problem, out=sys.argv[4], rounds=3, evaluate_every=3, checkpoint_every=0)
print(hpcopt.load(run)["metrics/peak_memory"].values[-1])
"""


def data(path, rows, features):
    """A data file of random rows, 60 numbers in each."""
    draw = np.random.default_rng(0)
    ends = np.arange(rows + 1) * EACH
    steps = draw.integers(1, features // EACH, (rows, EACH))
    with h5py.File(path, "w") as file:
        file.attrs.update(schema="hpcopt-data", schema_version=2, features=features)
        train = file.create_group("train")
        train["indices"] = (np.cumsum(steps, 1) - 1).astype(np.int32).ravel()
        train["data"], train["indptr"] = draw.standard_normal(rows * EACH), ends
        train["y"] = draw.choice([-1, 1], rows)
    return path


@pytest.fixture(scope="module")
def peak(tmp_path_factory):
    """Of a run: bytes."""
    folder = tmp_path_factory.mktemp("memory")
    files = {"large": data(folder / "large.h5", ROWS, FEATURES), "tiny": data(folder / "tiny.h5", 200, 200)}

    def measured(method, size="large", workers=8):
        out = folder / f"{method}-{size}-{workers}"
        command = [sys.executable, "-c", RUN, method, str(files[size]), str(workers), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        return float(done.stdout.split()[-1])

    return measured


def test_peak_memory_is_that_of_sparse_rows_and_a_few_vectors(peak):
    numbers = ROWS * (EACH + 1)  # with the bias
    csr, vector = 12 * numbers + 4 * ROWS, 8 * (FEATURES + 1)
    allowed = peak("fadl", "tiny") + 3 * csr + 10 * vector
    few = peak("fadl")
    assert few <= allowed
    assert peak("fadl", workers=128) <= 1.1 * few
    history = (KEEP + 4) * (vector + 8 * ROWS)
    assert peak("history") <= allowed + history
