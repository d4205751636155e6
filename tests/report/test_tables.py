"""Cells of every table against NumPy on the HDF5."""

import h5py
import numpy as np
import pytest
import xarray
from scipy.stats import binom

from hpcopt.report.runs import Found, Scaling, Trouble, find
from hpcopt.report.tables import for_report
from hpcopt.report.tables.costs import Times
from tests.report import made_up

KEPT = {
    "staleness/count": (("delay",), np.array([5, 0, 3, 2])),
    "spectrum/eigenvalue": (("refresh", "pair"), np.array([[9.0, 9, 9, 9, 9, 9], [1.0, -7, 3, 2, 0.5, 0.1]])),
    "spectrum/residual": (("refresh", "pair"), np.full((2, 6), 1e-6) * np.arange(6)),
}


def own(columns):
    """Metrics that not all runs have, and numbers that are none."""
    columns["metrics/gap"] = columns["metrics/loss"] ** 2
    columns["metrics/spectrum_age"] = np.arange(11.0)
    columns["metrics/loss"][[3, 10]] = np.nan
    columns["metrics/accuracy"][-1] = np.inf
    columns["workers/loss"][-1, 1] = np.nan


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    home = tmp_path_factory.mktemp("runs")
    lr = {"lr=0.1": 0.1, "lr=0.2": 0.2}
    paths = [
        made_up.run(home / f"{name},seed={seed}", seed=seed, settings={"lr": lr[name]})
        for name in lr
        for seed in range(7)
    ]
    paths += [
        made_up.run(home / "own", change=own, arrays=KEPT, settings={"private": ["[red]"]}),
        made_up.run(home / "one", records=1, settings={"lr": 1}),
        made_up.run(home / "empty", records=0, settings={"lr": 2}),
    ]
    return find(paths)


@pytest.fixture(scope="module")
def tables(found):
    return {table.name: table for table in for_report(found)}


def cells(table, row, *names):
    """Cells of the row that begins with these texts."""
    at = [[column.name for column in table.columns].index(name) for name in names]
    (found,) = [one for one in table.rows if tuple(one[: len(row)]) == tuple(row)]
    return [found[k] for k in at]


def hdf5(found, name):
    """A run's file."""
    (run,) = [run for run in found.runs if run.name == name]
    return h5py.File(run.path / "run.h5")


def test_summary(found, tables):
    with hdf5(found, "lr=0.2,seed=3") as file:
        losses = file["metrics/loss"][:]
        expected = [losses[-1], losses.min(), file["metrics/round"][losses.argmin()]]
        expected += [file["metrics/bytes_sent"][-1], file["metrics/seconds"][-1], 4, 2, 100]
    names = "loss", "best loss", "in round", "bytes sent", "seconds", "workers", "ranks", "planned"
    assert cells(tables["summary"], ["lr=0.2,seed=3", "finished", "topk"], *names) == expected


def test_numbers_that_are_none(found, tables):
    loss, best, accuracy = cells(tables["summary"], ["own"], "loss", "best loss", "accuracy")
    with hdf5(found, "own") as file:
        assert best == np.nanmin(file["metrics/loss"][:])
    assert np.isnan(loss)
    assert accuracy == np.inf
    nothing = cells(tables["summary"], ["empty"], "status", "loss", "best loss", "rounds", "seconds")
    assert nothing == ["finished", None, None, None, None]
    assert cells(tables["time"], ["one"], "seconds", "communication share")[0] == 0


def test_medians_over_seeds(found, tables):
    losses, seconds = [], []
    for seed in range(7):
        with hdf5(found, f"lr=0.1,seed={seed}") as file:
            losses.append(file["metrics/loss"][-1])
            seconds.append(file["metrics/seconds"][-1])
    names = "count", "median", "low", "high"
    assert 1 - 2 * binom.cdf(0, 7, 0.5) >= 0.95 > 1 - 2 * binom.cdf(1, 7, 0.5)
    expected = [7, np.median(losses), min(losses), max(losses)]
    assert cells(tables["medians"], ["lr=0.1", "loss"], *names) == expected
    assert cells(tables["medians"], ["lr=0.1", "seconds", "s"], "median") == [np.median(seconds)]
    assert len(tables["medians"].rows) == 2 * 6


def test_further_metrics_and_workers(found, tables):
    with hdf5(found, "own") as file:
        gap, rows = file["metrics/gap"][-1], file["workers/loss"][-1]
    assert cells(tables["metrics"], ["own"], "gap", "spectrum_age") == [gap, 10]
    assert cells(tables["metrics"], ["lr=0.1,seed=0"], "gap", "bytes_workers") == [None, 2e8]
    names = "workers", "smallest", "largest", "smallest has worker", "largest has worker"
    expected = [3, np.nanmin(rows), np.nanmax(rows), np.nanargmin(rows), np.nanargmax(rows)]
    assert cells(tables["workers"], ["own", "loss"], *names) == expected
    with hdf5(found, "lr=0.1,seed=1") as file:
        rows = np.sort(file["workers/loss"][-1])
    quartiles = "first quartile", "median", "third quartile"
    assert cells(tables["workers"], ["lr=0.1,seed=1"], *quartiles) == list(rows[:3])


