"""How jobs end that cannot go on: an exception, a stall, a signal, a full disk. Never by hanging."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from examine import Examiner
from launch import Started, at_once, launch, one_by_one

HERE = Path(__file__).parent
TROUBLE = """
[run]
workers = {workers}
rounds = 400
evaluate_every = 10
checkpoint_every = 90
stall_seconds = {stall}
[method]
lr = 0.1
momentum = 0.9
[problem]
kind = "trouble:factory"
what = "{what}"
pause = {pause}
"""
LARGE = """
[run]
workers = 2
rounds = 25
evaluate_every = 5
checkpoint_every = 5
[method]
lr = 1e-4
momentum = 0.5
[problem]
kind = "linear_regression"
dim = 500_000
rows_per_worker = 2
"""
CHECKPOINT = 2 * 500_000 * 8


def config(
    directory: Path, what: str, workers: int = 2, stall: float = 60.0, pause: float = 0.0
) -> list[str]:
    """Writes a config; the command line that runs it."""
    path = directory / "config.toml"
    path.write_text(TROUBLE.format(what=what, workers=workers, stall=stall, pause=pause))
    return ["hpcopt", "run", str(path), "--out", str(directory / "out")]


def test_an_exception_on_one_rank_ends_the_job_with_its_traceback(tmp_path: Path) -> None:
    outcome = launch(config(tmp_path, "raise", workers=3), 3, cwd=HERE)
    assert outcome.code not in (None, 0, 2, 3, 4, 75), outcome
    assert "hpcopt: rank 1 of 3 on " in outcome.err, outcome
    assert "ArithmeticError: worker 1 does not like round 5" in outcome.err, outcome
    assert outcome.err.count("Traceback") == 1, outcome
    trace = outcome.err[outcome.err.index("Traceback") :]
    assert "trouble.py" in trace[: trace.index("ArithmeticError")]


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [("user error", 2, "worker 1 does not like its rows"), ("exit", 7, "sys.exit(7) was called here alone")],
)
def test_what_ends_one_rank_alone_ends_the_job_with_its_message(
    what: str, code: int, message: str, tmp_path: Path
) -> None:
    outcome = launch(config(tmp_path, what), 2, cwd=HERE)
    assert outcome.code == code, outcome
    assert outcome.err.count(f"failed:\n{message}") == 1, outcome
    assert "hpcopt: rank 1 of 2 on " in outcome.err


CURVATURE = """
[run]
method = "dho2"
workers = 2
rounds = 400
curvature_ranks = 1
stall_seconds = 5.0
[method]
variant = "concurrent"
lr = 0.05
largest = 3
warmup = 1
refresh_every = 5
handover_rounds = 5
[problem]
kind = "trouble:factory"
what = "stop in a refresh"
round = 2
"""


def test_a_stall_ends_the_job_and_the_ranks_say_where_they_are(tmp_path: Path) -> None:
    """In a round, and beside the rounds."""
    at_once(partial(story, tmp_path) for story in (a_stalled_rank, a_rank_that_hangs_beside_the_rounds))


def a_rank_that_hangs_beside_the_rounds(tmp_path: Path) -> None:
    path = tmp_path / "beside.toml"
    path.write_text(CURVATURE)
    outcome = launch(["hpcopt", "run", str(path), "--out", str(tmp_path / "beside")], 2, cwd=HERE)
    assert outcome.code not in (None, 0, 2, 3, 4, 75), outcome
    assert re.search(
        r"hpcopt: rank 0 of 2 on \S+: no progress for 5 s \(run.stall_seconds\) in the wait for what "
        r"rank 1 of 2 on \S+ computes beside the rounds;",
        outcome.err,
    ), outcome


def a_stalled_rank(tmp_path: Path) -> None:
    outcome = launch(config(tmp_path, "stall", stall=5.0), 2, cwd=HERE)
    assert outcome.code not in (None, 0, 2, 3, 4, 75), outcome
    for rank in (0, 1):
        assert re.search(
            rf"hpcopt: rank {rank} of 2 on \S+: no progress for 5 s \(run.stall_seconds\) in round 5;",
            outcome.err,
        ), outcome
    assert outcome.err.count("Current thread") + outcome.err.count("most recent call first") >= 4, outcome
    assert re.search(r'File ".*trouble.py", line \d+ in _add_gradient', outcome.err), (
        outcome
    )  # the guilty one
    assert re.search(r'File ".*reducer.py", line \d+ in ', outcome.err), outcome  # the one that waits for it


def test_a_rank_that_is_stopped_for_good_is_named(tmp_path: Path) -> None:
    """By the others, who wait for it, or, where they wait for nobody, go on until their patience ends."""
    at_once(partial(one_is_stopped, tmp_path / name, name == "free") for name in ("in step", "free"))


def one_is_stopped(tmp_path: Path, free: bool) -> None:
    tmp_path.mkdir()
    command = config(tmp_path, "nothing", workers=3, stall=8.0, pause=0.01)
    if free:
        path = tmp_path / "config.toml"
        text = path.read_text().replace("[run]", '[run]\nmethod = "delayed_sgd"')
        path.write_text(text.replace("momentum = 0.9", 'mode = "free"\nwindow = 20'))
    with Started([*command, "--set", f"problem.tally={json.dumps(str(tmp_path))}"], 3, cwd=HERE) as job:
        while reached(tmp_path / "out") < 10 and job.process.poll() is None:
            time.sleep(0.01)
        os.kill(job.ranks()[1], signal.SIGSTOP)
        begun, end = [made(tmp_path, n) for n in (0, 2)], time.monotonic() + 60
        while free and any(
            made(tmp_path, n) < before + 5 * 20 for n, before in zip((0, 2), begun, strict=True)
        ):
            assert time.monotonic() < end, job.printed()
            time.sleep(0.01)
        outcome = job.wait(120)
    assert outcome.code not in (None, 0, 2, 3, 4, 75), outcome
    named = re.findall(r"hpcopt: (rank \d of 3) on \S+: no sign of life for [\d.]+ s", outcome.err)
    assert named == ["rank 1 of 3"], outcome
    barked = re.findall(r"hpcopt: rank (\d) of 3 on \S+: no progress for 8 s", outcome.err)
    assert {"0", "2"} <= set(barked), outcome
    assert "behind" not in outcome.err, outcome


def made(folder: Path, worker: int) -> int:
    """Gradients of a worker so far."""
    return (folder / str(worker)).stat().st_size


def usr1_to_the_launcher(job: Started) -> None:
    os.kill(job.process.pid, signal.SIGUSR1)


def term_to_one_rank(job: Started) -> None:
    os.kill(job.ranks()[1], signal.SIGTERM)


def test_a_signal_while_a_process_ends_leaves_its_exit_code() -> None:
    # the C library calls sleep(exit code) after Python is gone
    code = "import ctypes; c = ctypes.CDLL(None); c.on_exit(c.sleep, None); import hpcopt.cli as h; h.main()"
    command = [sys.executable, "-c", code, "run", "absent.toml"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "absent.toml" in process.stderr.readline()
        while process.poll() is None:
            process.send_signal(signal.SIGUSR1)
            time.sleep(0.01)
    assert process.returncode == 2


def test_ctrl_c_without_a_launcher_becomes_a_checkpoint(tmp_path: Path) -> None:
    with Started(config(tmp_path, "nothing", pause=0.01), cwd=HERE) as job:
        while reached(tmp_path / "out") < 10 and job.process.poll() is None:
            time.sleep(0.01)
        os.kill(job.process.pid, signal.SIGINT)
        outcome = job.wait(60)
    assert outcome.code == 75, outcome
    assert outcome.err.count("hpcopt: stopping with a checkpoint") == 1
    assert re.search(r"hpcopt: error: stopped by a signal after round \d+; .*\n?.*hpcopt resume", outcome.err)
    assert len(list((tmp_path / "out/checkpoints").glob("round-*.h5"))) >= 1


@pytest.mark.parametrize(
    ("streams", "ranks"), [(">&- 2>&-", 1), (">/dev/full 2>/dev/full", 1), ("2>&1 | head -c 0", 2)]
)
def test_no_run_ends_for_want_of_stdout_or_stderr(streams: str, ranks: int, tmp_path: Path) -> None:
    """Closed, so that the next file that is opened gets their numbers; full; and whose reader has gone."""
    launcher = "mpirun -n 2 " * (ranks == 2)
    command = shlex.join(config(tmp_path, "nothing"))
    script = f"set -o pipefail; {launcher}{command} --set run.rounds=9 {streams}"
    outcome = launch(["bash", "-c", script], cwd=HERE, env={"OMP_NUM_THREADS": "1,1"})
    assert outcome.code == 0 or ranks == 2, outcome  # mpirun may end by its own SIGPIPE
    run = (tmp_path / "out/run.h5").read_bytes()
    assert b"hpcopt: " not in run
    assert '"event": "end"' in (tmp_path / "out/log.jsonl").read_text()


def test_a_signal_becomes_a_checkpoint_and_exit_75(tmp_path: Path, examiner: Examiner) -> None:
    """Whoever got it; from there on the run is the one that was left alone."""
    ways = {"usr1": usr1_to_the_launcher, "term": term_to_one_rank}
    outs = {name: tmp_path / name / "out" for name in ways}
    for name in ways:
        (tmp_path / name).mkdir()
    stopped = {}

    def disturb(name: str) -> None:
        with Started(config(tmp_path / name, "nothing", pause=0.03), 2, cwd=HERE) as job:
            while reached(outs[name]) < 30 and job.process.poll() is None:
                time.sleep(0.01)
            ways[name](job)
            outcome = job.wait(120)
        assert outcome.code == 75, outcome
        (told,) = re.findall(r"hpcopt: error: .*after round (\d+).*hpcopt resume", outcome.err)
        stopped[name] = int(told)
        assert 30 <= stopped[name] < 400

    at_once(partial(disturb, name) for name in ways)
    for name, out in outs.items():
        left = examiner(out)
        assert left.faults == []
        assert left.intact[-1] == stopped[name]
        assert left.rounds == list(range(0, stopped[name] + 1, 10))

    rest = [[*words, "--set", "problem.pause=0.0"] for words in (["resume", outs[name]] for name in ways)]
    ends = one_by_one(tmp_path, [config(tmp_path, "nothing")[1:], *rest], 2, cwd=HERE)
    assert [end["codes"] for end in ends] == [[0, 0]] * 3
    undisturbed = examiner(tmp_path / "out")
    assert undisturbed.faults == []
    assert undisturbed.rounds == list(range(0, 401, 10))
    for name, end in zip(ways, ends[1:], strict=True):
        assert f"going on from round {stopped[name]}" in end["texts"][0]
        found = examiner(outs[name])
        assert found.faults == []
        assert (found.rounds, found.losses) == (undisturbed.rounds, undisturbed.losses)
        assert found.stopped_by == "rounds"


def reached(directory: Path) -> int:
    """The last round in a run's log; -1 before the first."""
    log = directory / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    rounds = [int(json.loads(line)["round"]) for line in lines if '"record"' in line and line.endswith("}")]
    return max(rounds, default=-1)


