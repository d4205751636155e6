"""Parameters by name, from every kind of state and every version of checkpoints."""

import numpy as np
import pytest
from mpi4py import MPI

import hpcopt
from hpcopt.errors import UserError
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
