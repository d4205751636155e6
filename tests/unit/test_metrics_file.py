"""run.h5: readable in every state that a killed job can leave, cut and extended without a gap."""

import h5py
import numpy as np
import pytest
import xarray

import hpcopt
from hpcopt.errors import UserError
from hpcopt.storage.metrics import RunFile, Schema, read_records

SCHEMA = Schema(
    {"metrics/round": (), "metrics/loss": (), "workers/loss": ("worker",), "ports/bytes": ("port",)},
    {"worker": [0, 1, 2], "port": ["reduce"]},
)


def record(round):
    return {
        "metrics/round": round,
        "metrics/loss": round / 10,
        "workers/loss": [round, round + 1, round + 2],
        "ports/bytes": [8 * round],
    }


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


def test_round_trip_through_xarray(path):
    file = RunFile.create(path, SCHEMA, 10, {"method": "m"}, 5.0)
    for round in (0, 5, 10):
        file.append(record(round))
    running = hpcopt.load(path)
    assert running["metrics/round"].values.tolist() == [0, 5, 10]
    file.finish({"stopped_by": "rounds"})
    data = hpcopt.load(path.parent)
    assert data["workers/loss"].values.tolist() == [[0, 1, 2], [5, 6, 7], [10, 11, 12]]
    assert data["ports/bytes"].sel(port="reduce").values.tolist() == [0, 40, 80]
    assert data.attrs["method"] == "m"
    assert data.attrs["stopped_by"] == "rounds"
    metrics = xarray.open_dataset(path, group="metrics", engine="h5netcdf")
    assert dict(metrics.sizes) == {"record": 3}
    with h5py.File(path) as raw:
        assert raw["metrics/loss"].attrs["units"] == "1"


def test_nothing_but_record_bytes_changes_while_a_job_runs(path):
    """So that no moment of death can leave a file that does not open."""
    file = RunFile.create(path, SCHEMA, 4, {}, 0.0)
    before = path.read_bytes()
    file.append(record(0))
    after = path.read_bytes()
    assert len(before) == len(after)
    changed = {at for at, (a, b) in enumerate(zip(before, after, strict=True)) if a != b}
    with h5py.File(path) as raw:
        rows = {name: (raw[name].id.get_offset(), raw[name][:1].nbytes) for name in SCHEMA.columns}
    allowed = {at for offset, nbytes in rows.values() for at in range(offset, offset + nbytes)}
    assert changed
    assert changed <= allowed


def test_a_record_without_its_round_does_not_count(path, monkeypatch):
    import os

    file = RunFile.create(path, SCHEMA, 4, {}, 5.0)
    file.append(record(0))
    real, written = os.pwrite, []

    def dies_at_the_third(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(os, "pwrite", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        file.append(record(5))
    assert hpcopt.load(path)["metrics/round"].values.tolist() == [0]


def test_going_on_cuts_to_the_checkpoint_and_makes_room(path):
    file = RunFile.create(path, SCHEMA, 4, {}, 5.0)
    for round in (0, 5, 10, 15):
        file.append(record(round))
    file.close()
    file = RunFile.reopen(path, SCHEMA, 9, {}, 5.0, up_to=10)
    for round in (15, 20):
        file.append(record(round))
    file.finish({})
    assert read_records(path)["metrics/round"].tolist() == [0, 5, 10, 15, 20]
    assert np.array_equal(read_records(path)["workers/loss"][:, 0], [0, 5, 10, 15, 20])


@pytest.mark.parametrize("content", [b"", b"not hdf5", b"\x89HDF\r\n\x1a\n" + b"\0" * 100])
def test_what_is_no_run_is_said(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"run\.h5"):
        hpcopt.load(path)
    with pytest.raises(UserError, match="no such file"):
        hpcopt.load(path.parent / "elsewhere")
