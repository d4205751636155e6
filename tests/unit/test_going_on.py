"""What a run that goes on must not do without a word."""

import json
import time
import tomllib
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import hpcopt
from hpcopt.comm import mpi_ports
from hpcopt.comm.chosen import Chosen
from hpcopt.engine.rundir import RunDirectory

PROBLEM = hpcopt.LinearRegression(2, dim=5, rows_per_worker=10)
SMALL = {"rounds": 4, "evaluate_every": 2, "checkpoint_every": 2}


def test_a_finished_cosine_is_not_extended_at_rate_0(tmp_path):
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.02, schedule="cosine"), PROBLEM, out=tmp_path, **SMALL)
    with pytest.raises(hpcopt.UserError, match=r"lr_horizon = 4: from then on the rate .* is 0"):
        hpcopt.resume(tmp_path, problem=PROBLEM, overrides=("run.rounds=8",))
    hpcopt.resume(tmp_path, problem=PROBLEM, overrides=("run.rounds=8", "method.lr_horizon=8"))
    losses = hpcopt.load(tmp_path)["metrics/loss"].values
    assert (np.diff(losses) != 0).all()


def test_a_warm_up_is_no_longer_than_the_run():
    with pytest.raises(hpcopt.UserError, match="warmup_rounds = 9: longer than the run"):
        hpcopt.simulate(hpcopt.AllreduceSGD(warmup_rounds=9), PROBLEM, 8)


@pytest.mark.parametrize("interrupted", [False, True])
def test_fewer_rounds_than_are_done_are_refused(tmp_path, interrupted):
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.02), PROBLEM, out=tmp_path, **SMALL)
    if interrupted:
        (tmp_path / "run.h5").unlink()
    with pytest.raises(hpcopt.UserError, match=r"4 rounds are done, and run.rounds = 3 are fewer"):
        hpcopt.resume(tmp_path, problem=PROBLEM, overrides=("run.rounds=3",))


class Staged(hpcopt.AllreduceSGD):
    """What happens in a round is up to the test."""

    happens = staticmethod(lambda state: None)

    def step(self, state):
        self.happens(state)
        return super().step(state)


def test_max_seconds_counts_all_jobs_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Staged, "happens", staticmethod(lambda state: time.sleep(0.25)))
    hpcopt.run(Staged(lr=0.02), PROBLEM, out=tmp_path, **SMALL)
    assert hpcopt.load(tmp_path)["metrics/seconds"].values[-1] > 1
    monkeypatch.setattr(Staged, "happens", staticmethod(lambda state: None))
    more = ("run.rounds=100000", "run.max_seconds=1.0")
    hpcopt.resume(tmp_path, problem=PROBLEM, overrides=more)
    found = hpcopt.load(tmp_path).attrs
    assert found["stopped_by"] == "max_seconds"
    assert found["last_round"] <= 6  # the wish to stop takes a round; in another second there were hundreds


def test_sums_are_ordered_only_while_that_is_asked_for(tmp_path):
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.02), PROBLEM, out=tmp_path, deterministic=True, **SMALL)
    assert json.loads(hpcopt.load(tmp_path).attrs["chosen"])["reduction"] == "ordered"
    hpcopt.resume(tmp_path, problem=PROBLEM, overrides=("run.rounds=6", "run.deterministic=false"))
    assert json.loads(hpcopt.load(tmp_path).attrs["chosen"])["reduction"] == "mpi"


def test_what_another_job_ends_meanwhile_is_left_alone(tmp_path, monkeypatch, capsys):
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.02), PROBLEM, out=tmp_path, **SMALL)
    own = RunDirectory.own

    def late(directory):
        monkeypatch.setattr(RunDirectory, "own", own)
        hpcopt.resume(tmp_path, problem=PROBLEM, overrides=("run.rounds=8",))
        own(directory)

    monkeypatch.setattr(RunDirectory, "own", late)
    hpcopt.resume(tmp_path, problem=PROBLEM, overrides=("run.rounds=8",))
    assert len(json.loads(hpcopt.load(tmp_path).attrs["jobs"])) == 2
    assert "already finished at round 8" in capsys.readouterr().err


class Distances(hpcopt.Objective):
    """Whose workers may be computed together."""

    def initial(self, seed):
        return np.zeros(3)

    def data(self, worker, seed):
        return (np.full((4, 3), float(worker)),)

    def loss(self, x, c):
        return (x - c).square().mean()


