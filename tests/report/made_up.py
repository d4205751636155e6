"""Runs that nobody ran: files as a run leaves them, with numbers from a generator."""

import json

import numpy as np

from hpcopt.storage import image
from hpcopt.storage.schema import Schema

PHASES = ["compute", "reduce.sum", "sparse", "evaluation", "files"]
PORTS = ["reduce.sum", "sparse"]
ABOUT = {
    "method": "topk",
    "problem": "quadratic",
    "workers": 4,
    "ranks": 2,
    "seed": 0,
    "dim": 10,
    "dtype": "float64",
    "version": "0.1.0",
    "commit": "c0ffee",
    "start": "2026-11-27T10:00:00+00:00",
    "libraries": json.dumps({"numpy": "2.0", "mpi": "Open MPI"}),
    "hosts": json.dumps(["one", "two"]),
    "jobs": json.dumps([{"start": "2026-11-27T10:00:00+00:00"}]),
    "slurm": "{}",
    "chosen": json.dumps({"reduction": "mpi"}),
    "device": "cpu (host memory)",
}
ENDED = {"end": "2026-11-27T11:00:00+00:00", "stopped_by": "rounds"}


def config(seed=0, **method):
    """A config, as run.h5 has it."""
    return {
        "run": {"method": "topk", "workers": 4, "rounds": 100, "seed": seed, "out": f"runs/{seed}"},
        "method": {"lr": 0.1, **method},
        "problem": {"kind": "quadratic"},
    }


def run(directory, records=11, seed=0, settings=None, about=ENDED, change=None, arrays=None):
    """Makes a run's directory with a run.h5 of so many records; gives the directory.

    Args:
        settings: keys of [method].
        about: attributes beside `ABOUT`; `ENDED` or {} of one that was cut off.
        change: gets the columns, name -> array, before they are written.
        arrays: name -> (dims, array): groups that the method keeps.
    """
    random = np.random.default_rng(seed)
    rounds = np.arange(records) * 10
    columns = {
        "metrics/round": rounds,
        "metrics/seconds": rounds * 0.01,
        "metrics/epochs": rounds * 0.5,
        "metrics/gradients": rounds * 100.0,
        "metrics/bytes_sent": rounds * 1e6,
        "metrics/bytes_workers": rounds * 2e6,
        "metrics/passes": rounds * 1.0,
        "metrics/peak_memory": np.full(records, 3e8),
        "metrics/loss": np.exp(-rounds / 50) + 0.01 * random.random(records),
        "metrics/accuracy": 1 - np.exp(-rounds / 50) * random.random(records),
        "workers/loss": random.random((records, 4)),
        **{
            f"ports/{name}": np.outer(rounds, [1.0, 2.0]) for name in ("calls", "bytes", "payload", "seconds")
        },
    }
    each = np.outer(rounds * 0.01, [0.5, 0.2, 0.3, 0.1, 0.05])
    columns |= {"phases/seconds": 1.2 * each, "phases/seconds_mean": each, "phases/seconds_min": 0.7 * each}
    if change:
        change(columns)
    of = {"workers": ("worker",), "ports": ("port",), "phases": ("phase",)}
    dims = {name: ("record", *of.get(name.partition("/")[0], ())) for name in columns}
    dimensions = {"worker": list(range(4)), "port": PORTS, "phase": PHASES}
    capacity = {"record": records}
    for name, (names, array) in (arrays or {}).items():
        columns[name], dims[name] = array, names
        capacity[names[0]] = len(array)
        dimensions |= {dim: list(range(size)) for dim, size in zip(names[1:], array.shape[1:], strict=True)}
    directory.mkdir(parents=True, exist_ok=True)
    attributes = ABOUT | {"seed": seed, "config": json.dumps(config(seed, **(settings or {})))} | about
    image.write(directory / "run.h5", Schema(dims, capacity, dimensions), attributes, columns, copies=1)
    return directory