def test_a_run_extended_again_and_again_keeps_every_record(tmp_path: Path, examiner: Examiner) -> None:
    run = tmp_path / "out"
    first = [*config(tmp_path, "nothing")[1:], "--set", "run.rounds=5"]
    more = [["resume", str(run), "--set", f"run.rounds={rounds}"] for rounds in (7, 8, 9, 12, 13)]
    ends = one_by_one(tmp_path, [first, *more], 1, cwd=HERE)
    assert [end["codes"] for end in ends] == [[0]] * 6
    found = examiner(run)
    assert found.rounds == [0, 5, 7, 8, 9, 10, 12, 13]
    assert sorted(found.losses, reverse=True) == found.losses


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={CHECKPOINT * 5 // 2}", "tmpfs", path],
        capture_output=True,
        text=True,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", path], check=True)


def test_a_full_disk_is_one_error_and_the_checkpoints_before_stay(disk: Path, examiner: Examiner) -> None:
    (disk.parent / "config.toml").write_text(LARGE)
    command = ["run", disk.parent / "config.toml", "--out"]
    # two checkpoints fit, a third beside them does not
    outcome = launch(["hpcopt", *command, disk / "out"], 2)
    assert outcome.code == 2, outcome
    assert outcome.err.count("hpcopt: error:") == 1, outcome
    assert "Traceback" not in outcome.err, outcome
    told = outcome.err[outcome.err.index("hpcopt: error:") :]
    assert str(disk / "out/checkpoints/round-00000015.h5") in told
    assert "No space left on device" in told
    found = examiner(disk / "out")
    assert found.faults == []
    assert found.intact == [5, 10]
    assert found.rounds == [0, 5, 10, 15]
    assert list(disk.rglob("*.partial")) == []

    subprocess.run(["mount", "-o", f"remount,size={CHECKPOINT * 5}", disk], check=True)
    resumed, whole = one_by_one(
        disk.parent, [["resume", disk / "out"], [*command, disk.parent / "reference"]], 2
    )
    assert resumed["codes"] == whole["codes"] == [0, 0]
    assert "going on from round 10" in resumed["texts"][0]
    assert examiner(disk / "out") == examiner(disk.parent / "reference")


def test_a_disk_that_fills_up_at_any_step_is_an_error_and_never_a_damaged_file(disk: Path) -> None:
    outcome = launch(["python", "-m", "mpi4py", HERE / "fulldisk.py", disk], 2, limit=120)
    lines = [line.split("\t") for line in outcome.out.splitlines()]
    assert outcome.code == 0, outcome
    for what in ("checkpoint", "metrics"):
        ends = [end for kind, _, end in lines if kind == what]
        assert ends.count("written") >= 2, ends
        failed = [end for end in ends if end != "written"]
        assert len(failed) >= 5, ends
        assert [end for end in failed if str(disk) not in end] == []
