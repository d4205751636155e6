"""Ranks that are killed: at random (tools/chaos, in short), and while they compute eigenpairs."""

import re
from pathlib import Path

import pytest
from examine import Examiner
from launch import ROOT, launch, one_by_one

HERE = Path(__file__).parent
# eigenpairs anew at the beginning of rounds 3, 9 and 15; on a path on which they change
REFRESHING = """
[run]
method = "dho2"
workers = 5
rounds = 18
evaluate_every = 3
checkpoint_every = 4
[method]
lr = 0.05
largest = 3
smallest = 1
lanczos_iterations = 8
warmup = 3
refresh_every = 6
[problem]
kind = "trouble:factory"
what = "kill in a refresh"
worker = 4
round = 2
fourth = 1.0
"""


def test_four_kills() -> None:
    outcome = launch([ROOT / "tools/chaos", "--kills", "4", "--seed", "1"], limit=600)
    assert outcome.code == 0, outcome
    summary = outcome.out.splitlines()[-1]
    assert re.match(r"4 kills \(.*\), [1-9]\d* runs completed, 0 violations", summary), outcome


# the second refresh begins with round 10 and is taken over with round 14; rank 3, without workers, dies in it
BESIDE = REFRESHING.replace(
    "[method]", 'curvature_ranks = 1\n[method]\nvariant = "concurrent"\nhandover_rounds = 4'
)


def test_killed_in_a_refresh_on_four_ranks_resumed_on_three(tmp_path: Path, examiner: Examiner) -> None:
    """In line with the rounds, and beside them."""
    # before the second refresh, and a round; or between its snapshot and its use
    stories = {"in line": (REFRESHING, (8,), 3), "beside": (BESIDE, (8, 12), 2)}
    calm = ["--set", "problem.what=nothing", "--set", "run.curvature_ranks=0"]
    commands, before = [], {}
    for name, (text, where, _) in stories.items():
        config, out, whole = (tmp_path / f"{name}{end}" for end in (".toml", "", " whole"))
        config.write_text(text)
        killed = launch(["hpcopt", "run", config, "--out", out], 4, cwd=HERE)
        assert killed.code not in (None, 0, 2, 3, 4, 75), killed
        assert re.search(r"rank 3\b.*(exited|Killed)", killed.err, re.DOTALL), killed
        left = examiner(out)
        assert left.faults == []
        assert left.intact[-1] in where
        before[name] = left.intact[-1]
        commands += [["resume", out, *calm], ["run", config, "--out", whole, *calm]]

    # one launch for all, and what is left alone on three ranks, too
    ends = one_by_one(tmp_path, commands, 3, cwd=HERE)
    assert [end["codes"] for end in ends] == [[0, 0, 0]] * 4
    for (name, (_, _, refreshes)), end in zip(stories.items(), ends[::2], strict=True):
        assert f"going on from round {before[name]}" in end["texts"][0]
        found, expected = examiner(tmp_path / name), examiner(tmp_path / f"{name} whole")
        assert found.faults == expected.faults == []
        assert found.rounds == expected.rounds == list(range(0, 19, 3))
        assert found.losses == pytest.approx(expected.losses, rel=1e-9, abs=0)
        assert len(expected.eigenvalues) == refreshes
        for mine, theirs in zip(found.eigenvalues, expected.eigenvalues, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-7, abs=0)
        first, *_, last = expected.eigenvalues
        assert last != pytest.approx(first, rel=1e-2)
