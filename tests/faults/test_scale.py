"""`hpcopt scale` with a real mpirun: weak scaling of a tiny problem on one and two ranks, twice each."""

import json
from pathlib import Path

from launch import launch

CONFIG = """
[run]
workers = 2
rounds = 30
evaluate_every = 5
[method]
lr = 0.05
[problem]
kind = "linear_regression"
dim = 10
rows_per_worker = 20
"""
OPTIONS = ["--mode", "weak", "--ranks", "1,2", "--repeats", "2", "--rounds", "10"]
# in a process of its own, for this one never imports MPI, as h5py does
LOOK = """
import json, pathlib, sys
import hpcopt
study, top = hpcopt.load("study"), pathlib.Path("study/runs")
runs = {path.name: hpcopt.load(path) for path in top.iterdir()}
columns = {name: study["samples"][name].values.tolist() for name in sys.argv[1:-1]}
print(json.dumps({
    "mode": study.attrs["mode"],
    "warm_up": int(study.attrs["warm_up"]),
    "samples": [dict(zip(columns, row)) for row in zip(*columns.values())],
    "runs": {name: {key: int(run.attrs[key]) for key in ("ranks", "workers", "rows")}
             | {key: run[f"metrics/{key}"].values.tolist() for key in sys.argv[-4:]}
             | {"start": run.attrs["start"]} for name, run in runs.items()},
}))
"""
COLUMNS = ["ranks", "repeat", "workers", "block", "launch"]
ADDED = ["seconds", "gradients", "bytes_sent"]


def test_a_study(tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(CONFIG)
    command = ["hpcopt", "scale", "tiny.toml", *OPTIONS, "--out", "study"]
    outcome = launch(command, cwd=tmp_path, limit=240)
    assert outcome.code == 0, outcome
    assert "weak scaling: N = 2 P workers on P ranks; rows_per_worker = 20 stays" in outcome.out
    assert "4 of 4 launches are done" in outcome.out

    looked = launch(["python", "-c", LOOK, *COLUMNS, *ADDED, "round"], cwd=tmp_path)
    study = json.loads(looked.out)
    assert (study["mode"], study["warm_up"]) == ("weak", 5)
    assert sorted(study["runs"]) == [f"p0000{ranks}-r0{repeat}" for ranks in (1, 2) for repeat in (0, 1)]
    for name, run in study["runs"].items():
        ranks = int(name[1:6])
        here = [row for row in study["samples"] if (row["ranks"], row["repeat"]) == (ranks, int(name[-2:]))]
        assert (run["ranks"], run["workers"], run["rows"]) == (ranks, 2 * ranks, 40 * ranks)
        assert run["round"] == [0, 5, 10, 15]
        assert {row["workers"] for row in here} == {2 * ranks}
        # without the first block
        for column in ADDED:
            differences = [b - a for a, b in zip(run[column][1:], run[column][2:], strict=False)]
            assert [row[column] for row in here] == differences
    # one after the other, in the order of the plan
    order = [row for row in study["samples"] if row["block"] == 0]
    assert [row["launch"] for row in order] == [0, 1, 2, 3]
    begun = [study["runs"][f"p{row['ranks']:05d}-r{row['repeat']:02d}"]["start"] for row in order]
    assert begun == sorted(begun)

    again = launch(command, cwd=tmp_path, limit=60)
    assert again.code == 0, again
    assert "repeat" not in again.out
    inside = launch(command, 2, cwd=tmp_path, limit=60)
    assert inside.code == 2, inside
    assert inside.err.count("hpcopt: error: hpcopt scale launches the ranks itself; start it without") == 1
