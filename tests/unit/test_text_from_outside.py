"""Paths and values travel as they are, and what comes from outside does no harm to a terminal, or a job."""

import io
import json
import os
import sys
import threading

import pytest

import hpcopt
from hpcopt.cluster import follow, jobs, registry
from hpcopt.cluster.render import render
from hpcopt.cluster.slurm import QueuedJob
from hpcopt.cluster.submit import Order, prepare
from hpcopt.control import launcher
from hpcopt.ground import terminal

ESCAPE = "\x1b]0;mine\x07\x1b[31m"
CONFIG = '[run]\nworkers = 2\nrounds = 3\n[problem]\nkind = "quadratic"\ndim = 3\n[method]\nlr = 0.001\n'
PROBLEM = hpcopt.Quadratic(2, "power", 3)


@pytest.fixture
def command(command, tmp_path, monkeypatch):
    """That of all tests, with progress in lines and a config."""
    monkeypatch.setenv("HPCOPT_PROGRESS", "lines")
    (tmp_path / "config.toml").write_text(CONFIG)
    return command


@pytest.mark.parametrize(
    "name", ["exp-😀", "a[b]c[red]", "ä 'quoted\"", "-50%", "2026-11-27", "true", "a\nb"]
)
def test_d16_a_directory_has_exactly_the_name_that_was_given(name, command, tmp_path):
    code, out, err = command("run", "config.toml", f"--out=runs/{name}")
    assert code == 0, err
    assert os.listdir(tmp_path / "runs") == [name]
    assert f"results: runs/{name}/run.h5".replace("\n", "\\n") in out
    code, _, err = command("resume", f"runs/{name}", "--set", "run.rounds=4")
    assert code == 0, err
    assert os.listdir(tmp_path / "runs") == [name]
    assert hpcopt.load(tmp_path / "runs" / name).attrs["last_round"] == 4


def test_d16_a_bar_shows_text_as_it_is(command, monkeypatch):
    monkeypatch.setenv("HPCOPT_PROGRESS", "bar")
    code, _, err = command("run", "config.toml", "--out", "runs/[/b][red]")
    assert code == 0, err
    monkeypatch.setenv("HPCOPT_PROGRESS", "lines")
    code, _, err = command("resume", "runs/[/b][red]")
    assert "runs/[/b][red]: already finished" in err


def test_d16_a_requeued_job_finds_the_directory_that_it_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text(CONFIG)
    resources = {"nodes": 1, "ntasks_per_node": 1, "cpus_per_task": 1, "time": "10"}
    out = tmp_path / "runs" / "exp-😀"
    request, site = prepare(Order(tmp_path / "config.toml", resources, out=out))
    assert request.directory == str(out)
    assert f"directory='{out}'" in render(request, site)


