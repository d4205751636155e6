"""Parameters by name, from every kind of state and every version of checkpoints."""

import numpy as np
import pytest
import torch
from mpi4py import MPI

import hpcopt
from hpcopt.api import start
from hpcopt.config import from_tables
from hpcopt.errors import UserError
from hpcopt.problems import models
from hpcopt.storage import format
from hpcopt.storage.checkpoint import Checkpoints, Piece

LAYOUT = {"names": ["w", "b"], "shapes": [[2, 3], [2]], "n_shared": 2}
X = np.arange(8.0)


def checkpoint(run, *parts, name="x"):
    """A checkpoint of a model that lies in the file in these parts, one after the other."""
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    meta = {"model": name, "layout": LAYOUT}
    Checkpoints(MPI.COMM_SELF, run / "checkpoints", 1).write(
        3, [Piece(name, shape, 0, np.concatenate(parts))], meta
    )


@pytest.mark.parametrize("version", [1, 2])
def test_one_model_whole_or_in_slices(tmp_path, monkeypatch, version):
    monkeypatch.setattr(format, "SCHEMA_VERSION", version)
    checkpoint(tmp_path, X[:5], X[5:], name="y")
    monkeypatch.undo()
    path = hpcopt.export(tmp_path, tmp_path / "w.npz")
    assert format.read_meta(path)["schema_version"] == version
    found = np.load(tmp_path / "w.npz")
    assert found["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["b"].tolist() == [6, 7]


def test_models_of_their_own_are_stacked(tmp_path):
    checkpoint(tmp_path, np.stack([X, X + 10, X + 20]))
    hpcopt.export(tmp_path, tmp_path / "w.npz")
    found = np.load(tmp_path / "w.npz")
    assert (found["w"].shape, found["b"].tolist()) == ((3, 2, 3), [[6, 7], [16, 17], [26, 27]])


def test_what_is_no_model_is_said(tmp_path):
    checkpoint(tmp_path, X[:7])
    with pytest.raises(UserError, match=r"round-00000003\.h5: /state/x \(7,\) is no model"):
        hpcopt.export(tmp_path, tmp_path / "w.npz")


def test_a_newer_checkpoint_is_not_guessed_at(tmp_path, monkeypatch):
    monkeypatch.setattr(format, "SCHEMA_VERSION", 3)
    checkpoint(tmp_path, X)
    monkeypatch.undo()
    with pytest.raises(UserError, match="schema hpcopt-checkpoint version 3 is not known here"):
        hpcopt.export(tmp_path, tmp_path / "w.npz")


class Everything(torch.nn.Module):
    """All that a state_dict may hold."""

    def __init__(self):
        super().__init__()
        self.frozen = torch.nn.Linear(6, 6)
        self.frozen.requires_grad_(False)
        self.norm = torch.nn.BatchNorm1d(6)
        self.first = torch.nn.Linear(6, 6)
        self.tied = torch.nn.Linear(6, 6)
        self.tied.weight = self.first.weight
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.head = torch.nn.Linear(6, 2)
        self.register_buffer("mask", torch.tensor([True] * 5 + [False]))
        self.register_buffer("scratch", torch.ones(6), persistent=False)

    def forward(self, x):
        x = self.norm(self.frozen(x)).relu()
        return self.head(self.scale * self.tied(self.first(x)) * self.mask * self.scratch)


def everything():
    torch.manual_seed(0)
    module = Everything()
    x = torch.randn(60, 6)
    y = (x.sum(1) > 0).long()
    loss = torch.nn.functional.cross_entropy
    keys = {"workers": 3, "batch_size": 4, "weights": "rows", "partition": "unequal", "private": ["head.*"]}
    return module, hpcopt.Network(module, loss, (x[:48], y[:48]), (x[48:], y[48:]), **keys)


def loaded(run, file, **which):
    """A fresh module with what was exported, strictly."""
    torch.manual_seed(9)
    module = Everything()
    hpcopt.export(run, file, **which)
    module.load_state_dict(torch.load(file, weights_only=True))
    return module.eval()


def measured(module, x, y):
    with torch.no_grad():
        return float(torch.nn.functional.cross_entropy(module(torch.as_tensor(x)), torch.as_tensor(y)))


def test_a_state_dict_has_everything_and_is_the_model_that_was_measured(tmp_path):
    start, problem = everything()
    options = {"comm": MPI.COMM_SELF, "rounds": 4, "checkpoint_every": 2, "dtype": "float32"}
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.1), problem, out=tmp_path / "one", **options)
    test = problem.data.test
    module = loaded(tmp_path / "one", tmp_path / "w.pt")
    records = hpcopt.load(tmp_path / "one")["metrics/test_loss"]
    assert measured(module, test.read(np.arange(12)), test.labels) == pytest.approx(
        float(records[-1]), rel=1e-5
    )
    assert module.tied.weight is module.first.weight
    assert torch.equal(module.frozen.weight, start.frozen.weight)
    assert torch.equal(module.mask, start.mask)
    assert not torch.equal(module.scale, start.scale)
    before = loaded(tmp_path / "one", tmp_path / "w.pt", round=2).state_dict()
    assert not torch.equal(before["scale"], module.scale)
    assert not torch.equal(before["norm.running_mean"], module.norm.running_mean)
    arrays = dict(hpcopt_npz(tmp_path / "one", tmp_path / "w.npz"))
    assert list(arrays) == list(start.state_dict())
    assert all(np.array_equal(arrays[name], value) for name, value in module.state_dict().items())
    with pytest.raises(UserError, match=r"no checkpoint of round 3; there are those of 2, 4"):
        hpcopt.export(tmp_path / "one", tmp_path / "w.pt", round=3)
    # what is fixed is in checkpoints, and no job misses it there
    hpcopt.resume(tmp_path / "one", problem=problem, comm=MPI.COMM_SELF, overrides=["run.rounds=5"])


