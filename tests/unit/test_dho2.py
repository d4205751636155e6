"""DHO2 against FOSI and its ADMM form written out in NumPy with dense Hessians, and what must hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.config import from_tables
from hpcopt.errors import UserError
from hpcopt.methods.parts import curvature
from hpcopt.problems.base import Draw

from .hybrid_cases import ROWS, WORKERS, D, Dense, Logit, begun, oracle, settings

CASES = {
    "sgd": {"base": "sgd", "lr": 0.5, "smallest": 2, "damping": 0.01, "floor": 0.05},
    "momentum": {"lr": 0.1, "alpha": 0.3, "warmup_lr": 0.02},
    "no warm-up": {"warmup": 0, "lr": 0.1, "largest": 1},
    "adam": {"base": "adam", "lr": 0.05, "smallest": 1},
    "adamw": {"base": "adamw", "lr": 0.05, "weight_decay": 0.5, "warmup_lr": 0.1, "clip": 0.2},
    "clipped": {"lr": 0.1, "clip": 0.2},
    "batches": {"lr": 0.05, "curvature_batch": 8},
    "admm": {"variant": "admm", "lr": 0.05, "sigma": 0.2, "outer_every": 2, "clip": 0.2},
    "admm damped": {"variant": "admm", "base": "adam", "lr": 0.2, "outer_every": 1, "outer_damping": 0.3},
    "admm reset": {"variant": "admm", "lr": 0.1, "outer_every": 1, "outer_reset": True},
    "late": {"variant": "concurrent", "lr": 0.1, "alpha": 0.3, "warmup_lr": 0.02, "handover_rounds": 2},
    "as late as can be": {"variant": "concurrent", "base": "adam", "lr": 0.05, "handover_rounds": 4},
    "late, batches": {"variant": "concurrent", "lr": 0.05, "handover_rounds": 1, "curvature_batch": 8},
}
ROUNDS = 16


@pytest.mark.parametrize("name", CASES)
def test_the_trajectory_is_the_papers(name):
    method = settings(**CASES[name])
    problem = Dense(batch_size=5 if "batches" in name else "full")
    points, spectra = oracle(problem, ROUNDS, method.settings)
    _, _, state = begun(method, problem.recipe)
    for point in points:
        method.step(state)
        state.round += 1
        np.testing.assert_allclose(state.x, point, rtol=1e-8, atol=1e-10)
    found = method.groups(state)["spectrum"].columns
    np.testing.assert_allclose(found["eigenvalue"], spectra, rtol=1e-9)
    assert len(spectra) >= 3
    assert found["residual"].max() < 1e-9
    if "reset" in str(CASES[name]):  # it makes a difference here
        other = settings(**CASES[name] | {"outer_reset": False})
        assert not np.allclose(oracle(problem, ROUNDS, other.settings)[0][-1], points[-1], rtol=1e-3)


LATE = {"variant": "concurrent", "lr": 0.1, "handover_rounds": 3, "refresh_every": 5}


def test_another_process_computes_the_snapshot_again():
    """A state that is carried over between snapshot and hand-over goes on to the bit; the pairs are h old."""
    recipe, (one, other) = Logit(workers=WORKERS), (settings(**LATE) for _ in range(2))
    _, _, state = begun(one, recipe)
    for _ in range(5):
        one.step(state)
        state.round += 1
    assert int(state.asked) == 3
    assert not int(state.refreshes)
    _, _, copy = begun(other, recipe)
    for name, (_, tensor) in copy.tensors().items():
        tensor.copy_(state.tensors()[name][1])
    copy.round = state.round
    ages = []
    for _ in range(9):
        for method, each in ((one, state), (other, copy)):
            method.step(each)
            each.round += 1
        assert torch.equal(state.x, copy.x)
        ages.append(one.metrics(state)["spectrum_age"])
    # rounds after the snapshots of rounds 3 and 8, which are in use from 6 and 11 on
    np.testing.assert_array_equal(ages, [np.nan, 4, 5, 6, 7, 8, 4, 5, 6])


def test_in_line_pairs_are_ready_in_the_next_round():
    late, ready = (
        hpcopt.simulate(settings(**LATE | {"handover_rounds": h}), Logit(workers=WORKERS), 12)["metrics"]
        for h in (1, "ready")
    )
    for name in ("loss", "spectrum_age", "gradients"):
        np.testing.assert_array_equal(late[name], ready[name])


BASES = {
    "sgd": ({"base": "sgd"}, {}),
    "momentum": ({"momentum": 0.8}, {"momentum": 0.8}),
    "adam": ({"base": "adam", "beta1": 0.8}, {"optimizer": "adam", "beta1": 0.8}),
    "adamw": ({"base": "adamw", "weight_decay": 0.5}, {"optimizer": "adamw", "weight_decay": 0.5}),
}


@pytest.mark.parametrize("base", BASES)
def test_without_pairs_it_is_its_base_to_the_bit(base):
    rate = {"lr": 0.07, "schedule": "cosine", "warmup_rounds": 3}
    mine, plain = BASES[base]
    recipe = Logit(workers=WORKERS, batch_size=5)
    methods = hpcopt.DHO2(largest=0, warmup=4, **mine, **rate), hpcopt.AllreduceSGD(**plain, **rate)
    trees = [hpcopt.simulate(method, recipe, 9, dtype="float32") for method in methods]
    assert np.array_equal(*(tree["metrics"]["loss"] for tree in trees))
    assert "spectrum" not in trees[0].children


def test_a_quadratic_is_solved_in_one_step():
    method = hpcopt.DHO2(largest=12, base="sgd", alpha=1.0, warmup=0, floor=1e-5, lanczos_iterations=12)
    tree = hpcopt.simulate(method, hpcopt.Quadratic(WORKERS, "geometric", dim=12), 1)
    assert float(tree["metrics"]["gap"][-1]) < 1e-20 * float(tree["metrics"]["gap"][0])


def test_one_row_of_the_last_worker_counts():
    spectra = [
        hpcopt.simulate(settings(warmup=0), Logit(workers=WORKERS, longer=longer), 1)["spectrum"]
        for longer in (False, True)
    ]
    first, second = (spectrum["eigenvalue"].values for spectrum in spectra)
    assert np.abs(first / second - 1).max() > 1e-3


@pytest.mark.parametrize("base", ["momentum", "adam"])
def test_signs_of_eigenvectors_do_not_matter(base):
    method = settings(base=base, warmup=0, refresh_every=100)
    _, _, state = begun(method, Logit(workers=WORKERS))
    method.step(state)
    state.round += 1
    other = replace(state, **{name: tensor.clone() for name, (_, tensor) in state.tensors().items()})
    signs = torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    other.V *= signs
    other.b *= signs[: len(other.b)]
    for one in (state, other):
        method.step(one)
    assert torch.allclose(state.x, other.x, rtol=1e-14)


def test_the_rehearsal_costs_nothing_and_changes_nothing():
    method = settings(warmup=0)
    problem, _, state = begun(method, Logit(workers=WORKERS))
    before = {name: tensor.clone() for name, (_, tensor) in state.tensors().items()}
    method.rehearse(state)
    assert problem.samples == 2 * D * sum(ROWS)  # it was made
    for name, (_, tensor) in state.tensors().items():
        assert torch.equal(tensor, before[name]), name
    tree = hpcopt.simulate(method, Logit(workers=WORKERS), 1)
    assert tree["metrics"]["gradients"].values.tolist() == [0, (2 * D + 1) * sum(ROWS)]
    assert tree["metrics"]["passes"].values.tolist() == [0, D + 1]
    assert np.array_equal(tree["metrics"]["spectrum_age"], [np.nan, 1], equal_nan=True)


def test_the_newest_spectra_are_kept(monkeypatch):
    monkeypatch.setattr(curvature, "KEPT", 2)
    method = settings(refresh_every=2, warmup=1)
    everything = oracle(Dense(), 8, method.settings)[1]
    tree = hpcopt.simulate(method, Logit(workers=WORKERS), 8)
    np.testing.assert_allclose(tree["spectrum"]["eigenvalue"], everything[-2:], rtol=1e-9)


def test_a_draw_may_ask_for_other_rows():
    """Successive draws of four rows go through all of them; more than there are: all, in their order."""
    batches = Dense(batch_size=5).batches
    epoch = torch.cat([batches.select(0, Draw(i, rows=4)) for i in range(3)])
    assert sorted(set(epoch.tolist())) == sorted(epoch.tolist())
    assert len(epoch) == 12
    assert [batches.count(1, draw) for draw in (Draw(7), Draw(7, rows=4), Draw(7, rows=50), None)] == [
        5,
        4,
        9,
        9,
    ]
    assert batches.select(1, Draw(0, rows=50)) is None


class Detached(Logit):
    """What autograd cannot differentiate twice."""

    def gradient(self, w, X, y):
        return torch.from_numpy(np.asarray(w.detach()))


@pytest.mark.parametrize(
    ("keys", "recipe", "words"),
    [
        ({"largest": 8, "smallest": 2}, Logit, ["largest + smallest = 10", "9 parameters"]),
        ({"lanczos_iterations": 2}, Logit, ["lanczos_iterations = 2", "largest + smallest = 3"]),
        ({"lanczos_iterations": 0}, Logit, ["lanczos_iterations = 0"]),
        ({"largest": -1}, Logit, ["largest = -1"]),
        ({"floor": 0.0}, Logit, ["floor = 0.0"]),
        (
            {"variant": "admm", "alpha": "auto"},
            Logit,
            ['variant = "admm"', "refresh_every and alpha are numbers"],
        ),
        ({"refresh_every": "never"}, Logit, ["refresh_every = 'never'", "auto"]),
        ({"variant": "concurrent", "handover_rounds": 5}, Logit, ["handover_rounds = 5", "at most 4"]),
        ({"variant": "concurrent", "handover_rounds": 0}, Logit, ["handover_rounds = 0", "ready"]),
        ({"variant": "concurrent", "handover_rounds": 2, "alpha": "auto"}, Logit, ["are numbers"]),
        ({"variant": "concurrent", "handover_rounds": 2, "largest": 0}, Logit, ["largest + smallest = 0"]),
        ({"base": "lbfgs"}, Logit, ["base = 'lbfgs'"]),
        ({}, Detached, ["no Hessian-vector products", "`hvp`"]),
    ],
)
def test_what_is_refused(keys, recipe, words):
    with pytest.raises(UserError) as error:
        hpcopt.simulate(settings(**{"lanczos_iterations": None} | keys), recipe(workers=WORKERS), 1)
    for word in words:
        assert word in str(error.value)
    if recipe is Detached:
        hpcopt.simulate(hpcopt.DHO2(largest=0), recipe(workers=WORKERS), 1)


def test_ranks_for_curvature_need_something_to_compute():
    tables = {"run": {"method": "dho2", "curvature_ranks": 1}, "problem": {"kind": "quadratic"}}
    with pytest.raises(UserError, match=r'curvature_ranks = 1.*variant = "concurrent"'):
        from_tables(tables, "c")
    from_tables(tables | {"method": {"variant": "concurrent"}}, "c")


def test_a_config_says_what_is_wrong():
    tables = {"run": {"workers": 2, "method": "dho2"}, "problem": {"kind": "quadratic"}}
    with pytest.raises(UserError, match="needs at least one for each"):
        from_tables(tables | {"method": {"lanczos_iterations": 3}}, "c")
