"""`run.deterministic` in torch: what is set for a run, what is as before afterwards, what is refused."""

import os

import numpy as np
import pytest
import torch
from torch import nn

import hpcopt
from hpcopt.config.run import RunTable
from hpcopt.engine import determinism
from hpcopt.engine.determinism import WORKSPACE, repeatable

KEYS = {"device": "cpu", "deterministic": True, "evaluate_every": 1}
QUADRATIC = hpcopt.Quadratic(workers=2, dim=3)


def settings():
    return (
        torch.get_deterministic_debug_mode(),
        torch.backends.cudnn.deterministic,
        torch.backends.cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,
    )


@pytest.fixture
def unusual():
    """Settings that are not torch's own ones, as a user may have made them."""
    usual = settings()
    given = ("warn", False, True, True)
    determinism._set(*given[:3], filled=given[3])
    yield settings()
    determinism._set(*usual[:3], filled=usual[3])


def within(problem, model):
    """A metric: whether torch is set as `deterministic` says."""
    return float(settings() == (2, True, False, False))


def put(problem, model):
    """A metric that cannot be computed with the same bits each time."""
    return float(torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))[0])


def breaks(problem, model):
    raise RuntimeError("some other error")


def simulate(metric, **keys):
    return hpcopt.simulate(hpcopt.AllreduceSGD(lr=0.1), QUADRATIC, 1, metrics=[metric], **KEYS | keys)


def test_settings_are_those_of_the_run_while_it_lasts(unusual, tmp_path):
    for deterministic in (True, False):
        found = simulate(within, deterministic=deterministic)
        assert (found["metrics/within"] == deterministic).all()
        assert settings() == unusual
    # on a GPU they say which it is; what torch rounds there can be asked here too
    assert found.attrs["tf32"] == found.attrs["device_name"] == ""
    assert determinism.tf32(torch.device("cuda")) == "convolutions"
    with pytest.raises(RuntimeError, match="some other error"):
        simulate(breaks)
    assert settings() == unusual
    file = hpcopt.run(
        hpcopt.AllreduceSGD(lr=0.1), QUADRATIC, out=tmp_path, rounds=1, metrics=[within], **KEYS
    )
    assert (hpcopt.load(file)["metrics/within"] == 1).all()
    assert settings() == unusual


class Unpooled(nn.Module):
    """Pooled and unpooled; only the latter has no deterministic form."""

    def __init__(self):
        super().__init__()
        self.pool, self.back = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)
        self.last = nn.Linear(16, 2)

    def forward(self, x):
        return self.last(self.back(*self.pool(x)).flatten(1))


def test_what_has_no_deterministic_form_is_named(unusual):
    rows = np.random.default_rng(0).standard_normal((8, 1, 4, 4)), np.arange(8) % 2
    network = hpcopt.Network(Unpooled(), nn.functional.cross_entropy, rows, workers=2, batch_size=2)
    method = hpcopt.AllreduceSGD(lr=0.1)
    for call, named in (
        (lambda: hpcopt.simulate(method, network, 1, **KEYS), "max_unpool"),  # in the trial of the model
        (lambda: simulate(put), "put_"),
    ):
        with pytest.raises(
            hpcopt.UserError, match=rf"run\] deterministic = true: torch's {named}\S* has no"
        ) as told:
            call()
        assert "torch.use_deterministic_algorithms" not in str(told.value)
        assert settings() == unusual
    hpcopt.simulate(method, network, 1, **KEYS | {"deterministic": False})


@pytest.mark.parametrize(
    ("started", "given", "said"),
    [
        (False, None, None),
        (False, ":16:8", None),
        (True, ":4096:8", None),
        (True, None, "before Python starts"),
        (False, ":8:8", "CUBLAS_WORKSPACE_CONFIG=:8:8"),
    ],
)
def test_cublas_is_told_before_cuda_starts(monkeypatch, started, given, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.delenv(WORKSPACE, raising=False)
    if given is not None:
        monkeypatch.setenv(WORKSPACE, given)
    with repeatable(RunTable(deterministic=True, device="cpu")):
        assert os.environ.get(WORKSPACE) == given  # nothing starts there
    table, before = RunTable(deterministic=True, device="cuda"), settings()
    if said is None:
        with repeatable(table):
            assert os.environ[WORKSPACE] == (given or ":4096:8")
    else:
        with pytest.raises(hpcopt.UserError, match=said), repeatable(table):
            pass
    assert settings() == before
    monkeypatch.delenv(WORKSPACE, raising=False)
