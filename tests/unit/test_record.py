"""Where the time goes, and what a run cost over all of its jobs."""

import json
import math
import time

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.engine.meter import EVALUATION, FILES, Clock, Totals


def test_the_clock_runs_during_steps_only():
    clock = Clock(torch.device("cpu"))
    clock.start()
    time.sleep(0.05)
    clock.start()  # a second start does not lose what ran
    time.sleep(0.05)
    assert clock.now() >= 0.1
    clock.pause()
    seconds = clock.seconds
    with clock.during(FILES):
        time.sleep(0.05)
    clock.pause()
    assert clock.seconds == clock.now() == seconds >= 0.1
    assert clock.beside[FILES] >= 0.05
    assert clock.beside[EVALUATION] == 0


def port(**values):
    zero = dict.fromkeys(("calls", "bytes", "bytes_workers", "payload", "seconds", "passes"), 0.0)
    return zero | values


def test_totals_of_an_older_run_are_matched_by_name():
    """Old code had no phases and no payload; its ports go on as they were, and nothing is guessed."""
    old = port(bytes=5.0, seconds=2.0)
    del old["payload"]
    before = Totals(10.0, 100.0, {"reduce": old, "sparse.sum": port(calls=3.0, payload=8.0)})
    compute = {"seconds": 1.0, "seconds_min": 0.5, "seconds_mean": 0.75}
    now = Totals(
        1.0, 10.0, {"reduce.sum": port(bytes=1.0), "sparse.sum": port(calls=1.0)}, {"compute": compute}
    )
    total = now.after(before)
    assert list(total.ports) == ["reduce.sum", "sparse.sum", "reduce"]
    assert total.ports["reduce.sum"] == now.ports["reduce.sum"]
    assert total.ports["sparse.sum"] == port(calls=4.0, payload=8.0)
    assert math.isnan(total.ports["reduce"].pop("payload"))
    assert total.ports["reduce"] == old
    assert (total.seconds, total.gradients) == (11.0, 110.0)
    assert np.isnan(list(total.phases["compute"].values())).all()
    assert now.after(now).phases["compute"] == {name: 2 * value for name, value in compute.items()}


def test_a_resumed_run_goes_on_counting(tmp_path):
    """Also from a checkpoint whose ports had other names, and that knew of no phases."""
    problem = hpcopt.LinearRegression(4, dim=6, rows_per_worker=9)
    keys = {"evaluate_every": 2, "seed": 1, "device": "cpu"}
    hpcopt.run(hpcopt.DPSGD(lr=0.01), problem, out=tmp_path / "run", rounds=4, **keys)
    first = hpcopt.load(tmp_path / "run")
    rename_ports(tmp_path / "run/checkpoints/round-00000004.h5")
    data = hpcopt.load(hpcopt.resume(tmp_path / "run", problem=problem, overrides=("run.rounds=6",)))
    ports, phases, metrics = data["ports"], data["phases"], data["metrics"]
    known = first["ports"]["port"].values.tolist()
    assert ports["port"].values.tolist() == [*known, "past"]
    np.testing.assert_array_equal(np.diff(metrics["bytes_workers"]), metrics["bytes_workers"][1])
    assert ports["calls"].sel(port="neighbours")[-1] == 2
    assert ports["calls"].sel(port="past")[-1] == 4
    assert ports["calls"].sel(port="neighbours")[:3].values.tolist() == [0, 2, 4]
    assert metrics["seconds"][-1] > first["metrics/seconds"][-1]
    assert phases["phase"].values.tolist() == ["compute", *known, "evaluation", "files"]
    assert np.isnan(phases["seconds"][-1]).all()
    assert (phases["seconds"][:3] >= 0).all()


def test_phases_add_up_to_the_clock():
    problem = hpcopt.LinearRegression(4, dim=6, rows_per_worker=9)
    data = hpcopt.simulate(hpcopt.GradientTracking(lr=0.01), problem, 6, evaluate_every=3)
    seconds = data["phases/seconds"].drop_sel(phase=["evaluation", "files"])
    since_start = seconds.sum("phase") - seconds.isel(record=0).sum("phase")
    np.testing.assert_allclose(since_start, data["metrics/seconds"], atol=1e-12)
    assert (np.diff(data["phases/seconds"].sel(phase="evaluation")) > 0).all()
    assert data["phases/seconds"].sel(phase="compute")[0] == 0
    phases = data["phases"]
    assert (phases["seconds"] >= phases["seconds_mean"]).all()
    assert (phases["seconds_mean"] >= phases["seconds_min"]).all()


class Scored:
    """A problem with a measure that is no mean over workers."""

    workers = 4

    def bind(self, share):
        task = hpcopt.LinearRegression(4, dim=6, rows_per_worker=9).bind(share)
        task.scores = lambda X, buffers=None: {"median": X.expand(share.n, -1).double()}
        task.score = lambda name, rows: float(rows.median()) if rows.shape == (4, 6) else math.nan
        return task


def test_what_is_no_mean_over_workers_is_computed_from_all_rows():
    tree, state = hpcopt.simulate(hpcopt.Local(lr=0.01), Scored(), 4, return_state=True)
    assert tree["metrics/median"][-1] == float(state.X.median())
    assert tree["metrics/global_median"][-1] == float(state.X.mean(0).expand(4, -1).median())


def rename_ports(path):
    """Makes a checkpoint one of older code."""
    h5py = pytest.importorskip("h5py")
    crc32c = pytest.importorskip("crc32c").crc32c
    with h5py.File(path, "r+") as file:
        meta = json.loads(file["meta"][...].tobytes())
        totals = meta["totals"]
        totals["ports"]["past"] = totals["ports"].pop("neighbours")
        del totals["phases"]
        text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
        del file["meta"]
        file["meta"] = text
        file["meta"].attrs["crc32c"] = crc32c(text.data)
