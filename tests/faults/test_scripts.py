"""`mpirun python script.py`: one job on all ranks, and how it ends."""

import signal
import time
from pathlib import Path

from launch import Outcome, Started, launch

HERE = Path(__file__).parent


def script(out: Path, what: str, ranks: int = 2, **env: str) -> Outcome:
    """Runs it."""
    return launch(["python", HERE / "script.py", out, what], ranks, cwd=HERE, env=env)


def test_all_ranks_are_one_job_but_one_that_is_in_no_communicator(tmp_path: Path) -> None:
    outcome = script(tmp_path / "out", "nothing")
    assert outcome.code == 0, outcome
    assert outcome.out.count("ranks 2 ") == 2, outcome
    assert "comm = MPI.COMM_NULL: this process is none of that communicator's" in outcome.out
    assert not (tmp_path / "out-null").exists()


def test_processes_that_mpi_does_not_bring_together(tmp_path: Path) -> None:
    """As under `srun --mpi=none -n 2`: each would do the whole job."""
    slurm = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}
    for command in (["python", HERE / "script.py", tmp_path / "out", "nothing"], ["hpcopt", "resume", "out"]):
        outcome = launch(command, cwd=HERE, env=slurm)
        assert outcome.code == 2, outcome
        assert outcome.err.count("the launcher has started 2 processes, but MPI has 1 rank in all") == 1
    assert not (tmp_path / "out").exists()


def test_a_bug_on_one_rank_ends_the_script(tmp_path: Path) -> None:
    outcome = script(tmp_path / "out", "raise")
    assert outcome.code not in (None, 0), outcome
    assert outcome.err.count("ArithmeticError: worker 1 does not like round 5") == 1, outcome


def test_an_error_of_one_rank_ends_the_script(tmp_path: Path) -> None:
    outcome = script(tmp_path / "out", "lost")
    assert outcome.code == 2, outcome
    assert outcome.err.count("failed:\nnowhere: ") == 1, outcome
    assert "Traceback" not in outcome.err


def test_a_signal_becomes_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    """The script's own run.stop_signal, given to mpirun."""
    out, until = tmp_path / "out", time.monotonic() + 60
    with Started(["python", HERE / "script.py", out, "pause"], 2, cwd=HERE) as job:
        while not (out / "log.jsonl").exists() or '"round": 10' not in (out / "log.jsonl").read_text():
            assert time.monotonic() < until
            time.sleep(0.05)
        job.process.send_signal(signal.SIGUSR2)
        outcome = job.wait(60)
    assert outcome.code == 75, outcome
    assert outcome.err.count(f"Go on with: hpcopt.resume('{out}', problem=…)") == 1, outcome
    assert "Traceback" not in outcome.err
    assert list((out / "checkpoints").glob("round-*.h5"))
