"""run.h5: readable in every state that a killed job can leave, cut and extended without a gap."""

import os
import pickle
import resource
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest
import xarray

import hpcopt
from hpcopt.errors import UserError
from hpcopt.storage.metrics import Records, RunFile, Schema, read_header, read_records

SCHEMA = Schema(
    {
        "metrics/round": ("record",),
        "metrics/loss": ("record",),
        "workers/loss": ("record", "worker"),
        "ports/bytes": ("record", "port"),
        "staleness/count": ("delay",),
        "spectrum/eigenvalue": ("refresh", "pair"),
    },
    {"record": 10, "delay": 6, "refresh": 4},
    {"worker": [0, 1, 2], "port": ["reduce.sum"], "pair": [0, 1]},
)
GROUPS = ("metrics", "workers", "ports", "staleness", "spectrum")


def record(round):
    """One whose every number tells the round; arrays grow with it, up to their room."""
    return {
        "metrics/loss": round / 10,
        "metrics/round": round,
        "workers/loss": [round, round + 1, round + 2],
        "ports/bytes": [8 * round],
        "staleness/count": [round] * min(6, round + 1),
        "spectrum/eigenvalue": np.full((min(4, round), 2), round),
    }


def check(path, rounds):
    """That a file holds exactly these records, and its arrays as of the last one."""
    with hpcopt.load(path) as data:
        assert data["metrics/round"].values.tolist() == rounds
        assert data["metrics/loss"].values.tolist() == [r / 10 for r in rounds]
        assert data["workers/loss"].values.tolist() == [[r, r + 1, r + 2] for r in rounds]
        last = rounds[-1] if rounds else 0
        assert data["staleness/count"].values.tolist() == [last] * min(6, last + 1) * bool(rounds)
        assert data["spectrum/eigenvalue"].values.tolist() == [[last, last]] * min(4, last)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.h5"


@pytest.fixture
def file(path):
    """A running job's file, with records of rounds 0 to 3."""
    file = RunFile.create(path, SCHEMA, {"method": "m"}, 5.0)
    for round in range(4):
        file.append(record(round))
    yield file
    file.close()


def test_every_group_comes_back_while_running_and_afterwards(path, file):
    check(path, [0, 1, 2, 3])
    file.append(record(4))
    check(path, [0, 1, 2, 3, 4])  # the other copy of arrays
    file.finish({"stopped_by": "rounds"})
    check(path, [0, 1, 2, 3, 4])
    data = hpcopt.load(path.parent)
    assert data["ports/bytes"].sel(port="reduce.sum").values.tolist() == [0, 8, 16, 24, 32]
    assert (data.attrs["method"], data.attrs["stopped_by"]) == ("m", "rounds")
    assert read_header(path)["stopped_by"] == "rounds"


def test_a_finished_file_is_plain_netcdf_of_what_is_valid(path, file):
    file.finish({})
    sizes = {}
    for group in GROUPS:
        with xarray.open_dataset(path, group=group, engine="h5netcdf") as data:
            sizes |= dict(data.sizes)
            assert set(data.coords) == set(data.sizes)
            assert all("units" in data[name].attrs for name in data.variables)
    assert sizes == {"record": 4, "worker": 3, "port": 1, "delay": 4, "refresh": 3, "pair": 2}
    with h5py.File(path) as raw:
        assert set(raw) == {*GROUPS, "digests"}
        assert raw["ports/bytes"].attrs["units"] == "B"
        assert raw["staleness/count"].dtype == raw["metrics/round"].dtype == np.int64


def test_only_places_that_no_reader_takes_change_while_a_job_runs(path, file):
    """So that no moment of death can leave a file that does not open, or another record."""
    before = np.frombuffer(path.read_bytes(), np.uint8)
    file.append(record(4))
    after = np.frombuffer(path.read_bytes(), np.uint8)
    changed = set(np.flatnonzero(before != after).tolist())
    allowed = set()
    with h5py.File(path) as raw:
        digests = dict.fromkeys(["digests/row", "digests/arrays"], ("record",))
        for name, dims in (SCHEMA.columns | digests).items():
            if dims[0] == "record":  # the fifth row
                row = raw[name][:1].nbytes
                start = raw[name].id.get_offset() + 4 * row
                allowed |= set(range(start, start + row))
            else:  # four records count with the first copy, five with the twin
                for data in raw[f"twin/{name.partition('/')[0]}"].values():
                    start = data.id.get_offset()
                    allowed |= set(range(start, start + data.nbytes))
    assert changed
    assert changed <= allowed


