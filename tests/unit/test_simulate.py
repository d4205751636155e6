"""`hpcopt.simulate` against `hpcopt.run`; the user's own metrics; what a method records by itself."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray

import hpcopt
from hpcopt.errors import UserError
from hpcopt.state import Group
from tests.parallel.factories import Counting

METHODS = [
    hpcopt.AllreduceSGD(lr=0.01, momentum=0.9),
    hpcopt.RegTopK(lr=0.01, density=0.3),
    hpcopt.TopK(lr=0.01, density=0.3, select="global"),
    hpcopt.RandomK(lr=0.01, density=0.3),
    hpcopt.PowerSGD(lr=0.01, rank=1),
    hpcopt.DPSGD(lr=0.01, topology="one_peer_exponential", overlap=True),
    hpcopt.GradientTracking(lr=0.01),
    hpcopt.Local(lr=0.01),
    hpcopt.FedAvg(lr=0.01, local_steps=2),
]
MEASURED = ["seconds", "seconds_min", "seconds_mean", "peak_memory"]
KEYS = {"seed": 3, "evaluate_every": 3, "device": "cpu"}


def problem():
    return hpcopt.LinearRegression(5, dim=7, rows_per_worker=11)


def check_identical(one, other):
    """Values, dimensions, coordinates and units of everything that is no time and no memory."""
    assert one.children.keys() == other.children.keys()
    for group in one.children:
        datasets = [tree[group].to_dataset() for tree in (one, other)]
        datasets = [data.drop_vars([name for name in MEASURED if name in data]) for data in datasets]
        xarray.testing.assert_equal(*datasets)
        units = [{name: v.attrs["units"] for name, v in data.variables.items()} for data in datasets]
        assert units[0] == units[1]


def spread(problem, model):
    return {"widest": float(model.abs().max()), "norm": model.expand(problem.share.n, -1).norm(dim=1)}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_the_same_records_as_a_run_on_one_rank(method, tmp_path):
    keys = KEYS | {"deterministic": True, "metrics": [spread]}
    here = hpcopt.simulate(method, problem(), 8, **keys)
    there = hpcopt.load(hpcopt.run(method, problem(), out=tmp_path / "run", rounds=8, **keys))
    check_identical(here, there)
    assert here["metrics/round"].values.tolist() == [0, 3, 6, 8]
    same = {"method", "workers", "seed", "dim", "rows", "stopped_by", "last_round", "commit", "notes"}
    assert {name: here.attrs[name] for name in same} == {name: there.attrs[name] for name in same}
    assert json.loads(here.attrs["config"])["run"]["metrics"] == [f"{__name__}:spread"]


def test_the_state_comes_along_and_settings_count():
    method = hpcopt.AllreduceSGD(lr=0.01)
    tree, state = hpcopt.simulate(method, problem(), 50, target_loss=1e9, return_state=True, **KEYS)
    assert (state.round, tree.attrs["stopped_by"]) == (0, "target_loss")
    tree, state = hpcopt.simulate(method, problem(), 5, dtype="float32", return_state=True, **KEYS)
    assert (state.round, state.x.dtype) == (5, torch.float32)
    late = hpcopt.simulate(method, problem(), 10**6, max_seconds=0.05, **KEYS)
    assert late.attrs["stopped_by"] == "max_seconds"
    assert late["metrics/seconds"][-1] > 0.05
    with pytest.raises(UserError, match=r"hpcopt\.simulate: \[run\] evaluate_evry: unknown key"):
        hpcopt.simulate(method, problem(), 5, evaluate_evry=2)


def test_where_a_step_brings_the_wish_to_stop_the_loop_asks_nobody(monkeypatch):
    keys = KEYS | {"max_seconds": 0.05}
    late = hpcopt.simulate(Counting(), problem(), 10**6, **keys)
    assert late.attrs["stopped_by"] == "max_seconds"
    step = Counting.step
    monkeypatch.setattr(Counting, "step", lambda *a: replace(step(*a), wish=0))
    late = hpcopt.simulate(Counting(), problem(), 10, **keys)
    assert late.attrs["stopped_by"] == "rounds"
    assert late["metrics/seconds"][-1] > 0.05


def test_a_checkpoint_after_a_record_brings_nothing_to_rest_again(monkeypatch, tmp_path):
    rests = []
    monkeypatch.setattr(hpcopt.AllreduceSGD, "pause", lambda self, state: rests.append(state.round))
    keys = {"rounds": 6, "evaluate_every": 3, "checkpoint_every": 2}
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.01), problem(), out=tmp_path / "run", **keys)
    assert rests == [0, 2, 3, 4, 6]
    assert not (tmp_path / "run/alive").exists()


def test_a_loss_that_is_not_finite_ends_it_with_its_record():
    tree = hpcopt.simulate(hpcopt.AllreduceSGD(lr=1e9), problem(), 1000, **KEYS)
    assert tree.attrs["stopped_by"] == "not finite"
    assert not np.isfinite(tree["metrics/loss"][-1])
    assert np.isfinite(tree["metrics/loss"][:-1]).all()


def test_neither_mpi4py_nor_h5py_is_needed(tmp_path):
    program = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mpi4py", "h5py"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Without())
import hpcopt
tree = hpcopt.simulate(hpcopt.DPSGD(lr=0.01), hpcopt.LinearRegression(4, dim=3), 4, progress=True)
print(len(tree["metrics/loss"]), [n for n in ("mpi4py", "h5py") if n in sys.modules])
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        check=False,
    )
    assert result.stdout == "2 []\n", result.stderr
    assert "round 4/4" in result.stderr
    assert not list(tmp_path.iterdir())


# --- metrics of one's own --------------------------------------------------------------------------


def one_that_comes_late():
    calls = []

    def late(problem, model):
        """Has nothing to say at round 0."""
        calls.append(model)
        return {"n": 1.0, "row": torch.arange(problem.share.n)} if len(calls) > 1 else None

    return late


def test_numbers_rows_and_what_comes_late(tmp_path):
    def samples(problem, model):
        problem.gradients(model)  # is not counted
        return problem.share.n

    keys = KEYS | {"metrics": [samples, one_that_comes_late()]}
    method = hpcopt.Local(lr=0.01, local_steps=1)
    tree = hpcopt.simulate(method, problem(), 6, **keys)
    keys = KEYS | {"metrics": [samples, one_that_comes_late()], "out": tmp_path / "run"}
    stored = hpcopt.load(hpcopt.run(method, problem(), rounds=6, **keys))
    check_identical(tree, stored)
    assert tree["metrics/samples"].values.tolist() == [5, 5, 5]
    np.testing.assert_array_equal(tree["metrics/late_n"], [np.nan, 1, 1])
    np.testing.assert_array_equal(tree["metrics/late_row"], [np.nan, 2, 2])
    assert tree["workers/late_row"].values[1:].tolist() == [[0, 1, 2, 3, 4]] * 2
    assert tree["metrics/gradients"].values.tolist() == [0, 3 * 5 * 11, 6 * 5 * 11]


def loss(problem, model):
    return 1.0


def matrix(problem, model):
    return torch.ones(2, 3)


def word(problem, model):
    return "much"


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([loss], 'a metric "loss" is recorded already'),
        ([matrix], r"matrix gave numbers of shape \(2, 3\).*\(5,\)"),
        ([word], "word gave 'much', which is no number"),
        ([lambda problem, model: 1.0], "has no name"),
        ([word, "elsewhere:word"], 'two metrics are called "word"'),
        (["nowhere:metric"], 'run.metrics = "nowhere:metric": no module nowhere'),
        (["json:lods"], "module json .* has no function lods; did you mean 'loads'"),
        (["json"], 'is written "package.module:function"'),
    ],
)
def test_what_is_no_metric_is_refused(metrics, message, tmp_path):
    with pytest.raises(UserError, match=message):
        hpcopt.simulate(hpcopt.Local(lr=0.01), problem(), 3, metrics=metrics)
    with pytest.raises(UserError, match=message):
        hpcopt.run(hpcopt.Local(lr=0.01), problem(), out=tmp_path / "run", rounds=3, metrics=metrics)
    assert not (tmp_path / "run/run.h5").exists()


def test_a_function_of_a_script_comes_along_on_resume(tmp_path):
    def first(problem, model):
        return 1.0

    def second(problem, model):
        return 2.0

    keys = {"problem": problem(), "overrides": ("run.rounds=6",)}
    method = hpcopt.Local(lr=0.01)
    hpcopt.run(method, problem(), out=tmp_path / "run", rounds=3, metrics=[first], **KEYS)
    with pytest.raises(UserError, match=r"resume it from Python, with hpcopt\.resume\(.*metrics=\[first\]\)"):
        hpcopt.resume(tmp_path / "run", **keys)
    metrics = hpcopt.load(hpcopt.resume(tmp_path / "run", metrics=[first, second], **keys))["metrics"]
    assert metrics["first"].values.tolist() == [1, 1, 1]
    np.testing.assert_array_equal(metrics["second"], [np.nan, np.nan, 2])


# --- what a method records by itself ---------------------------------------------------------------


class AllreduceSGD(hpcopt.AllreduceSGD):
    """Keeps a histogram and a list, and counts its pauses."""

    paused = 0

    def pause(self, state):
        self.paused += 1

    def groups(self, state):
        rounds = np.arange(state.round)
        return {
            "staleness": Group(("delay",), {"count": rounds + 1}, 4, "fold"),
            "spectrum": Group(("refresh", "pair"), {"eigenvalue": np.stack([rounds, -rounds], 1) / 2}, 3),
        }


def test_groups_are_folded_or_cut_and_go_on(tmp_path):
    method = AllreduceSGD(lr=0.01)
    tree = hpcopt.simulate(method, problem(), 6, **KEYS)
    assert method.paused == 3  # rounds 0, 3 and 6; a checkpoint there needs no more
    hpcopt.run(method, problem(), out=tmp_path / "run", rounds=4, **KEYS)
    assert hpcopt.load(tmp_path / "run")["staleness/count"].values.tolist() == [1, 2, 3, 4]
    known = hpcopt.engine.names.METHODS | {"allreduce_sgd": f"{__name__}:AllreduceSGD"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hpcopt.engine.names, "METHODS", known)
        hpcopt.resume(tmp_path / "run", problem=problem(), overrides=("run.rounds=6",))
    for found in (tree, hpcopt.load(tmp_path / "run")):
        assert found["staleness/count"].values.tolist() == [1, 2, 3, 4 + 5 + 6]
        assert found["staleness/count"].dtype == np.int64
        assert found["spectrum/eigenvalue"].values.tolist() == [[1.5, -1.5], [2, -2], [2.5, -2.5]]
        assert found["spectrum/eigenvalue"].dims == ("refresh", "pair")


def test_defaults_that_depend_on_the_run_hold_in_python_too(tmp_path):
    """A cosine falls over the run's rounds, in each of two runs of one method object."""
    method, problem = hpcopt.AllreduceSGD(schedule="cosine"), hpcopt.Quadratic(2, "power", 5)
    for rounds in (8, 3):
        losses = hpcopt.simulate(method, problem, rounds, evaluate_every=1)["metrics/loss"].values
        assert (np.diff(losses) < 0).all()
        given = hpcopt.AllreduceSGD(schedule="cosine", lr_horizon=rounds)
        same = hpcopt.run(given, problem, out=tmp_path / str(rounds), rounds=rounds, evaluate_every=1)
        assert np.array_equal(losses, hpcopt.load(same)["metrics/loss"])
    assert method.settings.lr_horizon is None