@pytest.mark.parametrize("how", ["--out=~/r", "--out ~/r", "--set run.out=~/r", "python", "config"])
def test_d16_a_path_from_the_user_may_begin_at_home(how, command, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    if how == "python":
        hpcopt.run(hpcopt.AllreduceSGD(lr=0.001), PROBLEM, out="~/r", rounds=1)
    elif how == "config":
        (tmp_path / "config.toml").write_text(CONFIG.replace("rounds", 'out = "~/r"\nrounds'))
        assert command("run", "config.toml")[0] == 0
    else:
        assert command("run", "config.toml", *how.split(" "))[0] == 0
    assert (tmp_path / "home/r/run.h5").exists()
    assert not (tmp_path / "~").exists()
    assert hpcopt.load("~/r").attrs["last_round"] > 0


@pytest.fixture
def noted(tmp_path, monkeypatch):
    """A job of a run's directory, as Slurm and jobs.jsonl tell it, full of escape sequences."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    directory = tmp_path / "run"
    directory.mkdir()
    registry.note(registry.Entry("7", ESCAPE, str(directory / "job.sbatch"), [str(directory)], False, "2026"))
    job = QueuedJob("7", "RUNNING", ESCAPE, "1:00", "1", "hpcopt", str(directory / "job.sbatch"), ESCAPE)
    monkeypatch.setattr(jobs, "queue", lambda limit: [job])
    return directory


BAD = [
    "7",
    "null",
    "[]",
    '"text"',
    "{",
    '{"event": "record", "round": "x"}',
    '{"event": "record", "round": 1e999}',
    '{"event": "record", "round": [1], "loss": {"a": 1}}',
    '{"event": "record", "loss": "\\u001b[2J"}',
    '{"event": {}, "time": []}',
    '{"event": "message", "text": "\\u001b[2J\\nhpcopt: error"}',
    "[" * 50_000,
    "\x00",
]


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_d16_one_bad_line_of_a_log_ends_nothing(line, noted):
    good = json.dumps({"event": "record", "round": 5, "loss": 0.5, "seconds": 1.0})
    (noted / "log.jsonl").write_text(f"{line}\n{good}\n{line}\n")
    (noted / "status").write_text(f'{line}\n{{"job": "7", "state": ["done"], "code": {{}}}}\n')
    (noted / "config.toml").write_text("[run]\nrounds = inf\n")
    with registry.place().open("a") as file:
        file.write(line + '\n{"job": 1, "name": 2, "script": 3, "directories": 4, "array": 5, "time": 6}\n')
    table = jobs.table(everything=True)
    assert len(table.splitlines()) == 2
    assert all(letter.isprintable() for letter in table.replace("\n", ""))
    said = []
    log = follow._Log(noted)
    assert sum(1 for event in log.new() if event.get("round") == 5) == 1
    for event in follow._Log(noted).new():
        said.append(terminal.printable(follow.describe(event, None)))
    assert all(text.isprintable() for text in said)


def test_d16_what_squeue_says_reaches_no_terminal_as_it_is(noted, command):
    code, out, _ = command("jobs")
    assert code == 0
    assert r"\x1b]0;mine\x07\x1b[31m" in out
    assert "\x1b" not in out


def test_d16_attributes_of_a_data_file_reach_no_terminal_as_they_are(command, tmp_path):
    import h5py
    import numpy as np

    with h5py.File(tmp_path / "data.h5", "w") as file:
        file.attrs.update(
            {"schema": "hpcopt-data", "schema_version": 1, "mean": 0.0, "std": 1.0, "source": ESCAPE}
        )
        file["train/x"], file["train/y"] = np.zeros((3, 2)), np.zeros(3)
    code, out, _ = command("data", "info", "data.h5")
    assert code == 0
    assert r"source: \x1b]0;mine" in out
    assert "\x1b" not in out


class Ascii(io.StringIO):
    encoding = "ascii"


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


class Full(io.StringIO):
    def flush(self):
        raise OSError(28, "No space left on device")


CLOSED = io.StringIO()
CLOSED.close()


@pytest.mark.parametrize("style", ["bar", "lines"])
@pytest.mark.parametrize("stream", [None, CLOSED, Ascii(), Broken(), Full()], ids=lambda s: type(s).__name__)
def test_c15_no_run_ends_for_want_of_a_stream(stream, style, tmp_path, monkeypatch):
    monkeypatch.setenv("HPCOPT_PROGRESS", style)
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, stream)
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.001), PROBLEM, out=tmp_path / "ä", rounds=2)
    assert hpcopt.load(tmp_path / "ä").attrs["stopped_by"] == "rounds"
    if isinstance(stream, Ascii):
        assert r"\xe4/run.h5" in stream.getvalue()


def test_c15_a_command_whose_result_cannot_be_written_says_so(command, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Full())
    code, _, err = command("init", "topk")
    assert (code, err) == (2, "hpcopt: error: stdout: cannot be written (No space left on device)\n")


@pytest.mark.parametrize(
    ("value", "threads"), [("", 1), ("4,2", 4), ("x", 1), ("-3", 1), ("2", 2), ("9" * 99, 1)]
)
def test_c15_any_number_of_threads(value, threads, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert launcher.threads() == threads


def test_c15_a_run_on_another_thread(tmp_path):
    ends = []
    keys = {"out": tmp_path, "rounds": 2}
    thread = threading.Thread(
        target=lambda: ends.append(hpcopt.run(hpcopt.AllreduceSGD(lr=0.001), PROBLEM, **keys))
    )
    thread.start()
    thread.join(60)
    assert ends == [tmp_path / "run.h5"]


def test_c14_rounds_longer_than_the_signals_lead_are_told_early(command, monkeypatch):
    monkeypatch.setenv("HPCOPT_SIGNAL_SECONDS", "0")
    code, _, err = command("run", "config.toml", "--out", "out")
    assert code == 0
    assert err.count("too late for a checkpoint: raise signal_seconds") == 1
    assert "warning: round 1 took" in err


def test_c14_mpirun_is_told_what_it_loses(monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    assert "kill -USR1" in launcher.ends_at_once()
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    assert launcher.ends_at_once() == ""
