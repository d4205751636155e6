"""A model and a loss of the user's own on an imported file, named in a config."""

import sys

import numpy as np
import pytest
import torch
from mpi4py import MPI

import hpcopt
from hpcopt.api import start
from hpcopt.cli import main
from hpcopt.config import dump, from_tables
from hpcopt.errors import UserError
from hpcopt.math.streams import torch_seed

SOURCE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width=4, slope=0.1):
        super().__init__(nn.Linear(3, width), nn.LeakyReLU(slope), nn.Linear(width, 1))

class Distance(nn.Module):
    def __init__(self, power=2.0):
        super().__init__()
        self.power = power

    def forward(self, output, target):
        return ((output[:, 0] - target).abs() ** self.power).mean()

def absolute(output, target, scale=1.0):
    return scale * (output[:, 0] - target).abs().mean()

def not_a_module(**options):
    return options

three = 3
"""
RUN = {"workers": 3, "rounds": 6, "evaluate_every": 2, "seed": 5, "device": "cpu"}


@pytest.fixture(autouse=True)
def rows(tmp_path, monkeypatch):
    """An imported file whose targets are no classes, and the user's module beside it."""
    (tmp_path / "mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    draw = np.random.default_rng(0)
    x = {name: draw.normal(size=(rows, 3)) for name, rows in (("train", 60), ("test", 12))}
    arrays = {f"{key}_{name}": v for name, a in x.items() for key, v in (("x", a), ("y", a @ a[0]))}
    np.savez("rows.npz", **arrays)
    monkeypatch.setattr(sys, "argv", ["hpcopt", "data", "import", "--format", "npz", "rows.npz", "rows.h5"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code


def tables(**keys):
    problem = {"kind": "network", "dataset": "rows.h5", "model": "mine:Net", "loss": "mine:Distance"}
    return {"run": RUN, "method": {"lr": 0.05}, "problem": problem | {"batch_size": 5} | keys}


def ran(out, **keys):
    config = from_tables(tables(**keys) | {"run": RUN | {"out": str(out)}}, "c")
    return hpcopt.load(start(MPI.COMM_SELF, config))


@pytest.mark.parametrize(
    ("loss", "options"), [("mine:Distance", {"power": 1.5}), ("mine:absolute", {"scale": 2.0})]
)
def test_a_config_and_python_make_the_same_run(tmp_path, loss, options):
    keys = {"model_options": {"width": 5}, "loss": loss, "loss_options": options}
    one = ran(tmp_path / "a", **keys)
    import mine

    torch.manual_seed(torch_seed(RUN["seed"], "initial"))
    model = mine.Net(width=5)
    made = mine.Distance(1.5) if loss == "mine:Distance" else lambda o, y: mine.absolute(o, y, scale=2.0)
    problem = hpcopt.Network(model, made, "rows.h5", workers=3, batch_size=5)
    path = hpcopt.run(hpcopt.AllreduceSGD(lr=0.05), problem, comm=MPI.COMM_SELF, out=tmp_path / "b", **RUN)
    other = hpcopt.load(path)
    assert float(one["metrics/loss"][-1]) < float(one["metrics/loss"][0])
    for name in ("loss", "test_loss", "gradients"):
        assert np.array_equal(one["metrics"][name], other["metrics"][name]), name


def test_the_seed_draws_the_start(tmp_path):
    starts = [
        hpcopt.simulate(hpcopt.AllreduceSGD(), from_tables(tables(), "c").problem.recipe(), 0, seed=seed)
        for seed in (1, 1, 2)
    ]
    first, again, other = (float(tree["metrics/loss"][0]) for tree in starts)
    assert first == again != other


def test_a_run_goes_on_with_what_it_is_made_of(tmp_path):
    ran(tmp_path / "a", model_options={"width": 5})
    more = "run.rounds=9"
    hpcopt.resume(tmp_path / "a", overrides=more, comm=MPI.COMM_SELF)
    for setting in ("problem.model_options={width=5, slope=0.2}", "problem.loss=mine:absolute"):
        with pytest.raises(UserError, match=r"the run was begun with"):
            hpcopt.resume(tmp_path / "a", overrides=(more, setting), comm=MPI.COMM_SELF)


def test_a_builtin_model_with_a_loss_of_ones_own():
    keys = {"kind": "network", "dataset": "digits", "hidden": [], "loss": "torch.nn:CrossEntropyLoss"}
    plain = from_tables({"problem": keys | {"loss": "cross_entropy"}}, "c")
    same = from_tables({"problem": keys}, "c")
    soft = from_tables({"problem": keys | {"loss_options": {"label_smoothing": 0.1}}}, "c")
    losses = [
        hpcopt.simulate(hpcopt.AllreduceSGD(), config.problem.recipe(), 3)["metrics/loss"].values
        for config in (plain, same, soft)
    ]
    assert np.array_equal(losses[0], losses[1])
    assert not np.allclose(losses[0], losses[2])
    assert "loss_options" in dump(soft)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model": "absent:Net"}, 'problem.model = "absent:Net": no module absent'),
        ({"model": "mine:Nett"}, "has no Class Nett; did you mean 'Net'"),
        ({"model": "mine:not_a_module"}, "gives a dict, no torch.nn.Module"),
        ({"model_options": {"widht": 5}}, r"refuses problem.model_options = .*did you mean 'width'.*width=4"),
        ({"loss": "mine:three"}, "has no function three"),
        ({"loss_options": {"powr": 1.0}}, r"refuses problem.loss_options = .*did you mean 'power'"),
        ({"loss": "mine:absolute", "loss_options": {"output": 1}}, "refuses problem.loss_options"),
        ({"model": "mlp"}, "its targets are no class labels"),
        ({"loss": "cross_entropy"}, "its targets are no class labels"),
        (
            {"model": "mpl"},
            "model = 'mpl': must be 'mlp', 'cnn', .* \"package.module:Class\"; did you mean 'mlp'",
        ),
        ({"loss": 3}, "loss = 3: must be 'cross_entropy', or your own \"package.module:function\""),
        ({"model": "mlp", "model_options": {"width": 5}}, "model_options = .*: is for a model of your own"),
        ({"hidden": [3]}, r"hidden = \[3\]: is for a built-in model; yours has model_options"),
    ],
)
def test_what_is_wrong_is_told(keys, words):
    with pytest.raises(UserError, match=words):
        hpcopt.simulate(hpcopt.AllreduceSGD(), from_tables(tables(**keys), "c").problem.recipe(), 1)
