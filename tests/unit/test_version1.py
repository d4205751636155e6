"""Runs that schema version 1 wrote: read, extended, and their counters taken over."""

import math

import h5py
import numpy as np
import pytest

import hpcopt
from hpcopt.errors import UserError
from hpcopt.storage.metrics import RunFile, Schema
from hpcopt.storage.version1 import COUNTERS, carried

OLD = dict.fromkeys(COUNTERS, 7.0)


def write_run(path):
    """A run.h5 as version 1 left it when it was killed: two records, room for four."""
    with h5py.File(path, "w", libver=("v108", "v110")) as file:
        file.attrs.update({"schema": "hpcopt-run", "schema_version": 1, "method": "m"})
        columns = {
            "metrics/round": np.array([0, 5, -1, -1]),
            "metrics/loss": np.array([1.0, 0.5, np.nan, np.nan]),
            "ports/bytes": np.array([[0, 0], [80, 8], [np.nan] * 2, [np.nan] * 2]),
        }
        for name, values in columns.items():
            group = file.require_group(name.partition("/")[0])
            dataset = file.create_dataset(name, data=values)
            dataset.attrs["units"] = "1"
            for axis, dim in enumerate(("record", "port")[: values.ndim]):
                if dim not in group:
                    labels = {"record": np.arange(4), "port": np.array(["reduce", "sparse"], dtype=object)}[
                        dim
                    ]
                    group.create_dataset(dim, data=labels).make_scale(dim)
                dataset.dims[axis].label = dim
                dataset.dims[axis].attach_scale(group[dim])


def test_its_records_are_read_and_extended(tmp_path):
    path = tmp_path / "run.h5"
    write_run(path)
    data = hpcopt.load(tmp_path)
    assert data["metrics/loss"].values.tolist() == [1.0, 0.5]
    assert data["ports/bytes"].sel(port="sparse").values.tolist() == [0, 8]
    ports = ["reduce", "sparse", "reduce.sum"]
    columns = {"metrics/round": ("record",), "metrics/loss": ("record",), "ports/bytes": ("record", "port")}
    file = RunFile.reopen(path, Schema(columns, {"record": 4}, {"port": ports}), {}, 5.0, up_to=5)
    file.append({"metrics/round": 10, "metrics/loss": 0.25, "ports/bytes": [80, 8, 40]})
    file.finish({})
    data = hpcopt.load(tmp_path)
    assert data.attrs["schema_version"] == 2
    assert data["metrics/round"].values.tolist() == [0, 5, 10]
    assert data["ports/bytes"].sel(port="reduce").values.tolist() == [0, 80, 80]
    np.testing.assert_array_equal(data["ports/bytes"].sel(port="reduce.sum"), [np.nan, np.nan, 40])


def meta(version, **ports):
    return {"schema_version": version, "totals": {"seconds": 1.5, "gradients": 20.0, "ports": ports}}


def test_its_ports_stay_beside_todays():
    before = meta(1, reduce=OLD, sparse=OLD)
    totals = carried(before, ["reduce.sum", "reduce.scalars"], [*COUNTERS, "payload"], "here")
    assert (totals["seconds"], totals["gradients"]) == (1.5, 20.0)
    assert list(totals["ports"]) == ["reduce", "sparse", "reduce.sum", "reduce.scalars"]
    assert {key: totals["ports"]["reduce"][key] for key in COUNTERS} == OLD
    assert math.isnan(totals["ports"]["sparse"]["payload"])  # was not counted: nobody knows
    assert set(totals["ports"]["reduce.sum"].values()) == {0.0}
    again = carried(before | {"schema_version": 2, "totals": totals}, ["reduce.sum"], [*COUNTERS], "here")
    assert list(again["ports"]) == list(totals["ports"])
    assert sum(port["bytes"] for port in again["ports"].values()) == 14.0


@pytest.mark.parametrize(
    ("ports", "today"),
    [
        ({"reduce": OLD}, ["reduce"]),  # another port of that name
        ({"reduce.sum": OLD}, ["reduce.sum"]),
        ({"reduce": OLD | {"payload": 1.0}}, ["reduce.sum"]),
    ],
)
def test_what_it_cannot_have_written_is_refused(ports, today):
    with pytest.raises(UserError, match=r"^here: "):
        carried(meta(1, **ports), today, COUNTERS, "here")
