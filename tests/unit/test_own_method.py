"""A method of the user's own: its settings, where it may be defined; and what is built in."""

import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from mpi4py import MPI

import hpcopt
from hpcopt.api import start
from hpcopt.config import from_tables, load, template
from hpcopt.config.methods import METHODS, UncheckedTable, method_table
from hpcopt.errors import UserError

SOURCE = """
from dataclasses import dataclass
from torch import Tensor
import hpcopt

class Settings(hpcopt.Table):
    lr: float = 0.1
    \"\"\"how far\"\"\"

@dataclass(kw_only=True)
class State(hpcopt.State):
    x: Tensor = hpcopt.replicated()

class Descent(hpcopt.Method[Settings, State]):
    def start(self, problem, ports):
        self.problem, self.reduce = problem, ports.reduce
        return State(x=problem.initial())

    def step(self, state):
        g = self.reduce.gradient(self.problem, state.x, hpcopt.Draw(state.round))
        state.x.sub_(g, alpha=self.settings.lr)
        return hpcopt.StepInfo()

class NoMethod:
    pass
"""
MAIN = """
import sys
out = sys.argv[1]
problem = hpcopt.Quadratic(2, "power", 5)
hpcopt.run(Descent(lr=0.2), problem, out=out, rounds=3)
hpcopt.resume(out, problem=problem, overrides=("run.rounds=6",))
hpcopt.run(Descent(lr=0.2), problem, out=out + "-again", rounds=6)  # `run` is still the function
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """The module own_NAME, found in the current directory."""
    name = f"own_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def tables(method, keys=None, **run):
    problem = {"kind": "quadratic", "eigenvalues": "power", "dim": 5}
    return {"run": {"method": method, "workers": 2} | run, "method": keys or {}, "problem": problem}


def test_it_runs_and_goes_on_as_built_in_ones_do(module, tmp_path):
    config = from_tables(tables(f"{module}:Descent", {"lr": 0.2}, rounds=4, out="mine"), "c.toml")
    start(MPI.COMM_SELF, config)
    hpcopt.resume("mine", overrides=("run.rounds=9",))
    builtin = hpcopt.run(
        hpcopt.AllreduceSGD(lr=0.2), hpcopt.Quadratic(2, "power", 5), out="built_in", rounds=9
    )
    losses = [hpcopt.load(run)["metrics/loss"].values for run in ("mine", builtin)]
    assert losses[0][-1] == losses[1][-1]
    assert np.array_equal(losses[0][[0, -1]], losses[1][[0, -1]])


@pytest.mark.parametrize(
    ("method", "keys", "message"),
    [
        ("{}:Descent", {"lrr": 1.0}, r"c\.toml: \[method\] lrr: unknown key; did you mean 'lr'"),
        ("{}:Descend", {}, r"has no Class Descend; did you mean 'Descent'"),
        ("{}:NoMethod", {}, r"NoMethod\": is no hpcopt\.Method"),
        ("no_such_module:Descent", {}, "no module no_such_module"),
        ("topk2", {}, r"did you mean 'topk'.*package\.module:Class"),
    ],
)
def test_what_is_wrong_is_named(module, method, keys, message):
    with pytest.raises(UserError, match=message):
        from_tables(tables(method.format(module), keys), "c.toml")


def test_where_its_module_cannot_be_imported_it_is_checked_in_the_job(module, tmp_path):
    """As on a login node without torch."""
    text = (tmp_path / f"{module}.py").read_text()
    (tmp_path / f"{module}_late.py").write_text(f"import not_on_this_node\n{text}")
    config = from_tables(tables(f"{module}_late:Descent", {"anything": 1}), "c.toml")
    assert config.tables()["method"] == {"anything": 1}
    assert isinstance(config.method, UncheckedTable)
    (tmp_path / "not_on_this_node.py").write_text("")  # but on this one
    with pytest.raises(UserError, match="anything: unknown key"):
        start(MPI.COMM_SELF, config)


def test_init_prints_its_keys(module, tmp_path):
    text = template(f"{module}:Descent", "quadratic")
    assert "# how far\nlr = 0.1" in text
    (tmp_path / "own.toml").write_text(text)
    assert load(tmp_path / "own.toml").run.method == f"{module}:Descent"


def test_a_class_of_a_script_goes_on_in_that_script_only(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SOURCE + MAIN)
    command = [sys.executable, script, tmp_path / "run"]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    found = [hpcopt.load(f"{tmp_path}/run{name}")["metrics/loss"].values[-1] for name in ("", "-again")]
    assert found[0] == found[1]
    with pytest.raises(UserError, match="was defined in a script or a function; go on from Python"):
        hpcopt.resume(tmp_path / "run", problem=hpcopt.Quadratic(2, "power", 5))


def test_a_built_in_method_is_one_line_in_the_registry():
    for name, kind in METHODS.items():
        method = getattr(hpcopt, kind)
        assert method.__module__ == f"hpcopt.methods.{name}"
        assert method.table is method_table(name)
        assert method.__mro__[1] is hpcopt.Method


def own(**parts):
    """A method of the test's own that stands still, but for what is given."""

    @dataclass(kw_only=True)
    class State(hpcopt.State):
        x: torch.Tensor = hpcopt.replicated()

    class Still(hpcopt.Method[Settings, State]):
        def start(self, problem, ports):
            self.problem, self.reduce = problem, ports.reduce
            return parts["start"] if "start" in parts else State(x=parts.get("x", problem.initial()))

        def step(self, state):
            return parts["step"](self, state) if "step" in parts else None

        def metrics(self, state):
            return parts.get("metrics", {})

    return Still()


