"""Checkpoints are in the order of their rounds, not of the letters of their names."""

import subprocess

import hpcopt
from hpcopt.cluster.template import ONE_RUN
from hpcopt.storage import format

ROUNDS = [7, 99_999_999, 100_000_000, 1_234_567_890]


def test_they_are_listed_by_number(tmp_path):
    for round in reversed(ROUNDS):
        (tmp_path / f"round-{round:08d}.h5").touch()
    for other in ("round-00000009.h5.partial", "round-7.h5", "latest.h5"):
        (tmp_path / other).touch()
    assert [path.name for path in format.listed(tmp_path)] == [f"round-{round:08d}.h5" for round in ROUNDS]
    assert format.listed(tmp_path / "nowhere") == []


def test_the_batch_script_names_the_newest(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    script = f'directory="{tmp_path}"\n{ONE_RUN["newest"]}\nnewest'

    def newest():
        return subprocess.run(
            ["bash", "-c", script], check=True, capture_output=True, text=True
        ).stdout.strip()

    assert newest() == ""
    for round in ROUNDS:
        (tmp_path / f"checkpoints/round-{round:08d}.h5").touch()
    assert newest() == "round-1234567890.h5"


def test_a_run_goes_on_from_and_exports_the_newest(tmp_path):
    problem = hpcopt.Quadratic(2, "power", 3)
    keys = {"rounds": 2, "checkpoint_every": 1, "keep_checkpoints": 2}
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.1), problem, out=tmp_path, **keys)
    folder = tmp_path / "checkpoints"
    # as a run has them that passes 100,000,000
    (folder / "round-00000001.h5").rename(folder / "round-99999999.h5")
    (folder / "round-00000002.h5").rename(folder / "round-100000000.h5")
    assert hpcopt.export(tmp_path, tmp_path / "x.npz").name == "round-100000000.h5"