def test_death_in_the_middle_of_any_write_leaves_the_record_before(path, monkeypatch):
    real, dying = os.pwrite, [0]

    def dies(descriptor, data, offset):
        dying[0] -= 1
        if dying[0] == 0:
            real(descriptor, data[: len(data) // 2], offset)
            raise KeyboardInterrupt
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", dies)
    file = RunFile.create(path, SCHEMA, {}, 5.0)
    done, writes = [], 1
    while len(done) < 3:
        dying[0] = writes
        try:
            file.append(record(len(done)))
        except KeyboardInterrupt:
            check(path, done)
            writes += 1
        else:
            assert writes > 6  # all columns, arrays and their coordinates had their turn
            done.append(len(done))
            writes = 1
    check(path, [0, 1, 2])
    file.close()


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
from test_metrics_file import SCHEMA, RunFile, record
from dataclasses import replace
schema = replace(SCHEMA, capacity=SCHEMA.capacity | {"record": 10**6})
file = RunFile.create(Path(sys.argv[2]), schema, {}, 5.0)
print("ready", flush=True)
for round in range(10**6):
    file.append(record(round))
"""


def test_whoever_reads_while_a_job_writes_and_after_it_was_killed_sees_whole_records(path):
    job = subprocess.Popen(
        [sys.executable, "-c", WRITER, __file__, path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert job.stdout.readline() == b"ready\n", job.stderr.read()
        seen = set()
        for read in range(5000):
            if read >= 50 and len(seen) > 10:  # it does write meanwhile
                break
            with read_records(path) as found:
                seen.add(found.count)
                last = found.count - 1
                assert found["metrics/round"].tolist() == list(range(found.count))
                if last >= 0:
                    assert found["staleness/count"].tolist() == [last] * min(6, last + 1)
                    assert found["spectrum/eigenvalue"].tolist() == [[last, last]] * min(4, last)
    finally:
        job.send_signal(signal.SIGKILL)
        job.communicate(timeout=300)
    assert len(seen) > 10
    check(path, list(range(read_records(path).count)))


def test_a_reader_that_is_overtaken_between_two_arrays_reads_again(path, file, monkeypatch):
    real, later = Records._all, [record(5), record(4)]

    def slow(self, name):
        if name.endswith("spectrum/eigenvalue"):
            while later:
                file.append(later.pop())
        return real(self, name)

    monkeypatch.setattr(Records, "_all", slow)
    check(path, [0, 1, 2, 3, 4, 5])


def test_a_column_may_appear_late_and_records_may_be_more_than_foretold(path, file):
    file.append(record(4) | {"metrics/accuracy": 0.5, "workers/accuracy": [1, 2, 3]})
    for round in range(5, 31):
        file.append(record(round))
    file.append(record(31) | {"metrics/accuracy": 0.75, "staleness/count": [31] * 9})
    file.close()
    found = read_records(path)
    assert found["metrics/round"].tolist() == list(range(32))
    known = np.flatnonzero(~np.isnan(found["metrics/accuracy"])).tolist()
    assert known == [4, 31]
    assert found["workers/accuracy"][4].tolist() == [1, 2, 3]
    assert found["staleness/count"].tolist() == [31] * 9
    assert read_header(path)["method"] == "m"
    with pytest.raises(ValueError, match="quantile/loss"):
        file.append(record(32) | {"quantile/loss": 1.0})


def test_going_on_cuts_to_the_checkpoint_and_matches_by_name_and_label(path, file):
    file.append(record(4) | {"metrics/late": 4.0})
    file.close()
    columns = SCHEMA.columns | {"ports/calls": ("record", "port")}
    ports = ["sparse.sum", "reduce.sum"]
    schema = Schema(columns, SCHEMA.capacity, SCHEMA.dimensions | {"port": ports})
    file = RunFile.reopen(path, schema, {"method": "n"}, 5.0, up_to=2)
    assert file.count == 3
    assert read_records(path)["staleness/count"].tolist() == [4] * 5  # until the method hands over its own
    more = {"ports/bytes": [5, 6], "ports/calls": [1, 1]}
    file.append(record(3) | more)
    file.finish({})
    check(path, [0, 1, 2, 3])
    data = hpcopt.load(path)
    assert data["ports/bytes"].sel(port="reduce.sum").values.tolist() == [0, 8, 16, 6]
    np.testing.assert_array_equal(data["ports/bytes"].sel(port="sparse.sum"), [np.nan] * 3 + [5])
    np.testing.assert_array_equal(data["ports/calls"].sel(port="sparse.sum"), [np.nan] * 3 + [1])
    assert np.isnan(data["metrics/late"].values).all()
    assert data.attrs["method"] == "n"
    other = SCHEMA.columns | {"metrics/loss": ("record", "worker")}
    with pytest.raises(UserError, match=r"run\.h5: metrics/loss has dimensions"):
        RunFile.reopen(path, Schema(other, SCHEMA.capacity, SCHEMA.dimensions), {}, 5.0, up_to=2)


def test_results_outlive_what_becomes_of_the_file_and_are_never_stale(path, file, monkeypatch):
    monkeypatch.setattr("hpcopt.report.load.SMALL_BYTES", 0)  # as a large one
    early = hpcopt.load(path)
    first = early["metrics/loss"].values.tolist()
    file.append(record(4))
    assert hpcopt.load(path)["metrics/loss"].values.tolist() == [*first, 0.4]
    file.append(record(5) | {"metrics/late": 1.0})
    file.finish({})
    path.unlink()
    assert early["workers/loss"].values.tolist() == [[r, r + 1, r + 2] for r in range(4)]
    assert early["workers/loss"][::-2, [2, 0]].values.tolist() == [[5, 3], [3, 1]]
    elsewhere = pickle.loads(pickle.dumps(early))
    early.close()
    elsewhere.close()
    assert elsewhere["ports/bytes"].values[:, 0].tolist() == [0, 8, 16, 24]
    with pytest.raises(ValueError, match="closed"):
        early["ports/bytes"].load()


def test_hundreds_of_small_runs_are_loaded_at_once(path, file):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
    try:
        trees = [hpcopt.load(path) for _ in range(100)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    file.append(record(4))
    assert all(len(tree["metrics/loss"]) == 4 for tree in trees)


def foreign(path, **attributes):
    with h5py.File(path, "w") as file:
        file.attrs.update(attributes)
        file["metrics/round"] = np.arange(3)


def test_a_file_that_is_not_ours_or_newer_is_refused(path):
    for content in (b"", b"not hdf5", b"\x89HDF\r\n\x1a\n" + b"\0" * 100):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"run\.h5: not a readable run"):
            hpcopt.load(path)
    foreign(path)
    with pytest.raises(UserError, match=r"run\.h5: not a run\.h5 of hpcopt"):
        hpcopt.load(path)
    foreign(path, schema="hpcopt-run", schema_version=3)
    for read in (hpcopt.load, read_records, read_header):
        with pytest.raises(UserError, match=r"run\.h5: was written by a newer hpcopt: .* 3"):
            read(path)
    foreign(path, schema="hpcopt-run", schema_version=2)  # ours, says who wrote it, but it has no dimensions
    with pytest.raises(UserError, match=r"run\.h5: not a readable run"):
        hpcopt.load(path)
    with pytest.raises(UserError, match="no such file"):
        hpcopt.load(path.parent / "elsewhere")


LARGE = """
import sys
from pathlib import Path
import numpy as np
import hpcopt
from hpcopt.ground import files
from hpcopt.storage.digests import of_known
from hpcopt.storage.metrics import RunFile, Schema

files.sync = lambda path: None  # how long the disk takes is not the question
path, rounds = Path(sys.argv[1]), 400_000
schema = Schema(
    {"metrics/round": ("record",), "metrics/loss": ("record",), "workers/loss": ("record", "worker")},
    {"record": rounds},
    {"worker": list(range(128))},
)
record = {"metrics/loss": 0.5, "workers/loss": np.arange(128.0)}
file = RunFile.create(path, schema, {}, 1e9)
for round in range(3):
    file.append(record | {"metrics/round": round})
with path.open("r+b") as raw:  # as if all of its records were there
    raw.seek(file._places["metrics/round"].offset)
    raw.write(np.arange(rounds).tobytes())
    raw.seek(file._places["digests/row"].offset + 3 * 8)
    rows = of_known(schema, {"metrics/round": np.arange(rounds)})["digests/row"]
    for start in range(3, rounds, 4096):
        raw.write(rows[start : start + 4096].tobytes())
file.finish({})
data = hpcopt.load(path)
assert data["metrics/loss"].shape == (rounds,)
assert data["metrics/loss"].values[:2].tolist() == [0.5, 0.5]
assert data["workers/loss"].shape == (rounds, 128)
assert data["workers/loss"].sel(worker=7).values[:2].tolist() == [7, 7]
few = Schema(schema.columns, {"record": 10}, schema.dimensions)
assert RunFile.reopen(path, few, {}, 1e9, up_to=1).count == 2
status = Path("/proc/self/status").read_text()  # ru_maxrss would be that of the tests where it is more
print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
"""


def test_many_records_of_128_workers_need_little_memory(path):
    result = subprocess.run([sys.executable, "-c", LARGE, path], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    path.unlink()
    assert float(result.stdout) < 250  # MiB, of which Python with xarray takes 100; the numbers are 400
