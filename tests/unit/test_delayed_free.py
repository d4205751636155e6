"""Free workers, delays by script: the log replays the run to the bit, and says how late gradients were."""

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.comm.mailbox.local_mailbox import LocalMailbox
from hpcopt.math.mixing import mixing
from hpcopt.methods.parts.log import Log
from hpcopt.problems.base import Draw
from tests.unit import free_cases
from tests.unit.free_cases import DELAYS, LR, N, problem, rate, replay, replay_averaging
from tests.unit.plain_steps import UPDATES

WINDOW = 32


def begun(delay=None, dim=7, **keys):
    return free_cases.begun(problem(dim), delay, window=WINDOW, **keys)


def windows(method, state, count, pauses=True):
    """Some rounds, with a pause after each or after the last: models and logs there."""
    models, logs = [], []
    for number in range(count):
        method.step(state)
        if pauses or number == count - 1:
            method.pause(state)
            models.append(method.model(state).clone())
            trace = method.trace(state)
            logs.append([tuple(trace.values())])
        state.round += 1
    return models, logs


@pytest.mark.parametrize("pauses", [True, False])
@pytest.mark.parametrize("delay", DELAYS)
def test_the_log_replays_the_run(delay, pauses):
    method, state, _ = begun(DELAYS[delay])
    models, logs = windows(method, state, 3, pauses)
    again = replay(problem(), problem().initial(), logs, rate)
    assert all(torch.equal(one, other) for one, other in zip(models, again, strict=True))
    merged = any((applied[:, 2] > 1).any() for segment in logs for _, applied in segment)
    assert merged == (delay == "full links")


@pytest.mark.parametrize("update", UPDATES)
def test_owners_make_any_first_order_step(update):
    """Of the gradients that each applies, which their workers have shortened; moments survive a rest."""
    settings = UPDATES[update]
    method, state, _ = begun(DELAYS["full links"], **settings)
    models, logs = windows(method, state, 3)
    again = replay(problem(), problem().initial(), logs, rate, **settings)
    for one, other in zip(models, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)
    made = sum(len(applied) for segment in logs for _, applied in segment)
    assert int(state.updates.sum()) == made * (update == "adamw")


def test_without_delays_it_is_sgd_on_one_worker_after_the_other():
    method, state, _ = begun()
    windows(method, state, 2)
    assert state.counts.sum() == state.counts[:, 0].sum() == 2 * WINDOW * N
    assert state.made.tolist() == [2 * WINDOW // N] * N


@pytest.mark.parametrize("delay", ["by slice", "full links"])
def test_staleness_is_that_of_the_log(delay):
    method, state, _ = begun(DELAYS[delay])
    _, [[(gradients, applied)]] = windows(method, state, 3, pauses=False)
    counts = np.zeros_like(state.counts.numpy())
    reads = {n: gradients[gradients[:, 0] == n][:, 2:] for n in range(N)}
    for m in range(N):
        version, used = 0, [0] * N
        for _, n, count, _ in applied[applied[:, 0] == m]:
            # as if they had been applied one by one
            each = [version + k - reads[n][used[n] + k, m] for k in range(count)]
            counts[n, int(np.mean(each) + 0.5)] += count
            version, used[n] = version + count, used[n] + count
    assert np.array_equal(state.counts.numpy(), counts)
    assert counts[:, 1:].any(1).all()


def test_changing_one_row_of_a_log_changes_the_model():
    method, state, _ = begun(DELAYS["by slice"])
    (model,), [[(gradients, applied)]] = windows(method, state, 3, pauses=False)
    at = next(k for k in range(5, len(gradients)) if gradients[k, 2])
    gradients[at, 2] -= 1
    (other,) = replay(problem(), problem().initial(), [[(gradients, applied)]], rate)
    assert not torch.equal(model, other)


def test_rates_by_staleness():
    keys = {"lr_rule": "adaptive", "smoothness": 4.0, "lr_factor": 0.2, "schedule": "constant"}
    method, state, _ = begun(DELAYS["one worker is slow"], **keys)
    rate = method._rates.of(state.L, 0)
    assert [rate(late) for late in (0, 3)] == pytest.approx([0.05, 0.0125])


def test_a_window_ends_with_the_ranks_wish():
    method, state, ports = begun()
    ports.wish = lambda: 2
    assert method.step(state).wish == 2


def test_fewer_parameters_than_workers():
    method, state, _ = begun(dim=2)
    models, logs = windows(method, state, 2)
    again = replay(problem(2), problem(2).initial(), logs, rate)
    assert all(torch.equal(one, other) for one, other in zip(models, again, strict=True))


# --- models of their own -------------------------------------------------------------------------


@pytest.mark.parametrize("pauses", [True, False])
@pytest.mark.parametrize("topology", ["ring", "one_peer_exponential"])
@pytest.mark.parametrize("delay", DELAYS)
def test_the_log_of_averages_replays_the_run(delay, topology, pauses):
    method, state, _ = begun(DELAYS[delay], layout="neighbours", topology=topology)
    models, logs = windows(method, state, 3, pauses)
    again = replay_averaging(problem(), problem().initial(), logs, rate, mixing(topology, "metropolis", N))
    assert all(torch.equal(one, other) for one, other in zip(models, again, strict=True))
    for ((_, averaged),) in logs:  # none twice
        assert len({tuple(row) for row in averaged[:, [0, 2, 3]].tolist()}) == len(averaged)


@pytest.mark.parametrize("update", UPDATES)
def test_neighbours_make_any_first_order_step(update):
    keys = {"layout": "neighbours", "topology": "ring", **UPDATES[update]}
    method, state, _ = begun(DELAYS["by slice"], **keys)
    models, logs = windows(method, state, 3)
    start, W = problem().initial(), mixing("ring", "metropolis", N)
    again = replay_averaging(problem(), start, logs, rate, W, **UPDATES[update])
    for one, other in zip(models, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-13)


def test_after_a_rest_nobody_lacks_a_model(monkeypatch):
    """Though of what was collected then nobody has been told yet."""
    monkeypatch.setattr(LocalMailbox, "collected", lambda self, origin, to: 0)
    method, state, _ = begun(layout="neighbours", topology="ring")
    _, logs = windows(method, state, 2)
    for ((gradients, _),) in logs:
        for n in range(N):
            mine = gradients[gradients[:, 0] == n]
            assert mine[:, 3:].tolist() == [[k, k] for k in range(len(mine))]


def test_neighbours_agree():
    method, state, _ = begun(layout="neighbours", topology="complete", schedule="constant")
    windows(method, state, 30)
    bound = problem()
    alone = bound.initial().repeat(N, 1)
    for n in range(N):
        for k in range(int(state.made[n])):
            alone[n] -= LR * bound.gradient(n, alone[n], Draw(k))[0]
    apart, alone_apart = ((X - X.mean(0)).norm() / X.mean(0).norm() for X in (state.X, alone))
    assert apart < alone_apart / 5
    assert method.model(state) is state.X


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"compensation": 0.1}, "compensation"),
        ({"lr_rule": "stability"}, "stability"),
        ({"aggregate": "sum"}, "aggregate"),
        ({"window": 0}, "window"),
        ({"delay": 3}, "delay = 3: .* nobody sets delays"),
        ({"delay": [1, 2]}, r"delay = \[1, 2\]: .* nobody sets delays"),
        ({"layout": "neighbours", "lr_rule": "adaptive"}, "neighbours"),
    ],
)
def test_keys_that_mean_nothing_to_free_workers(keys, words):
    with pytest.raises(hpcopt.UserError, match=words):
        hpcopt.DelayedSGD(mode="free", **keys)


