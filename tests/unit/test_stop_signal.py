"""run.stop_signal: what is caught, what Slurm is asked for, and what is refused."""

import signal
from pathlib import Path

import pytest

from hpcopt.cluster.profile import SiteProfile
from hpcopt.cluster.render import render
from hpcopt.cluster.submit import Order, Sweep, prepare
from hpcopt.config import from_tables
from hpcopt.control import launcher, signals
from hpcopt.errors import UserError

TOML = '[run]\nworkers = 8\nstop_signal = "USR2"\n[problem]\nkind = "quadratic"\n'


@pytest.fixture
def caught():
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)}
    yield
    signals.release()
    assert all(signal.getsignal(number) == handler for number, handler in before.items())


def test_another_signal_is_caught_in_place_of_usr1(caught):
    assert signals.catch()  # before the config is known
    assert not signals.catch("USR2")
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGUSR2) == signals._remember
    signal.raise_signal(signal.SIGUSR2)
    assert signals.received()


def test_a_handler_of_the_users_own_stays(caught):
    signals.catch()
    own = lambda number, frame: None  # noqa: E731
    signal.signal(signal.SIGUSR1, own)
    signals.catch("HUP")
    assert signal.getsignal(signal.SIGUSR1) is own
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


@pytest.mark.parametrize("name", ["KILL", "STOP", "SIGUSR1", 10])
def test_what_cannot_be_caught_is_refused(name):
    with pytest.raises(UserError, match=r"stop_signal = .*'USR1', 'USR2', 'TERM', 'INT', 'HUP' or 'XCPU'"):
        from_tables({"run": {"stop_signal": name}, "problem": {"kind": "quadratic"}}, "c")


def order(where: Path, **keys):
    (where / "my.toml").write_text(TOML)
    resources = {"nodes": 1, "ntasks_per_node": 2, "cpus_per_task": 1, "time": "10"}
    return Order(where / "my.toml", resources, out=where / "out", **keys)


@pytest.mark.parametrize("sweep", [None, Sweep(("run.seed=0:2",))])
def test_slurm_is_asked_for_it(tmp_path, sweep):
    request, _ = prepare(order(tmp_path, sweep=sweep))
    srun = render(request, SiteProfile())
    assert "#SBATCH --signal=USR2@120\n" in srun
    assert "\ntrap : USR2 TERM\nsrun" in srun
    mpirun = render(request, SiteProfile(launcher="mpirun"))
    assert "#SBATCH --signal=B:USR2@120\n" in mpirun
    assert "\ntrap 'kill -USR2 \"$launcher\"' USR2 TERM\nmpirun" in mpirun
    assert "USR1" not in srun + mpirun


def test_mpirun_does_not_hand_on_all_of_them(tmp_path, monkeypatch):
    request, _ = prepare(order(tmp_path, settings=("run.stop_signal=TERM",)))
    assert "\ntrap : TERM\nsrun" in render(request, SiteProfile())
    with pytest.raises(UserError, match=r'run.stop_signal = "TERM": mpirun, .* hands on USR1 and USR2 only'):
        render(request, SiteProfile(launcher="mpirun"))
    monkeypatch.setattr(launcher, "launcher_name", lambda: "mpirun")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert "kill -USR2 to mpirun makes" in launcher.ends_at_once("USR2")
    assert "kill -HUP to a rank makes" in launcher.ends_at_once("HUP")


@pytest.mark.parametrize(
    "keys", [{"array": ("run.stop_signal=USR1,USR2",)}, {"sweep": Sweep(("run.stop_signal=USR1,USR2",))}]
)
def test_one_job_stops_on_one_signal(tmp_path, keys):
    with pytest.raises(UserError, match=r"run\.stop_signal = USR1, USR2: one job stops on one signal"):
        prepare(order(tmp_path, **keys))