def test_time_phases_and_ports(found, tables):
    with hdf5(found, "own") as file:
        phases = [name.decode() for name in file["phases/phase"]]
        largest, mean, smallest = (
            dict(zip(phases, file[f"phases/seconds{k}"][-1], strict=True)) for k in ("", "_mean", "_min")
        )
        seconds = file["metrics/seconds"][-1]
        calls, moved, payload = (file[f"ports/{name}"][-1, 1] for name in ("calls", "bytes", "payload"))
    communication = smallest["reduce.sum"] + smallest["sparse"]
    expected = [
        *(mean["compute"], largest["compute"] / mean["compute"] - 1, communication, communication / seconds),
        *(mean["reduce.sum"] + mean["sparse"] - communication, mean["evaluation"], mean["files"]),
    ]
    names = "compute", "imbalance", "communication", "communication share", "waiting", "evaluation", "files"
    assert cells(tables["time"], ["own"], *names) == pytest.approx(expected)
    expected = [largest["sparse"], mean["sparse"], smallest["sparse"]]
    assert cells(tables["phases"], ["own", "sparse"], "largest", "mean", "smallest") == expected
    expected = [calls, moved, payload]
    assert cells(tables["ports"], ["own", "sparse"], "calls", "bytes", "payload") == expected


def test_a_slow_rank_is_imbalance_and_waiting_not_communication():
    compute = np.array([1.0, 1.0, 3.0])
    port = 0.5 + compute.max() - compute
    table = np.stack([compute, port])
    before = Times.of(["compute", "reduce"], *(np.array([1.0, 0.5]) for _ in range(3)), 1.5)
    after = Times.of(["compute", "reduce"], table.max(1), table.min(1), table.mean(1), 3.5)
    assert (before.imbalance, before.waiting) == (0, 0)
    assert after.imbalance == pytest.approx(3 / (5 / 3) - 1)
    assert (before.communication, after.communication) == (0.5, 0.5)
    assert after.waiting == pytest.approx(4 / 3)
    assert after.share < before.share


def test_staleness_and_spectrum(tables):
    names = "gradients", "mean", "median", "95 % are at most", "largest"
    assert cells(tables["staleness"], ["own"], *names) == [10, 1.2, 0, 3, 3]
    assert [row[1:] for row in tables["spectrum"].rows] == [
        [1, -7.0, 1e-6, 10.0],
        [2, 3.0, 2e-6, 10.0],
        [3, 2.0, pytest.approx(3e-6), 10.0],
        [0, 1.0, 0.0, 10.0],
        [4, 0.5, 4e-6, 10.0],
    ]


def test_differences_and_provenance(tables):
    assert [column.name for column in tables["differences"].columns] == [
        *("run", "run.seed", "method.lr", "method.private"),
    ]
    assert cells(tables["differences"], ["lr=0.2,seed=5"], "run.seed", "method.lr") == [5, 0.2]
    assert cells(tables["differences"], ["own"], "method.private") == ['["[red]"]']
    assert ["commit", "c0ffee", "all"] in tables["provenance"].rows
    expected = ["finished", "rounds", "2026-11-27T10:00:00+00:00", 1, 2]
    assert cells(tables["runs"], ["own"], "status", "stopped by", "begun", "jobs", "hosts") == expected


def study():
    """Two launches on each of 1, 2 and 4 ranks, four blocks each; on 1 rank no port is used."""
    random = np.random.default_rng(0)
    ranks = np.repeat([1, 2, 4], 8)
    seconds = 10 / ranks * (1 + 0.1 * random.random(24))
    each = np.stack([seconds * 0.8, seconds * 0.2, np.full(24, np.nan)], axis=1)
    each[:8, 1] = np.nan
    columns = {
        "ranks": ranks,
        "workers": np.full(24, 8),
        "hosts": np.ones(24, int),
        "cores": np.full(24, 2),
        "rounds": np.full(24, 10),
        "seconds": seconds,
        "overcommitted": (ranks > 2).astype(int),
    }
    variables = {name: ("sample", values) for name, values in columns.items()}
    for name, factor in (("", 1.2), ("_min", 0.5), ("_mean", 1.0)):
        variables[f"phase_seconds{name}"] = (("sample", "phase"), factor * each)
    samples = xarray.Dataset(variables, {"phase": ["compute", "reduce", "files"]})
    root = xarray.Dataset(attrs={"schema": "hpcopt-scaling", "mode": "strong"})
    return xarray.DataTree.from_dict({"/": root, "samples": samples})


def test_scaling():
    tree = study()
    trouble = Trouble("x", "failed")
    tables = {table.name: table for table in for_report(Found([], [Scaling("s", None, tree)], [trouble]))}
    assert list(tables) == ["scaling", "shares", "troubles"]
    seconds = tree["samples/seconds"].values.reshape(3, 8) / 10
    middle, ordered = np.median(seconds, axis=1), np.sort(seconds, axis=1)
    names = "ranks", "samples", "time of a round", "low", "high", "speed-up", "efficiency", "serial fraction"
    found = cells(tables["scaling"], ["s", "strong", 4], *names)
    faster = middle[0] / middle[2]
    expected = [4, 8, middle[2], ordered[2, 0], ordered[2, 7], faster, faster / 4]
    assert found == pytest.approx([*expected, (1 / faster - 1 / 4) / (1 - 1 / 4)])
    assert [row[-1] for row in tables["scaling"].rows] == [None, None, "more ranks than cores"]
    names = "communication share", "imbalance", "waiting share"
    assert cells(tables["shares"], ["s", 2], *names) == pytest.approx([0.1, 0.2, 0.1])
    assert cells(tables["shares"], ["s", 1], *names) == pytest.approx([0, 0.2, 0])
