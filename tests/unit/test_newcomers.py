"""New workers: heads fitted to the representation that others learned, against the loop written out."""

from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

import hpcopt
from hpcopt.errors import UserError
from hpcopt.math.streams import stream
from hpcopt.problems.base import Draw, Share
from hpcopt.problems.data import partition

N, K, SEED, BATCH, STEPS, LR = 5, 3, 3, 4, 9, 0.2
X, Y = torch.randn(90, 6, generator=torch.Generator().manual_seed(1)), torch.arange(90) % 3
SPREAD = {"partition": "dirichlet", "alpha": 1.0}
loss = nn.functional.cross_entropy


def module():
    """BatchNorm and dropout, which a representation that stays as it is must not feel."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.5))
    return nn.Sequential(OrderedDict(body=body, head=nn.Linear(5, 3)))


def network(new_workers=K, **keys):
    keys = {"new_worker_steps": STEPS, "new_worker_lr": LR, "batch_size": BATCH, **SPREAD, **keys}
    return hpcopt.Network(module(), loss, (X, Y), (X, Y), workers=N, new_workers=new_workers, **keys)


def bound(recipe, workers=range(N)):
    return recipe.bind(Share(workers, N, seed=SEED))


def parts(workers):
    return partition(Y.numpy(), Y.numpy(), workers, kind=SPREAD["partition"], alpha=1.0, seed=SEED)


def learned(task):
    """A point away from the start, and its buffers."""
    generator = torch.Generator().manual_seed(2)
    x = task.initial() + torch.randn(task.dim, generator=generator, dtype=torch.float64)
    return x, torch.rand(task.buffers.shape[1], generator=generator, dtype=torch.float64) + 0.5


def fitted(task, x, buffers, k, decay):
    """Newcomer k in plain torch: (loss, test loss, accuracy)."""
    net, rows = module().double().eval(), parts(N + K)
    with torch.no_grad():
        for name, value in task.layout.views(x).items():
            if name.startswith("body"):
                net.get_parameter(name).copy_(value)
        net.body[1].running_mean.copy_(buffers[:5])
        net.body[1].running_var.copy_(buffers[5:])
    mine, tests = rows.train[N + k], rows.test[N + k]
    per_epoch = max(1, len(mine) // BATCH)
    size = min(BATCH, len(mine))
    optimizer = torch.optim.SGD(net.head.parameters(), LR, weight_decay=decay)
    for step in range(STEPS):
        epoch, at = divmod(step, per_epoch)
        order = stream(SEED, "batches", N + k, epoch).permutation(len(mine))
        chosen = np.sort(mine) if size == len(mine) else mine[order[at * size : (at + 1) * size]]
        optimizer.zero_grad()
        loss(net(X[chosen].double()), Y[chosen]).backward()
        optimizer.step()
    with torch.no_grad():
        penalty = decay / 2 * sum(p.square().sum() for p in net.parameters())
        output = net(X[tests].double())
        right = (output.argmax(1) == Y[tests]).double().mean()
        return [
            float(v) for v in (loss(net(X[mine].double()), Y[mine]) + penalty, loss(output, Y[tests]), right)
        ]


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_each_fits_a_head_as_a_plain_loop_does(decay):
    task = bound(network(regularisation=decay))
    x, buffers = learned(task)
    kept, mine = x.clone(), task.buffers.clone()
    found = task.newcomers.evaluate(x, buffers)
    expected = np.array([fitted(task, x, buffers, k, decay) for k in range(K)])
    for name, values in zip(("loss", "test_loss", "accuracy"), expected.T, strict=True):
        np.testing.assert_allclose(found.values[name], values, rtol=1e-9, err_msg=name)
    assert torch.equal(x, kept)
    assert torch.equal(task.buffers, mine)
    assert task.samples == 0
    again = task.newcomers.evaluate(x, buffers)
    assert all(torch.equal(again.values[name], found.values[name]) for name in found.values)


def test_the_head_that_was_trained_is_not_used():
    task = bound(network())
    x, buffers = learned(task)
    found = task.newcomers.evaluate(x, buffers).values["loss"]
    x[task.layout.private] += 1.0
    assert torch.equal(task.newcomers.evaluate(x, buffers).values["loss"], found)
    x[task.layout.shared] += 1.0
    assert not torch.equal(task.newcomers.evaluate(x, buffers).values["loss"], found)


def test_their_rows_are_nobody_elses():
    task, rows = bound(network(weights="rows")), parts(N + K)
    sizes = [len(mine) for mine in rows.train[:N]]
    assert task.rows.tolist() == sizes
    assert task.total_rows == sum(sizes) < len(X)
    np.testing.assert_allclose(task.weights, np.array(sizes) / sum(sizes), rtol=1e-12)
    for worker, mine in zip(task._data, rows.train[:N], strict=True):
        assert torch.equal(worker.train.features, X[mine])
    whole = bound(network(new_workers=0))
    assert whole.newcomers is None
    assert whole.rows.tolist() == [len(mine) for mine in parts(N).train]
    # a model for all is evaluated on all test rows
    assert task.evaluate(task.initial()).weights["test_loss"].sum() == len(X)


@pytest.mark.parametrize("new_workers", [1, 2, 3, 7, 12])
@pytest.mark.parametrize("ends", [(5,), (3, 5), (1, 2, 3, 4, 5)])
def test_it_does_not_matter_where_they_live(new_workers, ends):
    recipe = network(new_workers, samples_per_worker=8)
    whole = bound(recipe)
    x, buffers = learned(whole)
    expected = whole.newcomers.evaluate(x, buffers)
    pieces = [
        bound(recipe, range(*pair)).newcomers.evaluate(x, buffers)
        for pair in zip((0, *ends), ends, strict=False)
    ]
    for name, values in expected.values.items():
        here = [piece.values[name] for piece in pieces if piece.values]
        assert torch.equal(torch.cat(here), values)
        assert len(values) == new_workers


def test_their_mini_batches_are_not_those_of_the_workers():
    share = Share(range(2, N), N, seed=SEED)
    assert share.newcomers(K).workers == range(N + 2, N + K)
    assert share.newcomers(K).total == N + K


METHODS = {
    "deprl": lambda: hpcopt.DePRL(lr=0.3),
    "fedavg": lambda: hpcopt.FedAvg(lr=0.3),
    "local": lambda: hpcopt.Local(lr=0.3),
    "allreduce_sgd": lambda: hpcopt.AllreduceSGD(lr=0.3),
    "topk": lambda: hpcopt.TopK(lr=0.3, density=0.5),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_the_same_however_they_fit(method, tmp_path):
    """They cost the run nothing: not a gradient, not a byte; and resumed, it measures the same."""
    found = {}
    for steps, rounds in ((1, 4), (30, 4), (30, 2)):
        out = tmp_path / f"{steps}-{rounds}"
        recipe = network(new_worker_steps=steps)
        hpcopt.run(METHODS[method](), recipe, out=out, rounds=rounds, evaluate_every=2, seed=SEED)
        if rounds == 2:
            hpcopt.resume(out, problem=recipe, overrides=("run.rounds=4",))
        found[steps, rounds] = hpcopt.load(out)["metrics"]
    few, many, resumed = found.values()
    theirs = {f"new_worker_{name}" for name in ("loss", "test_loss", "accuracy", "generalisation_gap")}
    assert theirs == {name for name in many.data_vars if name.startswith("new_worker")}
    for name in set(many.data_vars) - {"seconds", "peak_memory"}:
        assert (name in theirs) != np.array_equal(few[name], many[name]), name
        assert np.array_equal(many[name], resumed[name]), name
    assert (many["new_worker_loss"] < few["new_worker_loss"]).all()


def test_all_methods_begin_with_the_same_control(tmp_path):
    values = []
    for name, method in METHODS.items():
        hpcopt.run(method(), network(), out=tmp_path / name, rounds=0, seed=SEED, dtype="float64")
        values.append(float(hpcopt.load(tmp_path / name)["metrics/new_worker_loss"][0]))
    np.testing.assert_allclose(values, values[0], rtol=1e-12)
    task = bound(network())
    weights = task.newcomers.evaluate(task.initial(), task.buffers[0])
    assert values[0] == pytest.approx(float(weights.values["loss"].mean()), rel=1e-12)


@pytest.mark.parametrize("private", [["nothing.*"], ["*"]])
def test_without_a_head_and_a_representation_they_are_refused(private):
    with pytest.raises(
        UserError, match=r"problem\.private matches .*: problem\.new_workers = 3 needs .* \[\"head"
    ):
        bound(network(private=private))
    bound(network(private=private, new_workers=0))


def test_too_many_for_the_rows_are_refused():
    with pytest.raises(UserError, match=r"problem\.new_workers = 100: .* at most 85"):
        bound(network(new_workers=100))
    with pytest.raises(UserError, match="new_workers"):
        network(new_workers=-1)


def test_the_workers_draws_stay_as_they_are():
    """The streams of a worker know nothing of newcomers: with the same rows, the same gradients."""
    recipe = network(samples_per_worker=8)
    task, alone = bound(recipe), bound(network(new_workers=0, samples_per_worker=8))
    x = task.initial()
    assert torch.equal(task.gradients(x, Draw(1)), alone.gradients(x, Draw(1)))
