"""What studies share, on made-up runs: the tidy table, numbers over seeds, learning rates that are found."""

import json
import math
import re

import numpy as np
import pytest
from mpi4py import MPI
from scipy import stats

import hpcopt
from hpcopt.api import start
from hpcopt.config import load
from jobs.studies.statistics import crossing, interval, paired, power, spread
from jobs.studies.study import Case, Study
from jobs.studies.tuning import Tuning

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
RATES = (0.01, 0.1, 0.2, 10.0)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study with a finished run for each rate, the last of which diverges."""
    study = Study("made-up")
    study.directory = tmp_path_factory.mktemp("study")
    (study.directory / "study.toml").write_text(CONFIG)
    for case in map(make(study), RATES):
        out = f"run.out={json.dumps(str(study.directory / case.path))}"
        start(MPI.COMM_SELF, load(case.config, [*case.overrides, out]))
    return study


def make(study):
    return lambda lr: Case(
        f"lr{lr}", study.directory / "study.toml", {"method.lr": lr, "run.rounds": 3 + (lr == 0.1)}
    )


def test_tidy_table_has_a_row_for_every_record_of_every_finished_case(study):
    cases = [make(study)(lr) for lr in (*RATES, 0.5)]  # the last was never run
    table = study.records(cases)
    assert list(table["case"].unique()) == [case.name for case in cases[:-1]]
    assert len(table) == 4 + 5 + 4 + 4
    assert {"method.lr", "run.rounds", "record", "round", "loss", "seconds", "bytes_workers"} <= set(table)
    for case in cases[:-1]:
        data = hpcopt.load(study.directory / case.path)
        mine = table[table["case"] == case.name]
        np.testing.assert_array_equal(mine["loss"], data["metrics/loss"])
        np.testing.assert_array_equal(mine["record"], np.arange(len(data["metrics/loss"])))
        assert (mine["method.lr"] == str(case.settings["method.lr"])).all()


def test_columns_are_of_the_tidy_table(study):
    cases = [make(study)(lr) for lr in (*RATES, 0.5)]
    table = study.records(cases)
    last = table.groupby("case", sort=False)["loss"].last()
    np.testing.assert_array_equal(study.column(cases, "loss"), [*last, math.nan])
    fourth = study.column(cases, "round", 4)
    np.testing.assert_array_equal(fourth, [math.nan, 4, math.nan, math.nan, math.nan])


def test_run_with_other_settings_is_told(study):
    case = make(study)(0.1)
    other = Case(case.name, case.config, case.settings | {"method.momentum": 0.5})
    with pytest.raises(SystemExit, match=r"method\.momentum = 0\.0, now 0\.5"):
        Study.data(study, other)


def test_best_rate_of_a_grid_and_beyond_its_edge(study):
    tuning = Tuning(study, make(study), (0.01, 0.1), factor=2.0, extensions=1)
    assert set(tuning.trials()) == {0.01, 0.1, 0.2}  # 0.1 is best and at the edge
    assert tuning.rate() == 0.2
    missing = Tuning(study, make(study), (0.1, 0.2), factor=2.0, extensions=1)
    assert missing.rate() is None  # 0.4 was not run


def test_numbers_over_seeds_are_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5))
    wanted = stats.ttest_rel(a, b).confidence_interval(0.95)
    mean, low, high = interval(a, b)
    assert mean == pytest.approx((a - b).mean())
    assert (low, high) == pytest.approx((wanted.low, wanted.high))
    assert paired(a, b) == f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
    assert spread(a) == f"{a.mean():.2f} ± {a.std(ddof=1):.2f}"
    assert interval([1.0, math.nan], [0.0, 0.0]) is None
    assert spread([1.0, math.nan]) == paired([1.0], [2.0]) == "–"


def test_power_law_is_found():
    x = np.array([64.0, 320.0, 1280.0] * 3)
    assert power(x, 7 * x**-0.5) == "-0.50 [-0.50, -0.50]"
    rng = np.random.default_rng(1)
    found = power(x, x**2 * np.exp(rng.normal(0, 0.3, 9)))
    slope, low, high = (float(number) for number in re.findall(r"[+-][\d.]+", found))
    assert low < slope < high
    assert low < 2 < high


@pytest.mark.parametrize(
    ("losses", "spent", "target", "found"),
    [
        ([4.0, 2.0, 1.0], [0.0, 10.0, 20.0], 1.5, 15.0),
        ([4.0, 2.0], [0.0, 10.0], 1.0, math.inf),
        ([1.0, 2.0], [3.0, 10.0], 1.0, 3.0),
        ([4.0, math.nan, 1.0], [0.0, 1.0, 2.0], 1.0, math.nan),
    ],
)
def test_crossing_is_linear_between_records(losses, spent, target, found):
    assert crossing(losses, spent, target) == pytest.approx(found, nan_ok=True)
    assert math.isnan(crossing([], [], target))
