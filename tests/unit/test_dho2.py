"""DHO2 against FOSI and its ADMM form written out in NumPy with dense Hessians, and what must hold."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from mpi4py import MPI
from scipy.special import expit

import hpcopt
from hpcopt import api
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.config import from_tables
from hpcopt.errors import UserError
from hpcopt.methods.parts import curvature, hybrid
from hpcopt.problems.base import Draw, Share

D, WORKERS, PENALTY = 9, 3, 0.02
ROWS = (14, 9, 21)


class Logit(hpcopt.Objective):
    """Logistic regression on features of quite different sizes; ‖w‖²/100, so that H is positive."""

    dim: int = D
    """parameters"""
    longer: bool = False
    """whether the last row of the last worker is twice as long"""

    def data(self, worker, seed):
        draw = np.random.default_rng([seed, worker])
        X = draw.standard_normal((ROWS[worker], D)) * np.logspace(1, -0.3, D)
        y = np.sign(X[:, 0] - 8 * X[:, 3] + draw.standard_normal(len(X)))
        if self.longer and worker == WORKERS - 1:
            X[-1] *= 2
        return X, y

    def loss(self, w, X, y):
        return torch.nn.functional.softplus(-y * (X @ w)).mean() + PENALTY / 2 * w.square().sum()


class Dense:
    """The same in NumPy: gradient and Hessian of the mean over workers on the rows of a draw."""

    def __init__(self, seed=0, **keys):
        self.recipe = Logit(workers=WORKERS, **keys)
        self.data = [self.recipe.data(worker, seed) for worker in range(WORKERS)]
        self.batches = self.recipe.bind(Share(range(WORKERS), WORKERS, seed))._batches

    def rows(self, draw):
        for i, (X, y) in enumerate(self.data):
            chosen = self.batches.select(i, draw)
            yield (X, y) if chosen is None else (X[chosen], y[chosen])

    def gradient(self, w, draw):
        parts = [X.T @ (-y * expit(-y * (X @ w))) / len(y) for X, y in self.rows(draw)]
        return np.mean(parts, 0) + PENALTY * w

    def loss(self, w, draw):
        return (
            np.mean([np.logaddexp(0, -y * (X @ w)).mean() for X, y in self.rows(draw)]) + PENALTY / 2 * w @ w
        )

    def hessian(self, w, draw):
        parts = [(X.T * (expit(X @ w) * expit(-X @ w))) @ X / len(y) for X, y in self.rows(draw)]
        return np.mean(parts, 0) + PENALTY * np.eye(D)


class Measured:
    """alpha = "auto": lengths from the fall of the loss and the energy of gradients, doubling by doubling."""

    def __init__(self, problem, s):
        self.problem, self.settings = problem, s
        self.energies, self.s, self.alpha, self.E, self.span = [], 1.0, 0.1, None, 0
        self.loss, self.since = None, 0

    def measure(self, w, t, beyond):
        if t not in (0, 10, 20, 40):
            return
        loss = np.mean([self.problem.loss(w, Draw(number)) for number in range(4)])
        if t:
            (span, E), fall = np.mean(self.energies[:10], 0), max(0, self.loss - loss)
            base = self.settings.base
            mu = self.settings.momentum if base == "momentum" else 0
            shrunk = self.s / 2 / max(1, E / self.E if self.E else 1)
            s = np.clip(4 * fall / E * (1 - mu) / self.settings.lr, shrunk, 4 * self.s)
            if beyond is not None:
                s = min(s, (1 + mu) / (self.settings.lr * beyond))
            self.s = 1.0 if base == "adam" else max(1.0, s)
            shrunk = self.alpha / 2 / max(1, span / self.span if self.span else 1)
            self.alpha = min(0.1, np.clip(4 * fall / span if span else np.inf, shrunk, 4 * self.alpha))
            self.span, self.E = span, E
        self.loss, self.since, self.energies = loss, t, []

    def see(self, g, c, h):
        self.energies.append((c @ (c / h), g @ g - c @ c))

    def lengths(self, t, h):
        later, longer = self.since / t, max(1, self.energies[-1][1] / self.E)
        mu = self.settings.momentum if self.settings.base == "momentum" else 0
        own = 0 if self.settings.base == "adam" else np.minimum(0.1, self.settings.lr / (1 - mu) * h)
        along = max(1, self.energies[-1][0] / self.span) if self.span else 1
        alpha = np.maximum(self.alpha * later, own) * decay(self.settings, t)
        return max(1, self.s * later / longer), alpha / along


def decay(s, t):
    """What a schedule makes of the learning rate."""
    return s.lr_decay**t if s.schedule == "exponential" else 1.0


def is_due(s, t, last, first):
    """Whether a round begins with new pairs."""
    if last is None:
        return t >= first
    return t >= (4 * last if s.refresh_every == "auto" else last + s.refresh_every)


def oracle(problem, rounds, s, first=None):
    """x after every round, and the eigenvalues of every refresh; vectors are whole."""
    x, z, pi = np.zeros(D), np.zeros(D), np.zeros(D)
    V, lam, g1_momentum, m, v, found = None, None, np.zeros(D), np.zeros(D), np.zeros(D), []
    points, last, beyond, auto = [], None, None, Measured(problem, s) if s.alpha == "auto" else None
    mu = 0.0 if s.base == "sgd" else s.momentum
    warmup = s.warmup if first is None else first

    def base(g, t, eta):
        nonlocal m, v
        if s.base == "sgd":
            return -eta * g
        if s.base == "momentum":
            m = s.momentum * m + g
            return -eta * m
        m = s.beta1 * m + (1 - s.beta1) * g
        v = s.beta2 * v + (1 - s.beta2) * g**2
        return -eta * (m / (1 - s.beta1 ** (t + 1))) / (np.sqrt(v / (1 - s.beta2 ** (t + 1))) + s.eps)

    for t in range(rounds):
        warm = t < warmup
        if is_due(s, t, last, warmup):
            every, Q = np.linalg.eigh(problem.hessian(x, Draw(len(found), rows=s.curvature_batch)))
            chosen = [*range(s.smallest), *range(D - s.largest, D)]
            lam, V, last = every[chosen], Q[:, chosen], t
            beyond = np.abs(np.delete(every, chosen)).max()
            found.append(lam)
            g1_momentum = V @ (V.T @ g1_momentum)
            if s.base == "momentum":
                m = m - V @ (V.T @ m)
        if auto:
            auto.measure(x, t, beyond)
        g = problem.gradient(x, Draw(t)) + pi
        if warm:
            if auto:
                auto.see(g, np.zeros(1), np.ones(1))
            x = x + base(g, t, (s.warmup_lr or s.lr) * decay(s, t))
        else:
            h = np.abs(lam + (s.sigma if s.variant == "admm" else 0)) + s.damping
            h = np.maximum(h, s.floor * max(h.max(), beyond))
            c = V.T @ g
            if auto:
                auto.see(g, c, h)
                scale, alpha = auto.lengths(t, h)
                d1 = V @ (alpha * c / h)
            else:
                ratio = lam[-1] / lam[-s.largest] if s.largest > 1 else 1
                scale = np.clip(ratio, 1, 1 if s.base == "adam" else 3)
                g1_momentum = mu * g1_momentum + scale * V @ c
                d1 = s.alpha * V @ (V.T @ g1_momentum / scale / h)
            d2 = base(scale * (g - V @ c), t, s.lr * decay(s, t))
            x = x + d2 - V @ (V.T @ d2) - d1
        if s.variant == "admm":
            if warm and t + 1 == s.warmup:
                z = x
            elif not warm and (t + 1 - s.warmup) % s.outer_every == 0:
                pi = (1 - s.outer_damping) * pi
                if s.outer_reset and pi @ (x - z) < 0:
                    pi = 0 * pi
                pi = pi + s.sigma * (x - z)
                x = x + pi / s.sigma
                z = x
        points.append(x)
    return points, found


def begun(method, recipe):
    problem = recipe.bind(Share(range(WORKERS), WORKERS, seed=0))
    ports = LocalPorts(WORKERS, problem.initial())
    state = method.start(problem, ports)
    return problem, ports, state


CASES = {
    "sgd": {"base": "sgd", "lr": 0.5, "smallest": 2, "damping": 0.01, "floor": 0.05},
    "momentum": {"lr": 0.1, "alpha": 0.3, "warmup_lr": 0.02},
    "no warm-up": {"warmup": 0, "lr": 0.1, "largest": 1},
    "adam": {"base": "adam", "lr": 0.05, "smallest": 1},
    "batches": {"lr": 0.05, "curvature_batch": 8},
    "admm": {"variant": "admm", "lr": 0.05, "sigma": 0.2, "outer_every": 2},
    "admm damped": {"variant": "admm", "base": "adam", "lr": 0.2, "outer_every": 1, "outer_damping": 0.3},
    "admm reset": {"variant": "admm", "lr": 0.1, "outer_every": 1, "outer_reset": True},
}
ROUNDS = 12


def settings(**keys):
    defaults = {"largest": 3, "lanczos_iterations": D, "refresh_every": 4, "warmup": 3}
    return hpcopt.DHO2(**(defaults | keys))


@pytest.mark.parametrize("name", CASES)
def test_the_trajectory_is_the_papers(name):
    method = settings(**CASES[name])
    problem = Dense(batch_size=5 if name == "batches" else "full")
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


AUTO = {"refresh_every": "auto", "alpha": "auto", "planned_rounds": 2560, "curvature_batch": 2}


FOUND = [
    {"base": "sgd", "lr": 0.02},
    {"lr": 0.004},
    {"base": "adam", "lr": 0.02},
    {"lr": 0.004, "schedule": "exponential", "lr_decay": 0.97},
]


@pytest.mark.parametrize("base", FOUND)
def test_lengths_and_refreshes_are_found(base):
    """Pairs at rounds 10 and 40, lengths at 0, 10, 20 and 40; only Adam's step is never scaled."""
    method = settings(**AUTO | base | {"warmup": None})
    problem = Dense(batch_size=5)
    points, spectra = oracle(problem, 45, method.settings, first=10)
    _, _, state = begun(method, problem.recipe)
    scales = []
    for point in points:
        method.step(state)
        state.round += 1
        scales.append(float(state.lengths[hybrid.SCALE]))
        np.testing.assert_allclose(state.x, point, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(method.groups(state)["spectrum"].columns["eigenvalue"], spectra, rtol=1e-9)
    assert len(spectra) == 2
    assert (max(scales) > 1.5) == (base.get("base") != "adam")


def test_the_loss_is_that_of_which_gradients_are():
    """Where f is a sum over rows, of their mean."""
    method = hpcopt.DHO2(lr=0.1, **AUTO, largest=2)
    X, y = Logit(workers=1).data(0, 0)
    recipe = hpcopt.Logistic((X, y), workers=WORKERS, regularisation=0.1, batch_size="full")
    _, _, state = begun(method, recipe)
    method.step(state)
    assert float(state.lengths[hybrid.LOSS]) == pytest.approx(np.log(2))


def test_what_is_told_may_be_found_from_some_round_on(tmp_path):
    """A run goes on with "auto" and ends as one does that has more to say."""
    config = {
        "run": {"method": "dho2", "workers": 2, "rounds": 12, "out": str(tmp_path)},
        "method": {"lr": 0.01, "largest": 2, "warmup": 3, "refresh_every": 5},
        "problem": {"kind": "linear_regression", "dim": 20},
    }
    path = api.start(MPI.COMM_SELF, from_tables(config, "test"))
    further = ["run.rounds=80", "method.planned_rounds=4000"]
    further += [f'method.{key}="auto"' for key in ("alpha", "refresh_every")]
    api.resume(path.parent, overrides=tuple(further))
    losses = hpcopt.load(path)["metrics"]["loss"].values
    assert losses[-1] < losses[0]
    assert len(hpcopt.load(path)["spectrum"]["refresh"]) == 3  # at 3, 8, 32


class Hopeless(hpcopt.Objective):
    """f = ‖x‖²/2 with noise: all eigenvalues are the same."""

    dim: int = 30
    """parameters"""

    def data(self, worker, seed):
        return (np.random.default_rng([seed, worker]).standard_normal((40, self.dim)),)

    def loss(self, x, A):
        return 0.5 * (x - A).square().sum(1).mean()


@pytest.mark.parametrize("rounds", [60, 400, 3000])
def test_a_twentieth_at_most_is_spent_on_curvature(rounds):
    """On a problem that curvature cannot help, and where a run is too short for it not at all."""
    recipe = Hopeless(workers=2, batch_size=8)
    trees = [
        hpcopt.simulate(method, recipe, rounds, evaluate_every=rounds)
        for method in (
            hpcopt.DHO2(lr=0.01, largest=3, refresh_every="auto", alpha="auto"),
            hpcopt.AllreduceSGD(lr=0.01, momentum=0.9),
        )
    ]
    mine, plain = (float(tree["metrics"]["gradients"][-1]) for tree in trees)
    refreshes = len(trees[0]["spectrum"]["refresh"])
    assert plain < mine <= 1.05 * plain if rounds > 60 else mine == plain
    assert refreshes == {60: 0, 400: 1, 3000: 5}[rounds]
    if rounds == 60:
        assert np.array_equal(*(tree["metrics"]["loss"] for tree in trees))


class Steep(hpcopt.Objective):
    """Least squares, ten eigenvalues from 300 to 30 and the others from 1 to 0.1."""

    dim: int = 60
    """parameters"""

    def data(self, worker, seed):
        draw = np.random.default_rng([seed, worker])
        steep = np.sqrt([*np.geomspace(300, 30, 10), *np.linspace(1, 0.1, self.dim - 10)])
        A = draw.standard_normal((400, self.dim)) * steep
        return A, (A / steep).sum(1) + draw.standard_normal(400)

    def loss(self, x, A, b):
        return 0.5 * (A @ x - b).square().mean()


@pytest.mark.parametrize("keys", [{}, {"largest": 0, "smallest": 3}])
def test_mini_batches_may_have_few_rows(keys):
    """A quarter of 16 rows has fewer than there are pairs; and the smallest eigenvalues tell no scale."""
    recipe, rounds = Steep(workers=1, batch_size=16), 1500
    methods = (
        hpcopt.DHO2(lr=3e-4, refresh_every="auto", alpha="auto", **keys),
        hpcopt.AllreduceSGD(lr=3e-4, momentum=0.9),
    )
    trees = [hpcopt.simulate(method, recipe, rounds, evaluate_every=rounds) for method in methods]
    mine, plain = (float(tree["metrics"]["loss"][-1]) for tree in trees)
    assert len(trees[0]["spectrum"]["refresh"])
    assert mine < 1.1 * plain


BASES = {
    "sgd": ({"base": "sgd"}, {}),
    "momentum": ({"momentum": 0.8}, {"momentum": 0.8}),
    "adam": ({"base": "adam", "beta1": 0.8}, {"optimizer": "adam", "beta1": 0.8}),
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


def test_a_config_says_what_is_wrong():
    tables = {"run": {"workers": 2, "method": "dho2"}, "problem": {"kind": "quadratic"}}
    with pytest.raises(UserError, match="needs at least one for each"):
        from_tables(tables | {"method": {"lanczos_iterations": 3}}, "c")