def test_bits_that_cannot_be_promised():
    method = hpcopt.DelayedSGD(mode="free")
    recipe = hpcopt.LinearRegression(workers=N, dim=3)
    with pytest.raises(hpcopt.UserError, match=r"run\.deterministic"):
        hpcopt.simulate(method, recipe, 2, deterministic=True)


def test_a_window_that_others_have_filled_needs_no_gradient():
    method, state, _ = begun()
    windows(method, state, 1)
    made = state.made.clone()
    state.round = 0  # as on a rank that comes late
    method.step(state)
    assert torch.equal(state.made, made)


def test_the_last_gradients_are_applied_at_the_rate_of_their_round():
    keys = {"schedule": "cosine", "lr_horizon": 1}
    method, state, _ = begun(DELAYS["full links"], **keys)
    method.step(state)
    state.round += 1
    before = state.x.clone()
    method.pause(state)
    assert not torch.equal(state.x, before)


def test_adaptive_rates_need_a_curvature():
    flat = hpcopt.Quadratic(workers=2, dim=2, eigenvalues=[0.0, 0.0])
    method = hpcopt.DelayedSGD(mode="free", lr_rule="adaptive")
    with pytest.raises(hpcopt.UserError, match="smoothness"):
        hpcopt.simulate(method, flat, 1)
    saddle = hpcopt.Quadratic(workers=2, dim=2, eigenvalues=[-10.0, 1.0])
    _, state = hpcopt.simulate(method, saddle, 0, return_state=True)
    assert float(state.L) == pytest.approx(10)
    with pytest.raises(hpcopt.UserError, match="smoothness"):
        hpcopt.DelayedSGD(mode="free", lr_rule="adaptive", trace_out=True)


def test_a_simulation_keeps_no_trace(monkeypatch):
    """However long it is, no row of before the last record is kept."""
    rows, take = [], Log.take

    def counted(log):
        rows.append(len(log._rows["gradients"]))
        return take(log)

    monkeypatch.setattr(Log, "take", counted)
    method = hpcopt.DelayedSGD(mode="free", lr=LR, window=WINDOW, trace_out=True)
    recipe = hpcopt.LinearRegression(workers=N, dim=3)
    hpcopt.simulate(method, recipe, 12, evaluate_every=2)
    assert rows == [0] + [2 * WINDOW] * 6
