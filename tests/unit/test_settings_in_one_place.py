"""Settings are resolved once: the method that runs, config.toml and run.h5 say the same."""

import json
import tomllib

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.config import from_tables

PROBLEM = hpcopt.Quadratic(2, "power", 5)
ROUNDS = {"rounds": 4, "evaluate_every": 2}


def network(workers=2):
    torch.manual_seed(0)
    data = torch.randn(12, 3), torch.arange(12) % 2
    return hpcopt.Network(torch.nn.Linear(3, 2), torch.nn.functional.cross_entropy, data, workers=workers)


def recorded(out):
    """What config.toml and run.h5 say; fails where they do not agree."""
    text = tomllib.loads((out / "config.toml").read_text())
    assert text == json.loads(hpcopt.load(out).attrs["config"])
    return text


def test_a_cosine_falls_over_the_rounds_of_the_run(tmp_path):
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.02, schedule="cosine"), PROBLEM, out=tmp_path, **ROUNDS)
    hpcopt.run(
        hpcopt.AllreduceSGD(lr=0.02, schedule="cosine", lr_horizon=4), PROBLEM, out=tmp_path / "b", **ROUNDS
    )
    assert recorded(tmp_path)["method"]["lr_horizon"] == 4
    losses = [hpcopt.load(out)["metrics/loss"].values for out in (tmp_path, tmp_path / "b")]
    assert np.array_equal(*losses)


class AllreduceSGD(hpcopt.AllreduceSGD):
    """A class of the user's that is called like a built-in one, and stands still."""

    def step(self, state):
        return hpcopt.StepInfo()


def test_the_class_decides_what_is_recorded_and_what_goes_on(tmp_path):
    hpcopt.run(AllreduceSGD(lr=0.1), PROBLEM, out=tmp_path, **ROUNDS)
    assert recorded(tmp_path)["run"]["method"] == f"{__name__}:AllreduceSGD"
    hpcopt.resume(tmp_path, problem=PROBLEM, overrides=("run.rounds=6",))
    losses = hpcopt.load(tmp_path)["metrics/loss"].values
    assert (losses == losses[0]).all()
    with pytest.raises(
        hpcopt.UserError, match=r'AllreduceSGD: is "allreduce_sgd", but the run was begun with'
    ):
        hpcopt.resume(tmp_path, problem=PROBLEM, method=hpcopt.AllreduceSGD, overrides=("run.rounds=8",))


def test_a_method_that_resume_is_given_has_the_settings_of_the_run(tmp_path):
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.1), PROBLEM, out=tmp_path, **ROUNDS)
    more = {"problem": PROBLEM, "overrides": ("run.rounds=6",)}
    with pytest.raises(hpcopt.UserError, match=r"\[method\] lr = 0.5 was given, but the run has 0.1"):
        hpcopt.resume(tmp_path, method=hpcopt.AllreduceSGD(lr=0.5), **more)
    hpcopt.resume(tmp_path, method=hpcopt.AllreduceSGD(lr=0.1), **more)


class Clipped(hpcopt.Table):
    """A key whose default is not None may be None."""

    clip: float | None = 0.5


class Clipping(hpcopt.Method[Clipped, hpcopt.State]):
    """Never gets as far as a step."""

    def start(self, problem, ports):
        raise AssertionError

    def step(self, state):
        raise AssertionError


def test_a_none_that_no_config_can_hold_is_refused(tmp_path):
    with pytest.raises(hpcopt.UserError, match=r"\[method\] clip = None was given, but the run has 0.5"):
        hpcopt.run(Clipping(clip=None), PROBLEM, out=tmp_path, **ROUNDS)


@pytest.mark.parametrize("way", ["in Python", "by a factory"])
def test_networks_have_one_default_dtype_wherever_they_come_from(tmp_path, way):
    if way == "in Python":
        hpcopt.run(hpcopt.AllreduceSGD(), network(), out=tmp_path, **ROUNDS)
    else:
        kind = {"kind": f"{__name__}:network"}
        config = from_tables({"run": ROUNDS | {"workers": 2, "out": str(tmp_path)}, "problem": kind}, "test")
        from hpcopt.api import MPI, start

        start(MPI.COMM_SELF, config)
    assert recorded(tmp_path)["run"]["dtype"] == "float32"
    _, state = hpcopt.simulate(hpcopt.AllreduceSGD(), network(), 1, return_state=True)
    assert state.x.dtype == torch.float32
    _, state = hpcopt.simulate(hpcopt.AllreduceSGD(), PROBLEM, 1, return_state=True)
    assert state.x.dtype == torch.float64
