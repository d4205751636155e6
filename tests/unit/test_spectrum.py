"""`hpcopt.spectrum` and its command against dense Hessians; the files that they leave."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hpcopt
from hpcopt.errors import NotFinite, UserError
from hpcopt.problems.base import Draw, Share
from hpcopt.report.spectrum import density, draw, table


def network(workers: int = 1) -> hpcopt.Network:
    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((37, 6)), generator.integers(0, 3, 37)
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    return hpcopt.Network(model, nn.functional.cross_entropy, (X, y), (X, y), workers=workers, batch_size=4)


def dense(recipe, x=None, draw=None, seed=0):
    """The Hessian, column by column."""
    problem = recipe.bind(Share(range(recipe.workers), recipe.workers, seed))
    x = problem.initial() if x is None else x
    return np.array([problem.total_hvp(x, e, draw).numpy() for e in torch.eye(problem.dim).double()])


def ends(H, largest, smallest):
    values = np.linalg.eigvalsh((H + H.T) / 2)
    return np.concatenate([values[:smallest], values[len(values) - largest :]])


def close(tree, expected):
    loose = 1e-6 * np.abs(expected).max()
    np.testing.assert_allclose(tree["spectrum/eigenvalue"], expected[None], rtol=0, atol=loose)
    assert (tree["spectrum/residual"] <= loose).all()


def test_of_a_logistic_regression_written_out():
    generator = np.random.default_rng(1)
    X = generator.standard_normal((90, 23)) * np.logspace(0, -1, 23)
    y = np.sign(X[:, 0] + generator.standard_normal(90))
    recipe = hpcopt.Logistic((X, y), workers=4, regularisation=1e-2, bias=False)
    # at 0 every row has l'' = 1/4; products are of the mean over rows
    H = X.T @ X / 4 / 90 + 1e-2 * np.eye(23)
    tree = hpcopt.spectrum(recipe, largest=10, smallest=3)
    close(tree, ends(H, 10, 3))
    assert tree.attrs["scale"] == 90
    trace = float((tree["density/eigenvalue"] * tree["density/weight"]).sum("node").mean()) * 23
    assert trace == pytest.approx(np.trace(H), rel=0.5)


def test_of_a_quadratic_with_copies_zeros_and_negative_eigenvalues():
    spectrum = [4.0] * 3 + [2.0] * 2 + list(np.linspace(0, 1, 40)) + [0.0] * 9 + [-3.0] * 2
    tree = hpcopt.spectrum(hpcopt.Quadratic(2, eigenvalues=spectrum), largest=6, smallest=3, probes=0)
    close(tree, np.concatenate([np.sort(spectrum)[:3], np.sort(spectrum)[-6:]]))
    assert "density" not in tree


@pytest.mark.parametrize("batch", [False, True])
def test_of_a_network_at_its_start(batch):
    tree = hpcopt.spectrum(network(), largest=10, smallest=3, seed=5, batch=batch, probes=0, iterations=53)
    close(tree, ends(dense(network(), draw=Draw(0) if batch else None, seed=5), 10, 3))


def test_of_a_trained_run_and_what_is_written(tmp_path):
    run, out = tmp_path / "run", tmp_path / "out"
    recipe, keys = network(4), {"largest": 4, "smallest": 1, "probes": 2, "nodes": 6, "iterations": 53}
    hpcopt.run(hpcopt.DPSGD(lr=0.3), recipe, out=run, rounds=4, dtype="float64")
    tree = hpcopt.spectrum(recipe, run=run, out=out, **keys)
    hpcopt.export(run, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as arrays:
        each = np.concatenate([array.reshape(len(array), -1) for array in arrays.values()], axis=1)
    assert not np.array_equal(each[0], each[2])
    close(tree, ends(dense(recipe, torch.from_numpy(each.mean(0))), 4, 1))
    written = hpcopt.load(out)
    assert written["spectrum/eigenvalue"].dims == ("refresh", "pair")
    assert written["density/weight"].dims == ("probe", "node")
    for column in ("spectrum/eigenvalue", "spectrum/residual", "density/eigenvalue", "density/weight"):
        np.testing.assert_array_equal(written[column], tree[column])
    assert written["metrics/round"].values.tolist() == [4]
    assert written.attrs["model"].endswith("round-00000004.h5")
    assert written.attrs.keys() - {"jobs", "schema", "schema_version", "digests"} == tree.attrs.keys()
    np.testing.assert_allclose(written["density/weight"].sum("node"), 1)
    with pytest.raises(UserError, match="already holds a run"):
        hpcopt.spectrum(recipe, out=out)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"largest": 50, "smallest": 4}, "has 53 parameters"),
        ({"largest": 10, "iterations": 11}, "iterations = 11: must be at least 14"),
        ({"largest": -1}, "largest = -1"),
        ({"largest": 0}, "at least one must be above 0"),
        ({"tolerence": 1e-3}, r"tolerence: unknown; allowed: .*tolerance"),
        ({"run": "nowhere"}, "no checkpoint"),
    ],
)
def test_bad_input(keys, message):
    with pytest.raises(UserError, match=message):
        hpcopt.spectrum(network(), **keys)


def test_a_run_of_another_problem(tmp_path):
    hpcopt.run(hpcopt.AllreduceSGD(), hpcopt.Quadratic(2, dim=5, eigenvalues="power"), out=tmp_path, rounds=1)
    with pytest.raises(UserError, match=r"shape \[5\]; this problem has 53 parameters"):
        hpcopt.spectrum(network(), run=tmp_path)


class NoProducts(hpcopt.Quadratic):
    """Its gradients are known, and no more."""

    def hvp(self, *_):
        """Not written."""
        raise NotImplementedError("only gradients")


def test_a_problem_without_a_hessian():
    with pytest.raises(UserError, match=r"no Hessian-vector products.*only gradients"):
        hpcopt.spectrum(NoProducts(2, eigenvalues="power", dim=5), largest=2)


class Diverged(hpcopt.Quadratic):
    """Far out."""

    def hvp(self, x, v, H):
        """Nothing."""
        return v * np.nan


def test_a_model_that_has_diverged():
    with pytest.raises(NotFinite, match="not finite"):
        hpcopt.spectrum(Diverged(2, eigenvalues="power", dim=5), largest=2)


def test_density_of_known_nodes():
    """Two probes of two nodes each; the density has integral 1, and a quarter of it is at 1."""
    nodes, weights = np.array([[0.0, 1.0], [0.0, 3.0]]), np.array([[0.5, 0.5], [0.75, 0.25]])
    at = np.linspace(-1, 4, 5001)
    found = density(nodes, weights, at, 0.05)
    assert np.trapezoid(found, at) == pytest.approx(1, abs=1e-9)
    assert np.trapezoid(found[abs(at - 1) < 0.5], dx=1e-3) == pytest.approx(0.25, abs=1e-3)


def test_the_table_and_the_figure(tmp_path, monkeypatch):
    tree = hpcopt.spectrum(hpcopt.Quadratic(2, eigenvalues=[3.0, 2.0, 1.0, -1.0]), largest=2, smallest=1)
    lines = table(tree).splitlines()
    assert "4 parameters, at the start" in lines[0]
    assert [float(line.split()[1]) for line in lines[2:]] == pytest.approx([3, 2, -1])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib.figure", None)
        assert "pip install 'hpcopt[report]'" in draw(tree, tmp_path / "a.png")
    pytest.importorskip("matplotlib")
    draw(tree, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_command(tmp_path: Path, command):
    config = tmp_path / "config.toml"
    config.write_text('[run]\nworkers = 2\n[problem]\nkind = "quadratic"\neigenvalues = [3.0, 2.0, -1.0]\n')
    code, out, err = command("spectrum", config, "--largest", 2, "--smallest", 1, "--out", tmp_path / "out")
    assert code == 0, err
    assert [float(line.split()[1]) for line in out.splitlines()[2:5]] == pytest.approx([3, 2, -1])
    assert hpcopt.load(tmp_path / "out")["spectrum/eigenvalue"].shape == (1, 3)
    code, _, err = command("spectrum", config, "--largest", 4)
    assert code == 2
    assert "3 parameters" in err
    assert "Traceback" not in err
