"""A study's cases are run by `hpcopt sweep`."""

from pathlib import Path

import pytest

from jobs.studies.study import Case, Study

CONFIG = """
[run]
method = "allreduce_sgd"
workers = 2
rounds = 3
evaluate_every = 1
[method]
lr = 0.1
[problem]
kind = "quadratic"
eigenvalues = [1.0, 4.0]
"""


def test_cases_are_run_as_a_sweep_that_grows(tmp_path):
    study = Study("made-up")
    study.directory = tmp_path
    (tmp_path / "grows.toml").write_text(CONFIG)
    cases = [
        Case(f"λ/seed{seed}", tmp_path / "grows.toml", {"run.seed": seed, "run.evaluate_every": 3})
        for seed in range(3)
    ]
    study.run(cases[:2])
    study.run(cases)
    assert [len(study.series(case, "loss")) for case in cases] == [2, 2, 2]
    assert cases[2].path == Path("grows/cases/-seed2")
    assert "3 of 3 runs finished" in study.about(cases)
    broken = Case("broken", cases[0].config, {"problem.dim": 7})
    with pytest.raises(SystemExit, match=r"1 runs are not finished: grows/cases/broken"):
        study.run([broken])
