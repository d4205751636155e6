"""hpcopt sweep: one failed run does not end the others, and what ends the job costs nothing that is done."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from examine import Examiner
from launch import Started, launch

HERE = Path(__file__).parent
CONFIG = """
[run]
workers = 4
rounds = 30
evaluate_every = 5
checkpoint_every = 5
deterministic = true
[method]
lr = 0.05
momentum = 0.9
[problem]
kind = "trouble:factory"
"""
FIRST = ["--set", "problem.worker=0"]
"""of a rank makes the trouble"""
PAUSED = ["--set", "problem.worker=3", "--set", "problem.pause=0.01"]
"""the second one of two ranks makes it"""


LIMIT = 400  # seconds; only against hanging, for a job may get little of busy cores


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A config with few rounds."""
    path = tmp_path / "my.toml"
    path.write_text(CONFIG)
    return path


def failures(out: Path) -> dict[str, tuple[int, str]]:
    """Case -> exit code and message."""
    told = {path.stem: json.loads(path.read_text()) for path in (out / "failed").glob("*.json")}
    return {name: (one["exit_code"], one["message"]) for name, one in told.items()}


def taken(out: Path) -> set[str]:
    """The numbers of the cases that are being run."""
    names = {path.name for path in (out / "claims").glob("*/*")}
    return {name for name in names if name.isdigit() and f"{name}.ended" not in names}


def test_failed_cases_and_the_others_as_if_they_were_alone(
    config: Path, tmp_path: Path, examiner: Examiner
) -> None:
    what = "rounded,no recipe,rounded,raise everywhere,user error everywhere,rounded,rounded,rounded"
    rates = "0.05,0.05,1e6,0.05,0.05,0.02,0.04,0.03"
    out = tmp_path / "out"
    over = ["--zip", "--over", f"problem.what={what}", "--over", f"method.lr={rates}"]
    command = ["hpcopt", "sweep", config, *over, *FIRST, "--ranks-each", "2", "--out", out]
    outcome = launch(command, 4, limit=LIMIT, cwd=HERE)
    assert outcome.code == 1, outcome
    told = failures(out)
    diverged = told.pop("what=rounded,lr=1e6")
    assert diverged[0] == 4, outcome
    assert told == {
        "what=no_recipe,lr=0.05": (1, "ArithmeticError: there is no such problem"),
        "what=raise_everywhere,lr=0.05": (1, "ArithmeticError: worker 0 does not like round 5"),
        "what=user_error_everywhere,lr=0.05": (2, "worker 0 does not like its rows"),
    }, outcome
    assert "hpcopt: 8 cases, 8 to run, 2 groups of 2 ranks\n" in outcome.err
    assert sorted(re.findall(r"\[(\d)/8\]", outcome.err)) == list("12345678"), outcome
    end = outcome.err[outcome.err.index("hpcopt: error: 4 of 8 cases failed") :]
    for name, (code, message) in told.items():
        assert re.search(rf"{re.escape(name)} +{code} +\S+{re.escape(name)} +{re.escape(message)}\n", end), (
            end
        )
    assert not (out / "claims").exists()

    alone = tmp_path / "alone"
    last = ["--set", "problem.what=rounded", "--set", "method.lr=0.03", *FIRST]
    assert launch(["hpcopt", "run", config, *last, "--out", alone], limit=LIMIT, cwd=HERE).code == 0
    found = examiner(out / "cases/what=rounded,lr=0.03")
    assert found == examiner(alone)
    assert found.rounds == list(range(0, 31, 5))


def test_stopped_killed_and_broken_off_the_same_command_goes_on(
    config: Path, tmp_path: Path, examiner: Examiner
) -> None:
    out = tmp_path / "out"
    over = ["--zip", "--over", "run.seed=0:8", "--over", f"problem.what={'nothing,' * 6}raise,nothing"]
    command = ["hpcopt", "sweep", config, *over, *PAUSED, "--out", out]
    cases = [f"seed={seed},what={'raise' if seed == 6 else 'nothing'}" for seed in range(8)]
    both = [*command, "--ranks-each", "2"]

    def at_work(job: Started, ended: int) -> None:
        """Until so many cases have ended in this job, and each group has one."""
        end = time.monotonic() + LIMIT
        while job.printed().count("/8] ") < ended or len(taken(out)) < 2:
            assert job.process.poll() is None, job.wait(0)
            assert time.monotonic() < end, job.printed()
            time.sleep(0.02)

    with Started(both, 4, cwd=HERE) as job:
        at_work(job, 1)
        os.kill(job.ranks()[2], signal.SIGUSR1)  # to one rank of one group
        stopped = job.wait(LIMIT)
    assert stopped.code == 75, stopped
    told = re.search(r"error: stopped by a signal; (\d) of 8 cases are done. The same command", stopped.err)
    assert told, stopped
    assert 1 <= int(told[1]) <= 5, stopped  # the other group did not go on to the end
    assert failures(out) == {}

    with Started(command, 2, cwd=HERE) as job:  # in groups of one rank each
        at_work(job, 0)
        os.kill(job.ranks()[1], signal.SIGKILL)
        killed = job.wait(LIMIT)
    assert killed.code not in (None, 0, 1, 2, 3, 4, 75), killed
    assert re.search(r"rank 1\b.*(exited|Killed)", killed.err, re.DOTALL), killed
    assert (out / "claims").exists()

    broken = launch(both, 2, limit=LIMIT, cwd=HERE)
    assert broken.code == 1, broken
    assert re.search(rf"hpcopt: rank 1 of 2 on \S+ failed in case {cases[6]}:\nTraceback", broken.err), broken
    ((name, (code, message)),) = failures(out).items()
    assert (name, code) == (cases[6], 1)
    assert message.startswith("rank 1 of 2 on ")
    assert message.endswith("ArithmeticError: worker 3 does not like round 5")
    assert (out / "claims").exists()

    rest = launch([*command, "--retry"], 2, limit=LIMIT, cwd=HERE)
    assert rest.code == 1, rest
    assert "hpcopt: error: 1 of 8 cases failed; --retry runs them again" in rest.err
    assert re.search(r"hpcopt: 8 cases \(\d done before, 1 failed before\)", rest.err), rest
    assert failures(out) == {cases[6]: (1, "ArithmeticError: worker 3 does not like round 5")}
    for name in cases:
        found = examiner(out / "cases" / name)
        ended = ("rounds", list(range(0, 31, 5))) if name != cases[6] else ("", [0])
        assert (found.stopped_by, found.rounds, found.faults) == (*ended, [])
