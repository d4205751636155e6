"""DePRL and its baselines against their algorithms written out, and what must hold exactly."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

import hpcopt
from hpcopt.comm.local_ports import LocalPorts
from hpcopt.comm.ports import VERBS
from hpcopt.config import resumable
from hpcopt.engine.evaluation import Evaluator
from hpcopt.engine.ranks import OneRank
from hpcopt.errors import UserError
from hpcopt.math.streams import stream
from hpcopt.problems.base import Share

N, SEED, BATCH, LR = 5, 3, 4, 0.05
X, Y = torch.randn(60, 6, generator=torch.Generator().manual_seed(1)), torch.arange(60) % 3
BODY, HEAD = ("body.weight", "body.bias"), ("head.weight", "head.bias")
loss = nn.functional.cross_entropy


def module():
    torch.manual_seed(0)
    layers = {"head": nn.Linear(5, 3), "body": nn.Linear(6, 5), "tanh": nn.Tanh()}
    return nn.Sequential(OrderedDict((name, layers[name]) for name in ("body", "tanh", "head")))


def network(workers=N, **keys):
    keys = {"batch_size": BATCH, "partition": "classes", **keys}
    recipe = hpcopt.Network(module(), loss, (X, Y), (X, Y), workers=workers, **keys)
    return recipe.bind(Share(range(workers), workers, seed=SEED))


def started(method, task, **keys):
    ports = LocalPorts(task.share.n, task.initial(), **keys)
    method.prepare(task)
    return method.start(task, ports), ports


def evaluated(method, task, state, ports):
    return Evaluator(OneRank(), task, method, ports.reduce).evaluate(state, method.model(state))[0]


def advance(method, state, rounds):
    for _ in range(rounds):
        method.step(state)
        state.round += 1


class Worker:
    """One worker of the algorithms written out: plain torch, a dictionary of parameters."""

    def __init__(self, task, i):
        self.i, self.rows, self.net = i, task._data[i].train, module().double()
        self.p = {name: value.detach().clone() for name, value in self.net.named_parameters()}
        self.v = {name: torch.zeros_like(value) for name, value in self.p.items()}

    def gradient(self, index):
        """At its parameters, on its mini-batch number ``index``."""
        epoch, position = divmod(index, len(self.rows) // BATCH)
        order = stream(SEED, "batches", self.i, epoch).permutation(len(self.rows))
        chosen = order[position * BATCH : (position + 1) * BATCH]
        p = {name: value.clone().requires_grad_() for name, value in self.p.items()}
        output = functional_call(self.net, p, (self.rows.features[chosen].double(),))
        loss(output, self.rows.targets[chosen]).backward()
        return {name: value.grad for name, value in p.items()}

    def descend(self, index, rates, momentum=0.0, weight_decay=0.0, clip=np.inf):
        g = self.gradient(index)
        for names, lr in rates:
            norm = np.sqrt(sum(float((g[name] ** 2).sum()) for name in names))
            for name in names:
                clipped = g[name] * min(1.0, clip / norm)
                self.v[name] = momentum * self.v[name] + clipped + weight_decay * self.p[name]
                self.p[name] = self.p[name] - lr * self.v[name]


def crowd(task):
    return [Worker(task, i) for i in range(task.share.n)]


def ring(n):
    """Metropolis weights of a ring: every worker and both its neighbours count the same."""
    W = np.zeros((n, n))
    for i in range(n):
        for j in (i - 1, i, i + 1):
            W[i, j % n] = 1 / 3
    return W


def mix(workers, W, names, of=None):
    """p_i ← Σ_j W_ij p_j, or p_i ← p_i + Σ_j W_ij of_j − of_i."""
    for name in names:
        values = [worker.p[name] if of is None else of[worker.i][name] for worker in workers]
        for i, worker in enumerate(workers):
            mean = sum(float(W[i, j]) * values[j] for j in range(len(workers)))
            worker.p[name] = mean if of is None else worker.p[name] + mean - values[i]


def stacked(workers, names=BODY + HEAD):
    return np.stack([np.concatenate([w.p[name].numpy().ravel() for name in names]) for w in workers])


def check(state, workers):
    np.testing.assert_allclose(state.X.numpy(), stacked(workers), rtol=1e-9, atol=1e-12)


STEPS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "all": {"momentum": 0.5, "weight_decay": 0.1, "clip": 0.3},
}


@pytest.mark.parametrize("order", ["head_first", "body_first", "together"])
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("overlap", [False, True])
def test_deprl_is_the_papers_algorithm(order, steps, overlap):
    task, alpha, beta, rounds = network(), 0.1, LR, 4
    counts = {} if order == "together" else {"head_steps": 2}
    method = hpcopt.DePRL(
        lr_head=alpha, lr=beta, body_steps=3, order=order, overlap=overlap, **counts, **STEPS[steps]
    )
    state, _ = started(method, task)
    advance(method, state, rounds)
    workers = crowd(task)
    head, body = ((HEAD, alpha),), ((BODY, beta),)
    plan = {
        "head_first": [head] * 2 + [body] * 3,
        "body_first": [body] * 3 + [head] * 2,
        "together": [head + body] * 3,
    }[order]
    for k in range(rounds):
        begun = [dict(worker.p) for worker in workers]
        for worker in workers:
            for step, rates in enumerate(plan):
                worker.descend(k * len(plan) + step, rates, **STEPS[steps])
        mix(workers, ring(N), BODY, begun if overlap else None)
    check(state, workers)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("method", [hpcopt.DPSGD, hpcopt.Local])
def test_dpsgd_and_local_are_loops(method, steps):
    task = network()
    way = method(lr=LR, local_steps=3, **STEPS[steps])
    state, ports = started(way, task)
    advance(way, state, 4)
    workers = crowd(task)
    for k in range(4):
        for worker in workers:
            for step in range(3):
                worker.descend(3 * k + step, ((BODY + HEAD, LR),), **STEPS[steps])
        if method is hpcopt.DPSGD:
            mix(workers, ring(N), BODY + HEAD)
    check(state, workers)
    assert all(ports.counters()[f"reduce.{verb}"].calls == 0 for verb in VERBS)


def test_gradient_tracking_is_its_recursion():
    task = network()
    method = hpcopt.GradientTracking(lr=LR)
    state, _ = started(method, task)
    advance(method, state, 5)
    workers, W = crowd(task), ring(N)
    names = BODY + HEAD
    g = [worker.gradient(0) for worker in workers]
    y = [dict(g_i) for g_i in g]
    for k in range(5):
        for worker, y_i in zip(workers, y, strict=True):
            worker.p = {name: worker.p[name] - LR * y_i[name] for name in names}
        mix(workers, W, names)
        new = [worker.gradient(k + 1) for worker in workers]
        mixed = [
            {name: sum(float(W[i, j]) * y[j][name] for j in range(N)) for name in names} for i in range(N)
        ]
        y = [{name: mixed[i][name] + new[i][name] - g[i][name] for name in names} for i in range(N)]
        g = new
    check(state, workers)


@pytest.mark.parametrize("ordered", [False, True])
def test_fedavg_is_the_weighted_mean_of_local_steps(ordered):
    task = network(partition="unequal", alpha=9.0, weights="rows")
    method = hpcopt.FedAvg(lr=LR, local_epochs=1, momentum=0.9)
    state, _ = started(method, task, ordered=ordered)
    advance(method, state, 3)
    workers = crowd(task)
    steps = [len(worker.rows) // BATCH for worker in workers]
    assert len(set(steps)) > 1
    for k in range(3):
        for worker, count in zip(workers, steps, strict=True):
            worker.v = {name: torch.zeros_like(value) for name, value in worker.p.items()}
            for step in range(count):
                worker.descend(k * count + step, ((BODY + HEAD, LR),), momentum=0.9)
        weights = np.array([[len(worker.rows) / 60 for worker in workers]] * N)
        mix(workers, weights, BODY + HEAD)
    np.testing.assert_allclose(state.x.numpy(), stacked(workers)[0], rtol=1e-9, atol=1e-12)


def test_deprl_with_one_worker_is_plain_alternating_sgd():
    task = network(workers=1, partition="iid")
    method = hpcopt.DePRL(lr=LR, head_steps=2, body_steps=1)
    state, _ = started(method, task)
    advance(method, state, 6)
    (worker,) = crowd(task)
    for k in range(6):
        for step, names in enumerate((HEAD, HEAD, BODY)):
            worker.descend(3 * k + step, ((names, LR),))
    check(state, [worker])


def test_heads_never_mix():
    task = network()
    method = hpcopt.DePRL(lr=LR)
    first, _ = started(method, task)
    second, _ = started(method, task)
    second.X[1:, task.layout.private] += 1.0
    advance(method, first, 1)
    advance(method, second, 1)
    assert torch.equal(first.X[0, task.layout.private], second.X[0, task.layout.private])
    assert not torch.equal(first.X[0], second.X[0])  # but what the others learned with them comes back


@pytest.mark.parametrize("topology", ["ring", "star", "one_peer_exponential", "complete"])
def test_mixing_keeps_the_mean(topology):
    task = network(workers=4, classes_per_worker=3)
    method = hpcopt.DPSGD(lr=1e-300, topology=topology)
    state, ports = started(method, task)
    state.X += torch.randn(state.X.shape, dtype=state.X.dtype)
    mean = state.X.mean(0)
    apart = evaluated(method, task, state, ports)["consensus"]
    assert apart == pytest.approx(float(((state.X - mean) ** 2).sum(1).mean()), rel=1e-12)
    advance(method, state, 3)
    torch.testing.assert_close(state.X.mean(0), mean, rtol=0, atol=1e-14)
    assert evaluated(method, task, state, ports)["consensus"] < apart


@pytest.mark.parametrize("ordered", [False, True])
def test_consensus_and_the_mean_model_are_those_of_all_workers(ordered):
    task = network()
    method = hpcopt.DePRL(lr=LR)
    state, ports = started(method, task, ordered=ordered)
    advance(method, state, 2)
    kept = state.X.clone()
    phi = state.X[:, task.layout.shared]
    expected = float(((phi - phi.mean(0)) ** 2).sum(1).mean())
    values = evaluated(method, task, state, ports)
    assert values["consensus"] == pytest.approx(expected, rel=1e-12)
    mean = task.evaluate(state.X.mean(0))  # (d,): one model for all
    global_loss = np.average(mean.values["loss"], weights=mean.weights["loss"])
    assert values["global_loss"] == pytest.approx(global_loss, rel=1e-12)
    assert torch.equal(state.X, kept)


def test_fedavg_is_dpsgd_on_the_complete_graph():
    task = network()
    keys = {"lr": LR, "local_steps": 4}
    average, gossip = hpcopt.FedAvg(**keys), hpcopt.DPSGD(topology="complete", mixing="uniform", **keys)
    common, own = started(average, task)[0], started(gossip, task)[0]
    advance(average, common, 5)
    advance(gossip, own, 5)
    torch.testing.assert_close(own.X, common.x.expand(N, -1), rtol=1e-12, atol=1e-14)


def test_gradient_tracking_reaches_the_optimum_where_dpsgd_does_not():
    recipe = hpcopt.LinearRegression(N, dim=8, rows_per_worker=30)
    task = recipe.bind(Share(range(N), N, seed=SEED))
    task.settle(torch.cat([rows.sum(0) for rows in task.statistics()]))
    far = {}
    for method in (hpcopt.GradientTracking(lr=0.02), hpcopt.DPSGD(lr=0.02, local_steps=1)):
        state, _ = started(method, task)
        advance(method, state, 1000)
        far[type(method)] = float((state.X - task.optimum).norm())
    assert far[hpcopt.GradientTracking] < 1e-10
    assert far[hpcopt.DPSGD] > 1e-3


def test_epochs_are_passes_through_a_workers_own_rows():
    task = network(partition="unequal", alpha=9.0)
    method = hpcopt.DePRL(lr=LR, head_epochs=2, body_epochs=1)
    state, _ = started(method, task)
    advance(method, state, 3)
    rows = task.rows // BATCH * BATCH
    assert len(set(rows.tolist())) > 1
    assert task.samples == 3 * 3 * int(rows.sum())


def test_rates_follow_one_schedule():
    task = network()
    falling = hpcopt.DePRL(lr=0.1, lr_head=0.2, schedule="step", lr_decay=0.5, lr_decay_rounds=1)
    halved = hpcopt.DePRL(lr=0.05, lr_head=0.1)
    one, other = started(falling, task)[0], started(halved, task)[0]
    one.round = other.round = 1
    falling.step(one)
    halved.step(other)
    assert torch.equal(one.X, other.X)


@pytest.mark.parametrize("method", [hpcopt.DePRL, hpcopt.DPSGD, hpcopt.FedAvg, hpcopt.GradientTracking])
def test_models_before_the_last_mixing(method):
    task, N = network(workers=4, classes_per_worker=3), 4
    way = method(lr=LR, before_mixing=True, **({} if method is hpcopt.FedAvg else {"topology": "complete"}))
    state, _ = started(way, task)
    assert torch.equal(way.others(state)["before_mixing"], task.initial().expand(N, -1))
    advance(way, state, 2)
    before = way.others(state)["before_mixing"]
    after = way.model(state)
    mixed = task.layout.shared if method is hpcopt.DePRL else slice(None)
    assert not torch.allclose(before[0, mixed], before[1, mixed])
    mean = before[:, mixed].mean(0)
    torch.testing.assert_close(mean.expand(N, -1), after[:, mixed], rtol=1e-10, atol=1e-12)
    if method is hpcopt.DePRL:
        assert torch.equal(before[:, task.layout.private], after[:, task.layout.private])


def test_columns_and_notes_of_a_run(tmp_path):
    """Personal, global and before-mixing values; what evaluation sends is not counted."""
    recipe = hpcopt.Network(module(), loss, (X, Y), (X, Y), workers=N, batch_size=BATCH, partition="classes")
    found = {}
    for method in (hpcopt.DePRL(before_mixing=True), hpcopt.FedAvg(before_mixing=True), hpcopt.Local()):
        out = tmp_path / type(method).__name__
        hpcopt.run(method, recipe, out=out, rounds=4, evaluate_every=2, seed=SEED, dtype="float64")
        found[type(method).__name__] = hpcopt.load(out)
    for name, data in found.items():
        metrics, workers = data["metrics"], data["workers"]
        kinds = {"accuracy", "global_accuracy"} | ({"before_mixing_accuracy"} if name != "Local" else set())
        assert kinds <= set(metrics.data_vars)
        for kind in kinds - {"global_accuracy"}:
            np.testing.assert_allclose(metrics[kind], workers[kind].mean("worker"), rtol=1e-12)
        assert "global_accuracy" not in workers
        assert ("consensus" in metrics) == (name != "FedAvg")
    assert found["Local"]["metrics/bytes_workers"].values.tolist() == [0, 0, 0]
    assert "no common objective" in found["Local"].attrs["notes"]
    sent = 4 * N * 2 * 35 * 8  # rounds, workers, neighbours, numbers of the body, bytes
    assert found["DePRL"]["metrics/bytes_workers"].values.tolist() == [0, sent / 2, sent]
    assert found["DePRL"]["metrics/passes"].values.tolist() == [0, 0, 0]
    assert found["DePRL"].attrs["notes"].startswith("mixing: ring of 5, Metropolis weights: |λ₂| 0.5")
    assert found["FedAvg"]["metrics/passes"].values.tolist() == [0, 2, 4]


@pytest.mark.parametrize("private", [["nothing.*"], ["*"]])
def test_a_split_without_two_parts_is_refused(private):
    with pytest.raises(UserError, match=r"problem\.private .* body\.weight, .* \[\"head\.\*\"\]") as error:
        hpcopt.DePRL().prepare(network(private=private))
    assert ("no parameter" in str(error.value)) == (private == ["nothing.*"])
    hpcopt.DPSGD().prepare(network(private=private))  # which does not ask


def test_a_graph_that_never_agrees_is_refused(tmp_path):
    path = tmp_path / "edges"
    path.write_text("0 1\n2 3\n3 4\n")
    recipe = hpcopt.Network(module(), loss, (X, Y), workers=N)
    with pytest.raises(UserError, match="not connected but in 2 groups"):
        hpcopt.run(hpcopt.DePRL(topology=str(path)), recipe, out=tmp_path / "run", rounds=1)
    with pytest.raises(UserError, match=r"rign.* did you mean \"ring\""):
        hpcopt.run(hpcopt.DPSGD(topology="rign"), recipe, out=tmp_path / "other", rounds=1)


def test_weights_with_which_a_method_goes_wrong_are_refused(tmp_path):
    task, path = network(workers=4), tmp_path / "weights"
    path.write_text("".join(f"{i} {(i + 1) % 4} 0.5\n" for i in range(4)))
    with pytest.raises(UserError, match="would never agree"):
        hpcopt.DPSGD(topology=str(path), mixing=str(path)).prepare(task)
    star = {"topology": "star", "mixing": "uniform"}
    hpcopt.DPSGD(**star).prepare(task)
    with pytest.raises(UserError, match="does not keep the mean"):
        hpcopt.GradientTracking(**star).prepare(task)


def test_a_run_stays_with_its_problem(tmp_path):
    """Other private parameters would permute the vector, other rows make new workers old ones."""
    (tmp_path / "config.toml").write_text(
        '[run]\nmethod = "deprl"\nworkers = 4\nrounds = 1\n[problem]\nkind = "network"\n'
    )
    for key, value in (("private", '["body.*"]'), ("new_workers", "2"), ("alpha", "0.1")):
        with pytest.raises(UserError, match=rf"\[problem\] {key} = .*: the run was begun with"):
            resumable(tmp_path, [f"problem.{key}={value}"])
    assert resumable(tmp_path, ["problem.batch_size=4"]).problem.batch_size == 4

    def recipe(private):
        return hpcopt.Network(module(), loss, (X, Y), workers=N, private=[private])

    hpcopt.run(hpcopt.DePRL(), recipe("head.*"), out=tmp_path / "python", rounds=1)
    more = {"overrides": ("run.rounds=2",)}
    with pytest.raises(UserError, match=r"or in another order .*problem\.private has changed"):
        hpcopt.resume(tmp_path / "python", problem=recipe("body.*"), **more)
    hpcopt.resume(tmp_path / "python", problem=recipe("head.*"), **more)


def test_settings_that_say_the_same_are_refused():
    for method, keys, message in (
        (hpcopt.DePRL, {"head_steps": 1, "head_epochs": 1}, "head_steps and head_epochs"),
        (hpcopt.DePRL, {"body_steps": 1, "body_epochs": 1}, "body_steps and body_epochs"),
        (hpcopt.DePRL, {"order": "together", "head_steps": 1}, "together"),
        (hpcopt.DPSGD, {"local_steps": 1, "local_epochs": 1}, "local_steps and local_epochs"),
    ):
        with pytest.raises(UserError, match=message):
            method(**keys)
