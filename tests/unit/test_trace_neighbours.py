"""Traces of free workers that average with their neighbours: made again to the bit, refused by their row."""

import h5py
import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.math.mixing import mixing
from tests.unit.free_cases import (
    DELAYS,
    ROUNDS,
    N,
    again,
    begun,
    free,
    problem,
    rate,
    replay_averaging,
    snapshot,
)
from tests.unit.plain_steps import UPDATES

RING = {"layout": "neighbours", "topology": "ring"}
CHANGING = {"layout": "neighbours", "topology": "one_peer_exponential"}


@pytest.mark.parametrize("keys", [RING, CHANGING | UPDATES["adamw"]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rests", [(2, 3, 6), (6,)])
@pytest.mark.parametrize("delay", DELAYS)
def test_a_trace_makes_the_run_again(tmp_path, delay, rests, dtype, keys):
    run, models = free(tmp_path / "trace.h5", problem(dtype=dtype), DELAYS[delay], rests, **keys)
    other, all_models = again(tmp_path / "trace.h5", problem(dtype=dtype), **keys)
    for round, X in models.items():
        assert X.shape == (N, 7)
        assert torch.equal(X, all_models[round])
    assert torch.equal(run.counts, other.counts)
    assert torch.equal(run.made, other.made)


@pytest.mark.parametrize("keys", [RING, CHANGING | UPDATES["adamw"]])
@pytest.mark.parametrize("delay", ["by slice", "full links"])
def test_it_goes_on_where_the_run_never_rested(tmp_path, delay, keys):
    free(tmp_path / "trace.h5", problem(), DELAYS[delay], (6,), **keys)
    whole, models = again(tmp_path / "trace.h5", problem(), **keys)
    assert len(whole.waiting)
    for stop in range(1, ROUNDS):
        half, _ = again(tmp_path / "trace.h5", problem(), rounds=stop, **keys)
        end, others = again(tmp_path / "trace.h5", problem(), snapshot(half), **keys)
        assert all(torch.equal(models[round], X) for round, X in others.items())
        assert torch.equal(end.counts, whole.counts)
        assert torch.equal(end.made, whole.made)


@pytest.fixture
def path(tmp_path):
    free(tmp_path / "trace.h5", problem(), DELAYS["by slice"], (3, 6), **RING)
    return tmp_path / "trace.h5"


@pytest.mark.parametrize("row", ["averaged", "gradients"])
def test_changing_one_row_changes_the_curve(path, row):
    _, models = again(path, problem(), **RING)
    with h5py.File(path, "r+") as file:
        rows = file[row][: int(file[f"segments/{row}"][0])]
        if row == "averaged":  # an older model of the neighbour's
            at = next(k for k in range(20, len(rows)) if rows[k, 3] > 1)
            file[row][at, 3] -= 1
        else:  # at the rate of another round
            at = next(k for k in range(len(rows)) if rows[k, 2] == 1 and rows[k - N, 2] == 0)
            file[row][at, 2] -= 1
    _, others = again(path, problem(), **RING)
    assert not torch.equal(models[3], others[3])


def test_a_step_that_waits_for_a_later_round_has_the_rate_of_its_own(path):
    """As on a rank that was still in round 0 when the others were in round 1."""
    with h5py.File(path, "r+") as file:
        late = (file["gradients"][:, 0] == 0) & (file["gradients"][:, 2] == 1)
        file["gradients"][np.flatnonzero(late), 2] = 0
        ends = [file[f"segments/{name}"][0] for name in ("gradients", "averaged")]
        log = (file["gradients"][: ends[0]], file["averaged"][: ends[1]])
    _, models = again(path, problem(), **RING)
    W = mixing("ring", "metropolis", N)
    (X,) = replay_averaging(problem(), problem().initial(), [[log]], rate, W)
    assert torch.equal(models[3], X)


def change(name, row, column, value):
    def done(file):
        file[name][row, column] = value

    return done


def swap(file):
    """A worker averages before its first step what a neighbour has made after it took that step's model."""
    rows = file["averaged"][...]
    first = int(np.flatnonzero((rows[:, 0] == 0) & (rows[:, 2] == 1))[0])
    last = int(np.flatnonzero((rows[:, 0] == 1) & (rows[:, 2] == 0) & (rows[:, 1] < 9))[-1])
    assert rows[last, 3] >= 0
    for row in np.flatnonzero(rows[: first + 1, 0] == 0):
        file["averaged"][row, 1] = 0
    file["averaged"][first, 3] = rows[last, 1]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (change("gradients", 5, 0, 7), r"row 5 of /gradients, \[7, .*: its worker does not exist.* 0 to 3"),
        (change("gradients", 5, 1, 9), r"row 5 of /gradients, .*: a trace has all mini-batches"),
        (change("gradients", 5, 2, 9), r"row 5 of /gradients, .*: of rounds 0 to 2 only"),
        (change("gradients", 5, 3, -1), r"row 5 of /gradients, .*: must not be negative"),
        (change("averaged", 5, 0, 4), r"row 5 of /averaged, \[4, .*: its worker does not exist.* 0 to 3"),
        (change("averaged", 5, 2, -1), r"row 5 of /averaged, .*: its worker does not exist.* 0 to 3"),
        (change("averaged", 5, 1, 999), r"row 5 of /averaged, .*: there are no such steps"),
        (change("averaged", 5, 3, 999), r"row 5 of /averaged, .*: there are no such steps"),
        (change("averaged", 40, 1, 0), r"row 40 of /averaged, .*: comes after what the worker averaged"),
        (change("averaged", 5, 4, 0), r'row 5 of /averaged, .*: was not averaged so .*topology = "ring"'),
        (swap, r"row \d+ of /averaged, .*: refers to the future"),
        (lambda file: file.pop("gradients"), r"has /averaged; free workers .* /gradients, /averaged"),
        (lambda file: file.attrs.modify("workers", 8), r"is of 8 workers and 7 parameters, but .* 4 workers"),
    ],
)
def test_a_trace_that_is_wrong(path, wrong, words):
    with h5py.File(path, "r+") as file:
        wrong(file)
    with pytest.raises(hpcopt.UserError, match=words) as caught:
        again(path, problem(), **RING)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, r'layout = "owners": .* is of free workers with layout = "neighbours"'),
        (CHANGING, r'row 0 of /averaged.*not averaged so on this graph: topology = "one_peer_exponential"'),
        (RING | {"topology": "complete"}, r"row 0 of /averaged.*not averaged so"),
    ],
)
def test_a_trace_of_another_layout_or_graph(path, keys, words):
    with pytest.raises(hpcopt.UserError, match=words):
        again(path, problem(), **keys)


def test_other_words_for_the_same_weights_will_do(path):
    _, models = again(path, problem(), **RING)
    _, others = again(path, problem(), **RING | {"mixing": "laplacian"})
    assert torch.equal(models[ROUNDS], others[ROUNDS])


def test_owners_do_not_make_what_neighbours_made(tmp_path):
    free(tmp_path / "trace.h5", problem(), None, (6,))
    with pytest.raises(hpcopt.UserError, match=r'layout = "neighbours": .* with layout = "owners"'):
        begun(problem(), mode="trace", trace=str(tmp_path / "trace.h5"), trace_out=False, **RING)
