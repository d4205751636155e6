"""Sparse means sparse: the peak memory of whole runs, each in a process of its own that has torch already."""

import subprocess
import sys

import h5py
import numpy as np

ROWS, EACH, FEATURES = 20_000, 60, 400_000
KEEP = 8
RUN = f"""
import os, sys, torch, scipy.sparse
for name, data, workers, out in zip(*[iter(sys.argv[1:])] * 4):
    if os.fork():
        assert os.wait()[1] == 0
        continue
    import hpcopt
    method = hpcopt.CommonDirections(keep={KEEP}) if name == "history" else hpcopt.FADL(inner_iterations=3)
    problem = hpcopt.Logistic(data, workers=int(workers), partition="blocks")
    run = hpcopt.run(method, problem, out=out, rounds=3, evaluate_every=3, checkpoint_every=0)
    print("peak", hpcopt.load(run)["metrics/peak_memory"].values[-1])
    raise SystemExit
"""
CASES = (("fadl", "tiny", 8), ("fadl", "large", 8), ("fadl", "large", 128), ("history", "large", 8))


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


def peaks(folder):
    """Of each case: bytes."""
    files = {"large": data(folder / "large.h5", ROWS, FEATURES), "tiny": data(folder / "tiny.h5", 200, 200)}
    words = [(name, files[size], workers, folder / f"{k}") for k, (name, size, workers) in enumerate(CASES)]
    command = [sys.executable, "-c", RUN, *(str(word) for case in words for word in case)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("peak")]
    return [float(line[1]) for line in lines]


def test_peak_memory_is_that_of_sparse_rows_and_a_few_vectors(tmp_path):
    tiny, few, many, history = peaks(tmp_path)
    numbers = ROWS * (EACH + 1)  # with the bias
    csr, vector = 12 * numbers + 4 * ROWS, 8 * (FEATURES + 1)
    allowed = tiny + 3 * csr + 10 * vector
    assert few <= allowed
    assert many <= 1.1 * few
    assert history <= allowed + (KEEP + 4) * (vector + 8 * ROWS)
