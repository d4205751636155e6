"""RegTop-k, Top-k and random-k against the paper's algorithm written out, and what must hold exactly."""

import sys

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.errors import UserError
from hpcopt.math.topk import take
from hpcopt.problems.base import Draw, Share

N, D = 5, 40
ETA = 0.02


def problem(workers=N, dim=D, **keys):
    recipe = hpcopt.LinearRegression(workers, dim=dim, rows_per_worker=30, **keys)
    return recipe.bind(Share(range(workers), workers, seed=3))


def network(batch_size=4):
    torch.manual_seed(0)
    x, y = torch.randn(60, 6), torch.randint(0, 3, (60,))
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    loss = torch.nn.functional.cross_entropy
    recipe = hpcopt.Network(model, loss, (x, y), None, workers=N, batch_size=batch_size, weights="rows")
    return recipe.bind(Share(range(N), N, seed=3))


def paper(task, k, rounds, mu=None, denominator="sent", Q=1e8):
    """The algorithm of arXiv 2501.05633, with a loop over workers and all weights; Top-k if μ is None."""
    w = task.weights.numpy()
    x = task.initial().numpy().copy()
    eps = np.zeros((task.share.n, len(x)))
    mask, a_hat, g_prev = np.zeros_like(eps, dtype=bool), np.zeros_like(eps), np.zeros_like(x)
    points = []
    for t in range(rounds):
        g_n = task.gradients(torch.from_numpy(x), Draw(t)).numpy()
        total, sent_now, masks_now = np.zeros_like(x), np.zeros_like(eps), np.zeros_like(mask)
        for n in range(task.share.n):
            a = eps[n] + g_n[n]
            score = np.abs(a)
            if mu is not None:
                delta = np.full_like(x, Q)
                base = w[n] * (a_hat[n] if denominator == "sent" else a)
                on = mask[n] & (base != 0)
                delta[on] = (g_prev[on] - w[n] * a_hat[n][on]) / base[on]
                score = np.abs(a) * np.tanh(np.abs(1 + delta) / mu)
            chosen = np.lexsort((np.arange(len(a)), -score))[:k]
            masks_now[n, chosen], sent_now[n, chosen] = True, a[chosen]
            eps[n] = a
            eps[n, chosen] = 0
            total += w[n] * sent_now[n]
        mask, a_hat, g_prev = masks_now, sent_now, total
        x = x - ETA * total
        points.append(x)
    return np.array(points)


def trajectory(method, task, rounds, ports=None):
    state = method.start(task, ports or LocalPorts(task.share.n, task.initial()))
    points = []
    for _ in range(rounds):
        method.step(state)
        state.round += 1
        points.append(state.x.numpy().copy())
    return np.array(points), state


def ordered(task):
    return LocalPorts(task.share.n, task.initial(), ordered=True)


