"""How jobs end that cannot go on: an exception, a stall, a signal, a full disk. Never by hanging."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from examine import Examiner, Found
from launch import Started, launch

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
    outcome = launch(config(tmp_path, what, workers=3), 3, cwd=HERE)
    assert outcome.code == code, outcome
    assert outcome.err.count(f"failed:\n{message}") == 1, outcome
    assert "hpcopt: rank 1 of 3 on " in outcome.err


CURVATURE = """
[run]
method = "dho2"
workers = 2
rounds = 400
curvature_ranks = 1
stall_seconds = 3.0
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


def test_a_rank_that_hangs_beside_the_rounds_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(CURVATURE)
    outcome = launch(["hpcopt", "run", str(path), "--out", str(tmp_path / "out")], 2, cwd=HERE)
    assert outcome.code not in (None, 0, 2, 3, 4, 75), outcome
    assert re.search(
        r"hpcopt: rank 0 of 2 on \S+: no progress for 3 s \(run.stall_seconds\) in the wait for what "
        r"rank 1 of 2 on \S+ computes beside the rounds;",
        outcome.err,
    ), outcome


def test_a_stalled_rank_ends_the_job_and_every_rank_says_where_it_is(tmp_path: Path) -> None:
    outcome = launch(config(tmp_path, "stall", stall=3.0), 2, cwd=HERE)
    assert outcome.code not in (None, 0, 2, 3, 4, 75), outcome
    for rank in (0, 1):
        assert re.search(
            rf"hpcopt: rank {rank} of 2 on \S+: no progress for 3 s \(run.stall_seconds\) in round 5;",
            outcome.err,
        ), outcome
    assert outcome.err.count("Current thread") + outcome.err.count("most recent call first") >= 4, outcome
    assert re.search(r'File ".*trouble.py", line \d+ in _add_gradient', outcome.err), (
        outcome
    )  # the guilty one
    assert re.search(r'File ".*reducer.py", line \d+ in ', outcome.err), outcome  # the one that waits for it


@pytest.mark.parametrize("free", [False, True])
def test_a_rank_that_is_stopped_for_good_is_named(free: bool, tmp_path: Path) -> None:
    """By the others, who wait for it, or, where they wait for nobody, go on until their patience ends."""
    command = config(tmp_path, "nothing", workers=3, stall=6.0, pause=0.01)
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
    barked = re.findall(r"hpcopt: rank (\d) of 3 on \S+: no progress for 6 s", outcome.err)
    assert {"0", "2"} <= set(barked), outcome
    assert "behind" not in outcome.err, outcome


def made(folder: Path, worker: int) -> int:
    """Gradients of a worker so far."""
    return (folder / str(worker)).stat().st_size


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, examiner: Examiner) -> Found:
    """The run of the signal tests, left alone."""
    directory = tmp_path_factory.mktemp("undisturbed")
    outcome = launch(config(directory, "nothing", pause=0.01), 2, cwd=HERE)
    assert outcome.code == 0, outcome
    found = examiner(directory / "out")
    assert found.faults == []
    assert found.rounds == list(range(0, 401, 10))
    return found


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


@pytest.mark.parametrize("send", [usr1_to_the_launcher, term_to_one_rank])
def test_a_signal_becomes_a_checkpoint_and_exit_75(
    send: Callable[[Started], None], tmp_path: Path, examiner: Examiner, undisturbed: Found
) -> None:
    with Started(config(tmp_path, "nothing", pause=0.01), 2, cwd=HERE) as job:
        while reached(tmp_path / "out") < 30 and job.process.poll() is None:
            time.sleep(0.01)
        send(job)
        outcome = job.wait(120)
    assert outcome.code == 75, outcome
    told = re.findall(r"hpcopt: error: .*after round (\d+).*hpcopt resume", outcome.err)
    assert len(told) == 1, outcome
    stopped = int(told[0])
    assert 30 <= stopped < 400
    left = examiner(tmp_path / "out")
    assert left.faults == []
    assert left.intact[-1] == stopped
    assert left.rounds == list(range(0, stopped + 1, 10))

    resumed = launch(["hpcopt", "resume", tmp_path / "out"], 2, cwd=HERE)
    assert resumed.code == 0, resumed
    assert f"going on from round {stopped}" in resumed.err
    found = examiner(tmp_path / "out")
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
    (tmp_path / "cases.json").write_text(json.dumps([first, *more]))
    outcome = launch(["python", HERE / "batch.py", tmp_path / "cases.json"], cwd=HERE)
    assert outcome.code == 0, outcome
    assert outcome.out.count('"codes": [0]') == 6, outcome
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
    command = ["hpcopt", "run", str(disk.parent / "config.toml"), "--out"]
    reference = launch([*command, disk.parent / "reference"], 2)
    assert reference.code == 0, reference

    outcome = launch([*command, disk / "out"], 2)  # two checkpoints fit, a third beside them does not
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
    resumed = launch(["hpcopt", "resume", disk / "out"], 2)
    assert resumed.code == 0, resumed
    assert "going on from round 10" in resumed.err
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