def test_what_was_measured_holds_where_it_was_measured(tmp_path, monkeypatch):
    """On other hardware it is measured again, and back where it was, not. Old files do not say where."""
    asked = []

    def fastest(comm, ways, remembered):
        asked.append(remembered)
        return remembered or "one by one"

    monkeypatch.setattr(mpi_ports, "fastest", fastest)
    hpcopt.run(hpcopt.Local(lr=0.02, local_steps=1), Distances(workers=8), out=tmp_path, **SMALL)
    usual = mpi_ports.place_of
    for rounds, place in (("6", lambda *_: "a GPU"), ("8", usual), ("10", lambda *_: "a GPU")):
        monkeypatch.setattr(mpi_ports, "place_of", place)
        hpcopt.resume(tmp_path, problem=Distances(workers=8), overrides=(f"run.rounds={rounds}",))
    assert asked == [*[""] * 6, *["one by one"] * 6]  # of three kinds of work
    of_old = Chosen("here", {"own_steps": "stacked", "sparse": {"4": {"parts": 4}}})
    assert (of_old.get("own_steps"), of_old.get("sparse"), of_old.first("sparse")) == (
        "stacked",
        None,
        {"parts": 4},
    )
    assert of_old.here == {"own_steps": "stacked"}


def test_what_changed_when_is_kept(tmp_path):
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.02), PROBLEM, out=tmp_path, **SMALL)
    hpcopt.resume(tmp_path, problem=PROBLEM, overrides=("run.rounds=6", "method.lr=0.01"))
    hpcopt.resume(tmp_path, problem=PROBLEM, overrides=("run.rounds=8",))
    jobs = json.loads(hpcopt.load(tmp_path).attrs["jobs"])
    assert [(job["round"], job["changed"]) for job in jobs] == [
        (0, {}),
        (4, {"run.rounds": [4, 6], "method.lr": [0.02, 0.01]}),
        (6, {"run.rounds": [6, 8]}),
    ]
    text = (tmp_path / "config.toml").read_text()
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# from round 4 on run.rounds = 6, until then 4",
        "# from round 4 on method.lr = 0.01, until then 0.02",
        "# from round 6 on run.rounds = 8, until then 6",
    ]
    assert tomllib.loads(text) == json.loads(hpcopt.load(tmp_path).attrs["config"])


def checkpoints(out):
    return sorted(path.name for path in (out / "checkpoints").iterdir())


def burst(at):
    return staticmethod(lambda state: state.x.fill_(torch.nan) if state.round == at else None)