@dataclass(kw_only=True)
class Undeclared(hpcopt.State):
    """Checkpoints would not hold m."""

    x: torch.Tensor = hpcopt.replicated()
    m: torch.Tensor


class Settings(hpcopt.Table):
    """A tuple, which TOML writes as a list."""

    steps: tuple[int, ...] = (10, 20)
    """numbers"""


@pytest.mark.parametrize(
    ("parts", "kind", "message"),
    [
        ({"metrics": {"loss": 1.0}}, UserError, 'method\'s metrics: a metric "loss" is recorded already'),
        ({"metrics": {"bytes_sent": 1.0}}, UserError, '"bytes_sent" is recorded already'),
        ({"metrics": {"a": torch.zeros(3)}}, UserError, "are no numbers"),
        ({"x": torch.tensor(1.0)}, UserError, r"State\.x: is tensor\(1\.\)"),
        ({"start": None}, UserError, r"Still\.start: gave None; it gives the state"),
        (
            {"start": Undeclared(x=torch.zeros(5), m=torch.zeros(5))},
            UserError,
            r"Undeclared\.m: how is it spread\? .* declared by hpcopt\.replicated",
        ),
        ({"step": lambda *_: 1 / 0}, ZeroDivisionError, "division"),
    ],
)
def test_what_a_method_does_wrong_is_told(parts, kind, message):
    with pytest.raises(kind, match=message):
        hpcopt.simulate(own(**parts), hpcopt.Quadratic(2, "power", 5), 2)


def test_both_twins_give_new_memory_where_they_promise_it(tmp_path):
    def step(method, state):
        part = method.reduce.contribution(method.problem.dim)
        a = part.add_gradients(method.problem, state.x).scatter()
        b = part.add_gradients(method.problem, 2 * state.x).scatter()
        state.x -= 0.1 * method.reduce.allgather(2 * a - b / 4, method.problem.dim)

    problem = hpcopt.Quadratic(2, "power", 5)
    simulated = hpcopt.simulate(own(step=step), problem, 5)["metrics/loss"].values
    method = own(step=step)
    run = hpcopt.load(hpcopt.run(method, problem, out=tmp_path / "run", rounds=5))
    assert np.array_equal(run["metrics/loss"], simulated)
    assert simulated[-1] < simulated[0]
    resumed = hpcopt.resume(tmp_path / "run", problem=problem, method=method, overrides=("run.rounds=6",))
    assert hpcopt.load(resumed)["metrics/round"].values[-1] == 6  # with a tuple in its config


def test_a_subclass_may_have_a_table_of_its_own():
    class Wider(hpcopt.AllreduceSGD):
        table = Settings

    assert Wider(steps=(1,)).settings.steps == (1,)
    with pytest.raises(UserError, match="AllreduceSGD: momentun: unknown key; did you mean 'momentum'"):
        hpcopt.AllreduceSGD(momentun=0.1)


@pytest.mark.parametrize("given", [0.1, Settings()])
def test_settings_are_given_by_name_or_all_at_once(given):
    with pytest.raises(TypeError, match="AllreduceSGD: takes keys by name, or one AllreduceSGDTable that"):
        hpcopt.AllreduceSGD(given)
    table = hpcopt.AllreduceSGD.table(lr=0.5)
    assert hpcopt.AllreduceSGD(table).settings is table
    with pytest.raises(TypeError, match="that has them all"):
        hpcopt.AllreduceSGD(table, lr=0.1)
