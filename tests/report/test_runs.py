"""What is found behind paths, in good and in bad condition."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np

from hpcopt.report.naming import names
from hpcopt.report.runs import alike, find
from hpcopt.storage import lease
from tests.report import made_up

VERSION1 = Path(__file__).parents[1] / "data" / "version1"
ELSEWHERE = dict.fromkeys(lease.FIELDS, "") | {"machine": "another", "token": "t"}


def status(directory):
    """Of the only run there."""
    (run,) = find([directory]).runs
    return run.status


def owner(directory, beat, **about):
    """Writes an owner.json."""
    (directory / lease.NAME).write_text(f"{beat:0{lease.DIGITS}}\n{json.dumps(ELSEWHERE | about)}\n")


def test_finished_and_diverged(tmp_path):
    assert status(made_up.run(tmp_path / "a")) == "finished"
    diverged = made_up.ENDED | {"stopped_by": "not finite"}
    assert status(made_up.run(tmp_path / "b", about=diverged)) == "diverged"
    assert status(VERSION1 / "momentum") == "finished"


def test_killed_stopped_and_empty(tmp_path):
    assert status(VERSION1 / "killed") == "killed"
    run = made_up.run(tmp_path / "a", about={"end": ""})
    assert status(run) == "killed"
    (run / "log.jsonl").write_text('{"event": "start"}\n{"event": "interrupted", "round": 3}\n')
    assert status(run) == "stopped"
    (run / "log.jsonl").write_text('{"event": "interrupted"}\n{"event": "star')
    assert status(run) == "killed"
    assert status(made_up.run(tmp_path / "b", records=0, about={"end": ""})) == "empty"
    assert status(made_up.run(tmp_path / "c", records=1, about={"end": ""})) == "killed"


def test_one_that_goes_on_has_an_owner_that_lives(tmp_path):
    run = made_up.run(tmp_path / "a", about={"end": ""})
    held = lease.Lease(run)
    held.take()
    assert status(run) == "running"
    held.release()
    assert status(run) == "killed"
    program = (
        "import os, sys; from pathlib import Path; from hpcopt.storage.lease import Lease\n"
        "Lease(Path(sys.argv[1])).take(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", program, run], timeout=60, check=False).returncode == 9
    assert (run / lease.NAME).exists()
    assert status(run) == "killed"


def test_of_an_owner_on_another_host_the_heartbeat_tells(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.2)
    runs = [made_up.run(tmp_path / name, about={"end": ""}) for name in ("a", "b", "c")]
    beats, sleep = iter(range(1, 100)), lease.time.sleep
    for run in runs:
        owner(run, 0)
    os.utime(runs[2] / lease.NAME, (1e9, 1e9))  # for years nobody has written there

    def slept(seconds):
        owner(runs[0], next(beats))
        sleep(seconds)

    monkeypatch.setattr("hpcopt.report.status.time.sleep", slept)
    assert [run.status for run in find(runs).runs] == ["running", "killed", "killed"]


def test_what_cannot_be_read_is_named_and_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr("hpcopt.report.crashers.PATIENCE", 3)
    good = made_up.run(tmp_path / "good")
    whole = (good / "run.h5").read_bytes()
    bad = {
        "cut": whole[: len(whole) // 2],
        "text": b"round,loss\n0,1\n",
        "nothing": b"",
        "hangs": whole[:600] + bytes(64) + whole[664:],
    }
    for name, content in bad.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.h5").write_bytes(content)
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["metrics/loss"] = np.ones(3)
    made_up.run(tmp_path / "newer")
    with h5py.File(tmp_path / "newer/run.h5", "r+") as file:
        file.attrs["schema_version"] = 99
    made_up.run(tmp_path / "config", about={"config": "[1"})
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun/config.toml").touch()
    (tmp_path / "else").mkdir()
    os.mkfifo(tmp_path / "fifo")
    paths = [tmp_path / name for name in ("good", *bad, "theirs.h5", "newer", "config", "begun", "else")]
    found = find([*paths, tmp_path / "fifo", tmp_path / "absent"])
    assert [run.name for run in found.runs] == ["good"]
    told = {Path(trouble.path).name: trouble.message for trouble in found.troubles}
    assert len(told) == len(paths) + 1
    assert "not a run.h5 of hpcopt" in told["theirs.h5"]
    assert "newer hpcopt" in told["newer"]
    assert "no record yet" in told["begun"]
    assert "holds no run" in told["else"]
    assert "no such file" in told["absent"]
    assert all(told[name] for name in ("cut", "text", "nothing", "config", "fifo"))
    assert "HDF5 crashes or hangs" in told["hangs"]


def test_a_file_at_which_hdf5_crashes_ends_nothing(tmp_path, monkeypatch):
    good, bad = (made_up.run(tmp_path / name) for name in ("good", "bad"))
    monkeypatch.setattr("hpcopt.report.crashers._structure", _crash)
    found = find([bad, good])
    assert [run.path for run in found.runs] == [good]
    assert "HDF5 crashes" in found.troubles[0].message


def _crash(place):
    if place.name == "bad":
        os._exit(1)


def test_a_file_that_is_cut_is_found_out_though_it_is_read_later(tmp_path):
    run = made_up.run(tmp_path / "a", records=60_000)
    size = (run / "run.h5").stat().st_size
    assert size > 16 << 20
    os.truncate(run / "run.h5", size // 2)
    assert not find([run]).runs


def test_a_sweep_and_its_failures(tmp_path):
    cases = ("lr=0.1,seed=0", "lr=0.1,seed=1", "lr=0.2,seed=0", "lr=9", "lr=10")
    (tmp_path / "sweep.toml").write_text("".join(f'[[cases]]\nname = "{name}"\n' for name in cases))
    for name in cases[:3]:
        lr, seed = (float(part.partition("=")[2]) for part in name.split(","))
        made_up.run(tmp_path / "cases" / name, seed=int(seed), settings={"lr": lr})
    (tmp_path / "failed").mkdir()
    failure = {"exit_code": 4, "message": "the loss is \x1b[31mnan"}
    (tmp_path / "failed/lr=9.json").write_text(json.dumps(failure))
    (tmp_path / "failed/lr=8.json").write_text("[")
    found = find([tmp_path, tmp_path / "cases/lr=0.1,seed=0/run.h5"])
    assert [run.name for run in found.runs] == ["lr=0.1,seed=0", "lr=0.1,seed=1", "lr=0.2,seed=0"]
    assert [(group.name, len(group.runs)) for group in alike(found.runs)] == [
        ("lr=0.1", 2),
        ("lr=0.2,seed=0", 1),
    ]
    assert found.troubles[1].message == r"failed with exit code 4: the loss is \x1b[31mnan"
    assert "not readable" in found.troubles[0].message
    assert [trouble.message for trouble in found.troubles[2:]] == ["1 of 5 cases have no record yet"]


def test_names_are_as_short_as_can_be_and_printable():
    paths = [Path(name) for name in ("/x/a/run", "/x/b/run", "/x/c", "/y/\x1b[2J\u202e", "/z/n\udc80")]
    assert names(paths) == ["a/run", "b/run", "c", r"\x1b[2J\u202e", r"n\udc80"]


def test_runs_on_other_ranks_are_not_alike(tmp_path):
    runs = [
        made_up.run(tmp_path / f"s{k}", seed=k, about=made_up.ENDED | {"ranks": r})
        for k, r in enumerate((1, 1, 2))
    ]
    groups = alike(find(runs).runs)
    assert [(group.name, len(group.runs)) for group in groups] == [("s", 2), ("s2", 1)]
