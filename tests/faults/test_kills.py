"""Ranks that are killed: at random (tools/chaos, in short), and while they compute eigenpairs."""

import json
import re
from pathlib import Path

import pytest
from examine import Examiner
from launch import ROOT, launch

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


def test_six_kills() -> None:
    outcome = launch([ROOT / "tools/chaos", "--kills", "6", "--seed", "1"], limit=300)
    assert outcome.code == 0, outcome
    summary = outcome.out.splitlines()[-1]
    assert re.match(r"6 kills \(.*\), [1-9]\d* runs completed, 0 violations", summary), outcome


# the second refresh begins with round 10 and is taken over with round 14; rank 3, without workers, dies in it
BESIDE = REFRESHING.replace(
    "[method]", 'curvature_ranks = 1\n[method]\nvariant = "concurrent"\nhandover_rounds = 4'
)


@pytest.mark.parametrize("text", [REFRESHING, BESIDE])
def test_killed_in_a_refresh_on_four_ranks_resumed_on_three(
    tmp_path: Path, examiner: Examiner, text: str
) -> None:
    config, out, whole = (tmp_path / name for name in ("config.toml", "out", "whole"))
    config.write_text(text)
    killed = launch(["hpcopt", "run", config, "--out", out], 4, cwd=HERE)
    assert killed.code not in (None, 0, 2, 3, 4, 75), killed
    assert re.search(r"rank 3\b.*(exited|Killed)", killed.err, re.DOTALL), killed
    left = examiner(out)
    assert left.faults == []
    # before the second refresh, and a round; or between its snapshot and its use
    assert left.intact[-1] in ((8, 12) if text is BESIDE else (8,))

    # one launch for both, and what is left alone on three ranks, too
    calm = ["--set", "problem.what=nothing", "--set", "run.curvature_ranks=0"]
    commands = [["resume", str(out), *calm], ["run", str(config), "--out", str(whole), *calm]]
    (tmp_path / "cases.json").write_text(json.dumps(commands))
    outcome = launch(["python", HERE / "batch.py", tmp_path / "cases.json"], 3, cwd=HERE)
    assert outcome.code == 0, outcome
    assert outcome.out.count('"codes": [0, 0, 0]') == 2, outcome
    assert f"going on from round {left.intact[-1]}" in outcome.out
    found, expected = examiner(out), examiner(whole)
    assert found.faults == expected.faults == []
    assert found.rounds == expected.rounds == list(range(0, 19, 3))
    assert found.losses == pytest.approx(expected.losses, rel=1e-9, abs=0)
    assert len(expected.eigenvalues) == (2 if text is BESIDE else 3)
    for mine, theirs in zip(found.eigenvalues, expected.eigenvalues, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-7, abs=0)
    first, *_, last = expected.eigenvalues
    assert last != pytest.approx(first, rel=1e-2)
