"""Damaged checkpoints: always detected or harmless, passed over with a warning, never restored wrongly."""

import json
import shutil
from collections import Counter
from pathlib import Path

from examine import Examiner
from launch import launch

CONFIG = """
[run]
workers = 4
rounds = 20
evaluate_every = 5
checkpoint_every = 5
keep_checkpoints = 3
[method]
lr = 0.02
momentum = 0.5
[problem]
kind = "linear_regression"
dim = 50
rows_per_worker = 30
"""
HERE = Path(__file__).parent


def test_no_damage_restores_anything_but_what_was_written(tmp_path: Path) -> None:
    outcome = launch(["python", HERE / "damage.py", tmp_path / "checkpoints"], limit=120)
    lines = [line.split("\t") for line in outcome.out.splitlines()]
    assert outcome.code == 0, f"after {lines[-1:]}: {outcome}"
    assert lines.pop() == ["tried", str(len(lines) - 1)]
    assert lines.pop() == ["pruned", "keep 1, beside a later damaged one", "True"]
    tried = Counter(kind for kind, _, _ in lines)
    assert tried["flip"] >= 400
    assert tried["byte"] >= 500
    assert tried["truncation"] >= 50
    assert tried["zeros"] >= 30
    verdicts = ("passed over", "identical")  # identical: in a byte that means nothing
    assert [line for line in lines if line[2] not in verdicts] == []
    # what is data or digests, and every truncation, means something
    vital = [line for line in lines if line[0] == "truncation" or "(/" in line[1]]
    assert len(vital) > 90
    assert [line for line in vital if line[2] != "passed over"] == []


def test_resume_takes_the_checkpoint_before_a_damaged_one(tmp_path: Path, examiner: Examiner) -> None:
    (tmp_path / "config.toml").write_text(CONFIG)
    first = launch(["hpcopt", "run", tmp_path / "config.toml", "--out", tmp_path / "intact"], 2)
    assert first.code == 0, first
    whole = (tmp_path / "intact/checkpoints/round-00000020.h5").read_bytes()
    middle, text = len(whole) // 2, whole.index(b'"allreduce_sgd"')
    damages = {
        "flipped": whole[:text] + bytes([whole[text] ^ 4]) + whole[text + 1 :],
        "truncated": whole[:middle],
        "zeroed": whole[:middle] + bytes(512) + whole[middle + 512 :],
        "empty": b"",
    }
    for name in [*damages, "hopeless"]:
        shutil.copytree(tmp_path / "intact", tmp_path / name)
    for name, content in damages.items():
        (tmp_path / name / "checkpoints/round-00000020.h5").write_bytes(content)
    hopeless = sorted((tmp_path / "hopeless/checkpoints").iterdir())
    for path in hopeless:
        path.write_bytes(path.read_bytes()[:-1])
    names = ["intact", *damages, "hopeless"]
    commands = [["resume", str(tmp_path / name), "--set", "run.rounds=30"] for name in names]
    (tmp_path / "cases.json").write_text(json.dumps(commands))
    outcome = launch(["python", HERE / "batch.py", tmp_path / "cases.json"], 2, limit=120)
    ends = [json.loads(line) for line in outcome.out.splitlines() if line.startswith('{"case"')]
    assert len(ends) == len(names), outcome
    told = {name: end["texts"][0] for name, end in zip(names, ends, strict=True)}
    assert [end["codes"] for end in ends] == [[0, 0]] * 5 + [[2, 2]]

    reference = examiner(tmp_path / "intact")
    assert reference.rounds == [0, 5, 10, 15, 20, 25, 30]
    assert "going on from round 20" in told["intact"]
    for name in damages:
        damaged = tmp_path / name / "checkpoints/round-00000020.h5"
        assert f"hpcopt: warning: {damaged}: damaged, passed over" in told[name]
        assert "going on from round 15" in told[name]
        found = examiner(tmp_path / name)
        assert found == reference, name
    assert told["hopeless"].count("hpcopt: error:") == 1
    assert [path for path in hopeless if f"{path}: damaged" not in told["hopeless"]] == []
    assert "no intact checkpoint is left" in told["hopeless"]
    kept = examiner(tmp_path / "hopeless")
    assert kept.rounds == [0, 5, 10, 15, 20]
    assert len(kept.faults) == len(hopeless) == 3
