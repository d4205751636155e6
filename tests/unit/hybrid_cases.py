"""What tests of dho2 share: a problem, the same in NumPy with dense Hessians, and the method written out."""

import numpy as np
import torch
from scipy.special import expit

import hpcopt
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.problems.base import Draw, Share

from .plain_steps import shortened

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
        own = 0 if "adam" in self.settings.base else np.minimum(0.1, self.settings.lr / (1 - mu) * h)
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
    """x after every round, and the eigenvalues of every refresh; vectors are whole.

    concurrent: pairs are those of the x of some rounds ago, and until there are any the base is alone.
    """
    x, z, pi = np.zeros(D), np.zeros(D), np.zeros(D)
    V, lam, g1_momentum, m, v, found = None, None, np.zeros(D), np.zeros(D), np.zeros(D), []
    points, last, beyond, auto = [], None, None, Measured(problem, s) if s.alpha == "auto" else None
    late, snapshot = s.variant == "concurrent", None
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
        if not late and is_due(s, t, last, warmup):
            snapshot = t, x
        if snapshot and t == snapshot[0] + late * s.handover_rounds:
            (last, point), snapshot = snapshot, None
            every, Q = np.linalg.eigh(problem.hessian(point, Draw(len(found), rows=s.curvature_batch)))
            chosen = [*range(s.smallest), *range(D - s.largest, D)]
            lam, V = every[chosen], Q[:, chosen]
            beyond = np.abs(np.delete(every, chosen)).max()
            found.append(lam)
            g1_momentum = V @ (V.T @ g1_momentum)
            if s.base == "momentum":
                m = m - V @ (V.T @ m)
        if late and not snapshot and is_due(s, t, last, warmup):
            snapshot = t, x
        warm = V is None if late else t < warmup
        if auto:
            auto.measure(x, t, beyond)
        g = shortened(problem.gradient(x, Draw(t)), s.clip) + pi
        if s.base == "adamw":
            x = (1 - (s.warmup_lr or s.lr if warm else s.lr) * decay(s, t) * s.weight_decay) * x
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
                scale = np.clip(ratio, 1, 1 if "adam" in s.base else 3)
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


def settings(**keys):
    defaults = {"largest": 3, "lanczos_iterations": D, "refresh_every": 4, "warmup": 3}
    return hpcopt.DHO2(**(defaults | keys))
