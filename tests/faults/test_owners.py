"""One job at a time in a directory: run and resume in all pairs, and a job whose directory was taken."""

import os
import signal
import time
from pathlib import Path

import pytest
from examine import Examiner
from launch import Outcome, Started, launch

HERE = Path(__file__).parent
CONFIG = """
[run]
workers = 3
rounds = 400
evaluate_every = 10
checkpoint_every = 10
[method]
lr = 0.01
[problem]
kind = "trouble:factory"
pause = {pause}
"""
THIEF = """
import os
from pathlib import Path

calls = 0

def stolen(problem, model):
    global calls
    calls += 1
    if calls == 3 and problem.share.workers[0] == 0:
        owner = Path("out/owner.json")
        Path("other").write_text(owner.read_text())
        os.replace("other", owner)
    return float(calls)
"""


def refused(outcome: Outcome, out: Path) -> None:
    """A job that found another there."""
    assert outcome.code == 2, outcome
    assert outcome.err.count(f"{out}: process ") == 1, outcome
    assert f" on {os.uname().nodename} " in outcome.err
    assert "is writing into it" in outcome.err


def records(out: Path, at_least: int) -> None:
    """Waits until a job has made so many."""
    log, until = out / "log.jsonl", time.monotonic() + 60
    while not log.exists() or log.read_text().count('"event": "record"') < at_least:
        assert time.monotonic() < until
        time.sleep(0.05)


def test_run_and_resume_in_all_pairs(tmp_path: Path, examiner: Examiner) -> None:
    slow, quick = tmp_path / "slow.toml", tmp_path / "quick.toml"
    slow.write_text(CONFIG.format(pause=0.05))
    quick.write_text(CONFIG.format(pause=0.0))
    out, whole = tmp_path / "out", tmp_path / "whole"
    run, resume = ["hpcopt", "run", slow, "--out", out], ["hpcopt", "resume", out]
    told = 2
    for first in (run, resume):
        with Started(first, 2, cwd=HERE) as job:
            records(out, told)
            # both at once; the first goes on
            with Started(run, 2, cwd=HERE) as second, Started(resume, cwd=HERE) as third:
                refused(second.wait(60), out)
                refused(third.wait(60), out)
            told = (out / "log.jsonl").read_text().count('"event": "record"') + 1
            records(out, told)
            assert job.process.poll() is None
            os.kill(job.ranks()[0], signal.SIGKILL)
            job.wait(30)
        told += 2
    # two that come to what a killed job has left: one goes on and ends, and what it wrote is one job's
    command = [*resume, "--set", "problem.pause=0.004"]
    with Started(command, 2, cwd=HERE) as one, Started(command, 2, cwd=HERE) as two:
        ends = [one.wait(90), two.wait(90)]
    went_on = [end for end in ends if "round 400/400" in end.err]
    assert [end.code for end in went_on] == [0], ends
    (other,) = (end for end in ends if end is not went_on[0])
    if other.code != 0:  # else it came when there was nothing left to do
        refused(other, out)
    assert launch(["hpcopt", "run", quick, "--out", whole], cwd=HERE).code == 0
    found, expected = examiner(out), examiner(whole)
    assert found.faults == expected.faults == []
    assert found.rounds == expected.rounds
    assert found.losses == pytest.approx(expected.losses, rel=1e-9, abs=0)
    assert not list(out.glob("*owner*"))


def test_a_job_whose_directory_was_taken_writes_nothing_more(tmp_path: Path, examiner: Examiner) -> None:
    (tmp_path / "thief.py").write_text(THIEF)
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(pause=0.0))
    (tmp_path / "trouble.py").write_text((HERE / "trouble.py").read_text())
    settings = ["--set", 'run.metrics=["thief:stolen"]', "--set", "run.checkpoint_every=30"]
    outcome = launch(["hpcopt", "run", config, "--out", "out", *settings], 2, cwd=tmp_path)
    assert outcome.code == 2, outcome
    assert outcome.err.count("has taken it over; this job ends here") == 1, outcome
    assert (tmp_path / "out" / "owner.json").exists()
    found = examiner(tmp_path / "out")
    assert found.checkpoints == []
    assert found.stopped_by == ""