CASES = {
    "topk": (hpcopt.TopK, {}, {}),
    "regtopk": (hpcopt.RegTopK, {"mu": 4.0}, {"mu": 4.0}),
    "regtopk, small mu": (hpcopt.RegTopK, {"mu": 0.3}, {"mu": 0.3}),
    "accumulated": (
        hpcopt.RegTopK,
        {"mu": 4.0, "denominator": "accumulated"},
        {"mu": 4.0, "denominator": "accumulated"},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    "task", [problem, lambda: problem(batch_size=7), network], ids=["all", "batch", "net"]
)
def test_the_papers_algorithm(case, task):
    method, keys, reference = CASES[case]
    found, _ = trajectory(method(k=8, lr=ETA, **keys), task(), 40)
    np.testing.assert_allclose(found, paper(task(), 8, 40, **reference), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", [hpcopt.TopK, hpcopt.RegTopK, hpcopt.RandomK])
@pytest.mark.parametrize("per_layer", [False, True])
def test_sent_and_kept_is_what_was_accumulated(method, per_layer, monkeypatch):
    task = network()
    way = method(density=0.2, lr=ETA, per_layer=per_layer)
    _, state = trajectory(way, task, 5)
    taken, module = [], sys.modules[method.__module__]
    monkeypatch.setattr(module, "take", lambda a, s: taken.append((s, take(a, s))) or taken[-1][1])
    before = state.e.clone()
    task.gradients(state.x, Draw(state.round), weighted=True, out=before)
    way.step(state)
    (s, sent), zeros = taken[0], torch.zeros_like(before)
    assert torch.equal(zeros.scatter(1, s, sent) + state.e, before)
    assert torch.count_nonzero(state.e.gather(1, s)) == 0


@pytest.mark.parametrize("method", [hpcopt.TopK, hpcopt.RegTopK, hpcopt.RandomK])
@pytest.mark.parametrize("keys", [{"density": 1.0}, {"k": 53}])
def test_k_of_d_is_dense_bit_for_bit(method, keys):
    optimizer = {"lr": 0.1, "momentum": 0.9}
    ways = method(**keys, **optimizer), hpcopt.AllreduceSGD(**optimizer)
    (found, state), (dense, _) = (trajectory(way, network(), 20, ordered(network())) for way in ways)
    assert np.array_equal(found, dense)
    assert state.e.shape == (N, 0)  # no memory for what never stays behind


def test_all_entries_through_the_exchange_are_dense_bit_for_bit():
    """The general way too, not only the short cut for k = d."""
    way = hpcopt.TopK(k=53, lr=0.1)
    task = network()
    ports = ordered(task)
    way.start(task, ports)
    g = task.gradients(task.initial(), Draw(0), weighted=True)
    every = torch.arange(53).expand(N, 53)
    assert torch.equal(ports.sparse_sum(task.initial()).sum(every, g).dense, ports.reduce.sum(g))


def test_a_global_selection_returns_what_it_drops():
    task = problem()
    way = hpcopt.RegTopK(k=6, lr=ETA, select="global")
    _, state = trajectory(way, task, 10)
    for _ in range(5):
        before = state.e.clone()
        task.gradients(state.x, Draw(state.round), weighted=True, out=before)
        x = state.x.clone()
        way.step(state)
        state.round += 1
        changed = torch.nonzero(state.x != x)[:, 0]
        assert len(changed) <= 6
        applied = (x - state.x) / ETA
        assert torch.allclose(applied + state.e.sum(0), before.sum(0), rtol=0, atol=1e-9)
        sent_and_kept = torch.zeros_like(before).scatter(1, state.s, state.sent) + state.e
        assert torch.equal(sent_and_kept, before)
        assert torch.equal(state.sent != 0, torch.isin(state.s, changed))


def test_density_warms_up_and_the_state_has_room_for_it():
    way = hpcopt.RegTopK(density=0.05, density_warmup_rounds=6, density_start=0.5, lr=ETA)
    task = problem(dim=100)
    state = way.start(task, LocalPorts(N, task.initial()))
    sent = []
    for _ in range(9):
        way.step(state)
        state.round += 1
        sent.append(int(state.counts[0]))
    assert sent == [50, 34, 23, 16, 11, 7, 5, 5, 5]
    assert state.s.shape == (N, 50)
    dense_first = hpcopt.RegTopK(density=0.05, density_warmup_rounds=4, density_start=1.0, lr=ETA)
    _, state = trajectory(dense_first, problem(dim=100), 6)
    assert way.metrics(state)["density"] == 0.05


def test_per_layer_sends_the_same_fraction_of_each_tensor():
    task = network()
    way = hpcopt.TopK(density=0.2, per_layer=True, lr=ETA)
    state = way.start(task, LocalPorts(N, task.initial()))
    task.gradients(state.x, Draw(0), weighted=True, out=state.e)
    chosen = way._largest(state.e, 0)
    ends = np.cumsum(task.layout.sizes)
    per_tensor = np.histogram(chosen[0], bins=[0, *ends])[0]
    assert per_tensor.tolist() == [max(1, round(0.2 * size)) for size in task.layout.sizes]


def test_random_entries_are_the_same_for_all_and_new_every_round():
    task = problem()
    way = hpcopt.RandomK(k=4, lr=ETA)
    chosen = []
    for rounds in (1, 2):
        _, state = trajectory(way, task, rounds)
        missing = state.e == 0
        assert (missing == missing[0]).all()
        chosen.append(missing[0])
    assert chosen[0].sum() == 4
    assert not torch.equal(*chosen)


TOY = {
    "dense": (hpcopt.AllreduceSGD(lr=0.9), 0.0110),
    "topk": (hpcopt.TopK(k=1, lr=0.9), 0.3133),
    "regtopk": (hpcopt.RegTopK(k=1, mu=1.0, lr=0.9), 0.0108),
}


@pytest.mark.parametrize("case", TOY)
def test_the_toy(tmp_path, case):
    """Two workers with large gradients that cancel; the losses are those of an independent implementation."""
    method, loss = TOY[case]
    out = hpcopt.run(method, hpcopt.ToyLogistic(2), out=tmp_path / "toy", rounds=100)
    data = hpcopt.load(out)
    assert [round(float(v), 4) for v in data["metrics/loss"].values[[0, -1]]] == [0.3133, loss]


@pytest.mark.parametrize("density", [0.55, 0.6])
def test_the_optimum_is_reached_where_topk_stalls(tmp_path, density):
    """The study in jobs/studies/regtopk has more seeds and densities."""
    distance = {}
    for method in (hpcopt.RegTopK, hpcopt.TopK):
        out = tmp_path / method.__name__
        recipe = hpcopt.LinearRegression(20, dim=100, rows_per_worker=500)
        hpcopt.run(method(density=density, lr=0.01), recipe, out=out, rounds=1000, evaluate_every=50, seed=17)
        distance[method.__name__] = np.log10(hpcopt.load(out)["metrics/distance"].values.min())
    assert distance["RegTopK"] <= -12
    assert distance["TopK"] > -4


def test_too_many_entries_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"k = 41: .* 1 to 40"):
        trajectory(hpcopt.TopK(k=41), problem(), 1)
    for wrong in ({"k": 4, "density": 0.1}, {"k": 4, "per_layer": True}):
        with pytest.raises(Exception, match="give"):
            hpcopt.TopK(**wrong)
