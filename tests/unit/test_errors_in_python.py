"""Who uses the library gets the messages that who writes a config gets."""

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.cli import app

PROBLEM = hpcopt.Quadratic(2, "power", 5)


def factory(workers):
    return PROBLEM


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"lr": -1}, "AllreduceSGD: lr = -1: .*greater than 0"),
        ({"lr": float("nan")}, "AllreduceSGD: lr = nan"),
        ({"lr": "0.1"}, "AllreduceSGD: lr = '0.1'"),
        ({"momentun": 0.9}, "AllreduceSGD: momentun: unknown key; did you mean 'momentum'"),
    ],
)
def test_settings_of_a_method(keys, words):
    with pytest.raises(hpcopt.UserError, match=words):
        hpcopt.AllreduceSGD(**keys)


@pytest.mark.parametrize(
    ("method", "problem", "words"),
    [
        (hpcopt.AllreduceSGD(), factory, r"problem = .*: is none; call it: problem = factory\("),
        (hpcopt.AllreduceSGD(), hpcopt.Quadratic, r"problem = .*call it: problem = Quadratic\("),
        (hpcopt.AllreduceSGD(), None, "problem = None: is none"),
        (hpcopt.AllreduceSGD, PROBLEM, r"method = .*call it: method = AllreduceSGD\("),
        ("allreduce_sgd", PROBLEM, "method = 'allreduce_sgd': is none"),
    ],
)
@pytest.mark.parametrize("call", [hpcopt.run, hpcopt.simulate])
def test_a_class_or_a_function_is_not_what_it_makes(tmp_path, call, method, problem, words):
    where = {"out": tmp_path} if call is hpcopt.run else {}
    with pytest.raises(hpcopt.UserError, match=words):
        call(method, problem, rounds=1, **where)


@pytest.mark.parametrize(
    ("keys", "words"),
    [({"rouns": 3}, "rouns: unknown key; did you mean 'rounds'"), ({"rounds": -1}, "rounds = -1")],
)
def test_settings_of_a_run(tmp_path, keys, words):
    with pytest.raises(hpcopt.UserError, match=words):
        hpcopt.run(hpcopt.AllreduceSGD(), PROBLEM, out=tmp_path, **keys)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: hpcopt.Quadratic("2"), "Quadratic: workers = '2': must be a whole number"),
        (lambda: hpcopt.Quadratic(*range(2, 9)), "6 values were given; by place there are eigenvalues, dim"),
        (lambda: hpcopt.Quadratic(2, dimm=3), "dimm: unknown key; did you mean 'dim'"),
        (lambda: hpcopt.run(hpcopt.AllreduceSGD(), PROBLEM, out="x", metrics="loss"), 'run.metrics = "loss"'),
    ],
)
def test_d18_what_a_problem_or_a_run_is_given(make, words):
    with pytest.raises(hpcopt.UserError, match=words):
        make()


@pytest.mark.parametrize("overrides", [[9], {"run.rounds": 9}, "run.rounds"])
def test_d18_overrides_that_are_none(overrides, tmp_path):
    (tmp_path / "config.toml").write_text('[problem]\nkind = "quadratic"\n')
    with pytest.raises(hpcopt.UserError, match=r"must be TABLE.KEY=VALUE"):
        hpcopt.resume(tmp_path, overrides=overrides)


def test_one_override_is_a_string(tmp_path):
    hpcopt.run(hpcopt.AllreduceSGD(), PROBLEM, out=tmp_path, rounds=2)
    with pytest.raises(hpcopt.UserError, match=r"problem = .*call it: problem = factory\("):
        hpcopt.resume(tmp_path, problem=factory, overrides="run.rounds=3")
    hpcopt.resume(tmp_path, problem=PROBLEM, overrides="run.rounds=3")
    assert hpcopt.load(tmp_path).attrs["last_round"] == 3


@pytest.mark.parametrize("override", ["run.method=topk", "run.seed=3", "run.workers=3", "run.dtype=float32"])
def test_a_finished_run_does_not_become_another_one(tmp_path, override):
    hpcopt.run(hpcopt.AllreduceSGD(), PROBLEM, out=tmp_path, rounds=2)
    with pytest.raises(hpcopt.UserError, match=f"was written with {override.split('.')[1].split('=')[0]} = "):
        hpcopt.resume(tmp_path, problem=PROBLEM, overrides=override)


def test_numbers_that_are_not_finite_are_looked_for_where_they_come_from(tmp_path):
    x = np.ones((12, 3))
    x[5, 1] = np.nan
    data = x, np.arange(12) % 2
    recipe = hpcopt.Network(torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy, data, workers=2)
    with pytest.raises(
        hpcopt.NotFinite, match=r"nan at the start: are there such numbers in the data"
    ) as caught:
        hpcopt.run(hpcopt.AllreduceSGD(), recipe, out=tmp_path, rounds=2)
    assert "learning rate" not in str(caught.value)


def test_init_says_what_it_cannot_print():
    with pytest.raises(hpcopt.UserError, match="a function takes what it takes"):
        app(["init", "allreduce_sgd", "--problem", f"{__name__}:factory"], standalone_mode=False)