@pytest.mark.parametrize("last", [36, 1000])
def test_a_state_that_is_not_finite_replaces_no_good_one(tmp_path, monkeypatch, last):
    """The loss is looked at at the end only, but checkpoints are made before."""
    keys = {"rounds": last, "evaluate_every": 1000, "checkpoint_every": 10, "keep_checkpoints": 1}
    monkeypatch.setattr(Staged, "happens", burst(35))
    with pytest.raises(hpcopt.NotFinite, match=r"nan at round (36|40).*checkpoints are of earlier rounds"):
        hpcopt.run(Staged(lr=0.02), PROBLEM, out=tmp_path, **keys)
    assert checkpoints(tmp_path) == ["round-00000030.h5"]
    hpcopt.export(tmp_path, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as found:
        assert np.isfinite(found["x"]).all()
    # it is not finished, even where that was its last round, and goes on from where it was right
    with pytest.raises(hpcopt.NotFinite):
        hpcopt.resume(tmp_path, problem=PROBLEM)
    monkeypatch.setattr(Staged, "happens", burst(-1))
    hpcopt.resume(tmp_path, problem=PROBLEM, overrides=("run.rounds=50",))
    assert np.isfinite(hpcopt.load(tmp_path)["metrics/loss"]).all()


def test_a_moment_that_is_not_finite_is_found_before_it_is_kept(tmp_path, monkeypatch):
    keys = {"rounds": 20, "evaluate_every": 10, "checkpoint_every": 10}
    happens = staticmethod(lambda state: state.m.fill_(torch.inf) if state.round == 10 else None)
    monkeypatch.setattr(Staged, "happens", happens)
    with pytest.raises(hpcopt.NotFinite):
        hpcopt.run(Staged(lr=0.02, momentum=0.5), PROBLEM, out=tmp_path, **keys)
    assert checkpoints(tmp_path) == ["round-00000010.h5"]


@dataclass(kw_only=True)
class BestState(hpcopt.State):
    """Something is infinite from the start."""

    x: torch.Tensor = hpcopt.replicated()
    best: torch.Tensor = hpcopt.replicated()


class Best(hpcopt.Method[hpcopt.Table, BestState]):
    """Keeps the best value so far, of which there is none."""

    def start(self, problem, ports):
        x = problem.initial()
        return BestState(x=x, best=torch.full_like(x[:1], torch.inf))

    def step(self, state):
        return hpcopt.StepInfo()


def test_what_is_infinite_from_the_start_may_be(tmp_path):
    hpcopt.run(Best(), PROBLEM, out=tmp_path, **SMALL)
    assert checkpoints(tmp_path)[-1] == "round-00000004.h5"
    hpcopt.resume(tmp_path, problem=PROBLEM, overrides=("run.rounds=6",))


# --- a resume is of the same run -----------------------------------------------------------------


def model(seed=0, frozen=1.0):
    torch.manual_seed(seed)
    made = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    made[0].requires_grad_(False)
    with torch.no_grad():
        made[0].weight.copy_(frozen * torch.arange(12.0).reshape(4, 3).cos())
        made[0].bias.zero_()
    return made


X, Y = np.random.default_rng(0).standard_normal((40, 3)), np.arange(40) % 2
CE = torch.nn.functional.cross_entropy


def network(x=X, y=Y, loss=CE, seed=0, frozen=1.0, **keys):
    return hpcopt.Network(model(seed, frozen), loss, (x, y), workers=2, batch_size=5, **keys)


class Ridge(hpcopt.Objective):
    """Rows of one's own."""

    dim: int = 3
    """d"""
    shift: float = 0.0
    """of the targets"""

    def data(self, worker, seed):
        rows = X[20 * worker : 20 * (worker + 1)] + TAMPERED["rows"]
        return rows, rows.sum(1) + self.shift

    def loss(self, x, A, b):
        return (A @ x - b).square().mean() + TAMPERED["penalty"] * x.square().sum()


TAMPERED = {"rows": 0.0, "penalty": 0.1}


def tampered(**keys):
    def make():
        TAMPERED.update(keys)
        return Ridge(2)

    return make


def linear(x=X, y=Y, **keys):
    return hpcopt.Logistic((x, y), workers=2, **keys)


OTHERS = {
    "other rows": (network, lambda: network(x=X + 0.1), "the data set"),
    "other labels": (network, lambda: network(y=1 - Y), "the data set"),
    "other spread": (
        network,
        lambda: network(partition="classes", classes_per_worker=1),
        "which rows each worker has",
    ),
    "other frozen parameters": (network, lambda: network(frozen=1.1), "0.weight, which is not trained"),
    "other loss": (network, lambda: network(loss=lambda o, y: 2 * CE(o, y)), "loss and output of some rows"),
    "other key": (network, lambda: network(regularisation=0.1), r"\[problem\] regularisation"),
    "other data of an objective": (None, tampered(rows=0.1), "the rows of worker 0"),
    "other loss of an objective": (None, tampered(penalty=0.2), "loss and gradient of worker 0"),
    "other key of an objective": (None, lambda: Ridge(2, shift=1.0), r"\[problem\] shift"),
    "other rows of a linear model": (linear, lambda: linear(x=X + 0.1), "the data set"),
    "other spread of a linear model": (
        linear,
        lambda: linear(rows=[range(20), range(20, 40)]),
        "which rows each worker has",
    ),
    "other regularisation": (linear, lambda: linear(regularisation=0.1), r"\[problem\] regularisation"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_another_problem_with_the_same_shapes_is_refused(tmp_path, monkeypatch, case):
    monkeypatch.setattr(f"{__name__}.TAMPERED", {"rows": 0.0, "penalty": 0.1})
    begun, other, words = OTHERS[case]
    begun = (lambda: Ridge(2)) if begun is None else begun
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.02), begun(), out=tmp_path, **SMALL)
    with pytest.raises(hpcopt.UserError, match=f"(?s){words}.*the run was begun with.*start another run"):
        hpcopt.resume(tmp_path, problem=other(), overrides=("run.rounds=6",))


def test_another_start_and_rounding_are_not(tmp_path):
    """What is trained comes from the checkpoint; another machine may have rounded the data differently."""
    hpcopt.run(hpcopt.AllreduceSGD(lr=0.02), network(), out=tmp_path, **SMALL)
    rounded = X * (1 + 1e-15)
    assert (rounded != X).any()
    hpcopt.resume(tmp_path, problem=network(x=rounded, seed=5), overrides=("run.rounds=6",))
