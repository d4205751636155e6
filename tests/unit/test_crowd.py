"""When ranks that wait are told to give their core away."""

import os

import pytest

from hpcopt.control import crowd, launcher

OURS = {name for name, _ in crowd.YIELDING.values()}
PARENT, MPIRUN = 70, 60


@pytest.fixture
def node(monkeypatch, tmp_path):
    """A rank that is bound to a core, below a shell that is, below mpirun, which has two; nobody's words."""
    for name in (*launcher._LOCAL_SIZE, *launcher._RANK, *OURS):
        monkeypatch.delenv(name, raising=False)
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for pid, variables in ((PARENT, "A=1\0OMPI_COMM_WORLD_RANK=0\0"), (MPIRUN, "A=1\0")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "environ").write_text(variables)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a (b) sh) S {MPIRUN} 1 1")
    monkeypatch.setattr(crowd, "PROC", tmp_path)
    monkeypatch.setattr(os, "getppid", lambda: PARENT)
    bound = {0: {0}, PARENT: {0}, MPIRUN: {0, 1}}
    monkeypatch.setattr(os, "sched_getaffinity", bound.__getitem__)
    return monkeypatch.setenv


def given():
    crowd.give_way()
    return {name: os.environ[name] for name in OURS & os.environ.keys()}


def test_only_where_ranks_are_more_than_cores_and_never_against_the_user(node):
    assert given() == {}
    node("OMPI_COMM_WORLD_LOCAL_SIZE", "2")
    assert given() == {}
    node("OMPI_COMM_WORLD_LOCAL_SIZE", "3")
    node("MPIR_CVAR_POLLS_BEFORE_YIELD", "0")
    want = {
        "OMPI_MCA_mpi_yield_when_idle": "1",
        "I_MPI_THREAD_YIELD": "2",
        "MPIR_CVAR_POLLS_BEFORE_YIELD": "0",
    }
    assert given() == want
    assert crowd.gives_way("Open MPI v5.0.7")
    assert not crowd.gives_way("MPICH Version: 4.2")


@pytest.mark.parametrize(
    ("tasks", "number", "size"), [("2(x3),1", 2, 2), ("2(x3),1", 3, 1), ("8", 0, 8), ("?", 0, 1), ("2", 5, 1)]
)
def test_tasks_of_a_slurm_step(node, tasks, number, size):
    node("SLURM_STEP_TASKS_PER_NODE", tasks)
    node("SLURM_NODEID", str(number))
    assert launcher.local_size() == size


def test_cores_that_slurm_gave_to_the_job(node):
    node("SLURM_CPUS_ON_NODE", "1")
    assert crowd.cores() == 1