def test_a_metric_leaves_no_trace_and_names_are_taken_once():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 2))
    data = torch.randn(40, 6), torch.randint(0, 2, (40,))
    problem = hpcopt.Network(model, torch.nn.functional.cross_entropy, data, data, workers=2, batch_size=4)

    def norm(problem, model):
        return problem.gradients(model).norm(dim=1)

    def count(problem, model):
        return 0.5

    def norm_x(problem, model):
        return 1.0

    plain, looked_at = (
        hpcopt.simulate(hpcopt.AllreduceSGD(lr=0.1), problem, 4, evaluate_every=1, metrics=metrics)
        for metrics in ([], [norm, count])
    )
    assert np.array_equal(plain["metrics/loss"], looked_at["metrics/loss"])
    assert looked_at["metrics/count"].values.tolist() == [0.5] * 5
    norm.__name__ = norm.__qualname__ = "norm"
    both = [lambda_named("norm", lambda *_: {"x": 2.0}), norm_x]
    with pytest.raises(UserError, match='a metric "norm_x" is recorded already'):
        hpcopt.simulate(hpcopt.AllreduceSGD(lr=0.1), problem, 1, metrics=both)


def lambda_named(name, function):
    function.__name__ = function.__qualname__ = name
    return function


@pytest.mark.parametrize("setting", ["out", "overlap", "checkpoint_every"])
def test_settings_that_mean_nothing_are_refused(setting):
    with pytest.raises(UserError, match=f"{setting}: means nothing here"):
        hpcopt.simulate(hpcopt.AllreduceSGD(), hpcopt.Quadratic(2, "power", 5), 1, **{setting: 1})


def test_a_problem_of_other_workers_is_refused(tmp_path):
    problem = hpcopt.Quadratic(2, "power", 5)
    with pytest.raises(UserError, match="workers = 3, but the problem was made for 2 workers"):
        hpcopt.run(hpcopt.AllreduceSGD(), problem, out=tmp_path / "run", rounds=1, workers=3)