def hpcopt_npz(run, file):
    hpcopt.export(run, file)
    return np.load(file)


def test_models_of_their_own_one_of_them_or_their_mean(tmp_path):
    _, problem = everything()
    options = {"comm": MPI.COMM_SELF, "rounds": 3, "out": tmp_path / "own", "dtype": "float32"}
    hpcopt.run(hpcopt.DPSGD(lr=0.1, local_steps=2), problem, **options)
    records, file = hpcopt.load(tmp_path / "own"), tmp_path / "w.pt"
    rows = problem._parts(0).train[2]
    x, y = problem.data.train.read(rows), problem.data.train.labels[rows]
    found = measured(loaded(tmp_path / "own", file, worker=2), x, y)
    assert found == pytest.approx(float(records["workers/loss"][-1, 2]), rel=1e-5)
    test = problem.data.test
    found = measured(loaded(tmp_path / "own", file, mean=True), test.read(np.arange(12)), test.labels)
    assert found == pytest.approx(float(records["metrics/global_test_loss"][-1]), rel=1e-5)
    with pytest.raises(UserError, match=r"3 workers have models of their own: say which"):
        hpcopt.export(tmp_path / "own", file)
    with pytest.raises(UserError, match=r"no worker 3; allowed are 0 to 2"):
        hpcopt.export(tmp_path / "own", file, worker=3)


def test_built_in_models_load_too(tmp_path):
    tables = {
        "run": {"workers": 2, "rounds": 1, "out": str(tmp_path / "toml")},
        "problem": {"kind": "network", "dataset": "digits", "hidden": [8]},
    }
    start(MPI.COMM_SELF, from_tables(tables, "test"))
    hpcopt.export(tmp_path / "toml", tmp_path / "w.pt")
    models.build("mlp", (1, 8, 8), 10, [8], 0.0).load_state_dict(torch.load(tmp_path / "w.pt"))
