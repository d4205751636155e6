"""`hpcopt doctor` in good health, and with probes that crash, hang and kill; this process starts no MPI."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from launch import at_once

from hpcopt.control.launcher import without_launcher
from hpcopt.doctor.finding import fails, note, ok, worst
from hpcopt.doctor.machine import file_system

MPIRUN = ("mpirun", "-n", "2")
HPCOPT = (sys.executable, "-m", "mpi4py", "-c", "from hpcopt.cli import main; main()")

# probes to examine with; the hang is inside HDF5, where no Python thread of rank 0 runs any more
SICK = """
import os, sys, time
import numpy as np
from hpcopt.doctor import examine
from hpcopt.doctor.finding import Probe, Where, ok
from hpcopt.doctor.together import scratch
from hpcopt.storage.checkpoint import Piece, allocate, write_pieces

def crash(comm):
    if comm.rank == 1:
        raise RuntimeError("planted")
    return ok("came back")

def hang(comm):
    with scratch(comm) as folder:
        if comm.rank == 1:
            time.sleep(3600)
        pieces = [Piece("x", (4,), 0, np.zeros(4))]
        allocate(folder / "x.h5", pieces)
        write_pieces(comm, folder / "x.h5", pieces)

def kill(comm):
    with scratch(comm):
        if comm.rank == 1:
            os.kill(os.getpid(), 9)
        comm.Barrier()

bad = {"hang": hang, "kill": kill}[sys.argv[1]]
examine([
    Probe("raises", crash, "call a nurse", Where.TOGETHER),
    Probe("local", lambda: ok("as ever"), ""),
    Probe(sys.argv[1], bad, "call a doctor", Where.TOGETHER, seconds=float(sys.argv[2])),
    Probe("after", lambda: ok(""), ""),
])
"""


def _lines(directory: Path, *command: str, seconds: float = 150) -> tuple[int, dict[str, str], str]:
    """Exit code, the table's lines by the name of the check, and stderr."""
    settings = {key: value for key, value in os.environ.items() if "_MCA_" in key or "ALLOW_RUN" in key}
    environment = without_launcher() | settings | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )
    cells = [[cell.strip() for cell in line.split("│")] for line in done.stdout.splitlines()]
    table = {row[1]: " | ".join(row[2:4]) for row in cells if len(row) > 3}
    assert list(directory.iterdir()) == []  # whatever happened
    return done.returncode, table, done.stderr


def test_alone_it_starts_two_ranks_by_itself(tmp_path: Path) -> None:
    code, table, complaints = _lines(tmp_path, *HPCOPT, "doctor")
    assert code == 0, (table, complaints)
    assert table["launcher"].startswith("note none (one rank)")
    assert (
        "parallel HDF5, sparse sums, neighbours, mailbox, ranks without workers work"
        in table["2 ranks by mpirun"]
    )
    expected = {"MPI", "software", "message passing", "GPU", "Slurm", "disk here", "cores and memory", "data"}
    assert expected <= set(table)


def test_two_ranks(tmp_path: Path) -> None:
    code, table, complaints = _lines(tmp_path, *MPIRUN, *HPCOPT, "doctor")
    assert code == 0, (table, complaints)
    assert table["launcher"].startswith("note mpirun: 2 ranks on 1 host")
    assert "kill -USR1 to mpirun" in table["launcher"]  # Ctrl-C leaves the ranks no time
    assert table["message passing"].startswith("ok allreduce of 1 MiB over 2 ranks: right")
    assert "by 2 ranks into one file: right" in table["parallel HDF5"]
    assert "one rank empty" in table["parallel HDF5"]
    assert "2 ranks by mpirun" not in table


def test_a_probe_that_does_not_come_back_ends_the_job_with_the_table(tmp_path: Path) -> None:
    at_once(partial(_sick, tmp_path / how, how) for how in ("hang", "kill"))


def _sick(folder: Path, how: str) -> None:
    folder.mkdir()
    patience = "2" if how == "hang" else "60"
    code, table, complaints = _lines(folder, *MPIRUN, sys.executable, "-c", SICK, how, patience)
    # an exception on one rank is a line, and the ranks stay together
    assert (
        table["raises"]
        == "FAILS RuntimeError: planted (rank 1 on " + os.uname().nodename + ") | call a nurse"
    )
    assert table["local"].startswith("ok as ever")
    assert table["after"].startswith("note not tried")
    assert "Traceback" not in complaints
    if how == "hang":
        assert code == 1
        assert table["hang"] == "HANGS no answer within 2 s; the job was ended | call a doctor"
        assert f"rank 1 on {os.uname().nodename} is stuck in: hang" in complaints
    else:
        assert code != 0
        assert table["kill"].startswith("FAILS a rank crashed or was ended from outside")


def test_the_worst_finding_counts_and_names_its_rank() -> None:
    hosts = ["a", "a", "b", "b"]
    assert worst([ok("x"), ok("y"), None, None], hosts) == ok("x")
    bad = fails("no disk", "find one")
    assert worst([ok("x"), None, bad, bad], hosts).result == "no disk (rank 2 on b and 1 more)"
    assert worst([note("x"), None, None, None], hosts) == note("x")


def test_the_file_system_of_a_path(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "/dev/a / ext4 rw 0 0\nserver:/x /home nfs4 rw 0 0\nnone /home/my\\040data lustre rw 0 0\n"
        "first /twice ext4 rw 0 0\nsecond /twice tmpfs rw 0 0\n"
    )
    wanted = {
        "/": "ext4",
        "/home/me": "nfs4",
        "/home/my data/run": "lustre",
        "/homework": "ext4",
        "/twice": "tmpfs",
    }
    assert {path: file_system(Path(path), mounts) for path in wanted} == wanted
