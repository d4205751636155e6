"""run.h5 with room for many records of many workers: the room is on the disk, not in memory."""

import tracemalloc

import numpy as np

from hpcopt.storage.metrics import RunFile, Schema

RECORDS, WORKERS = 30_000, 128


def test_a_large_file_needs_little_memory(tmp_path):
    """31 MB of room for one column; made, grown by a column, read on resume and finished in a few of them."""
    columns = {"metrics/round": ("record",), "workers/loss": ("record", "worker")}
    schema = Schema(columns, {"record": RECORDS}, {"worker": list(range(WORKERS))})
    record = {"metrics/round": 0, "workers/loss": np.zeros(WORKERS)}
    tracemalloc.start()
    try:
        path = tmp_path / "run.h5"
        RunFile.create(path, schema, {}, 1e9).close()
        file = RunFile.reopen(path, schema, {}, 1e9, 10**9)
        file.append(record)
        file.append(record | {"metrics/round": 1, "workers/late": np.ones(WORKERS)})
        file.finish({})
        assert tracemalloc.get_traced_memory()[1] < 15e6
    finally:
        tracemalloc.stop()
