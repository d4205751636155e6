"""The ranks of tools/compare: every case in one launch, in the current directory.

    mpirun -n P python tools/checks/compare_runs.py PATTERN

The hpcopt that is imported is that of the tree on PYTHONPATH. Only its command line is used, and its config
format, because everything else may move.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import tomli_w
from compare_cases import DTYPES, INTERRUPTED_AT, ROUNDS, Case, chosen
from mpi4py import MPI

import hpcopt
from hpcopt.cli import app


def hpcopt_command(*words: str) -> None:
    """What `hpcopt` does with these words. Collective."""
    app([*words], standalone_mode=False)


def run(comm: MPI.Comm, case: Case, dtype: str, out: Path) -> None:
    """One run that its number of rounds interrupts, resumed; on one rank also a whole one. Collective."""
    jobs = {"resumed": INTERRUPTED_AT} | ({"whole": ROUNDS} if comm.size == 1 else {})
    for name, rounds in jobs.items():
        config = out / f"{name}.toml"
        if comm.rank == 0:
            config.write_text(tomli_w.dumps(case.tables(dtype, rounds, str(out / name))))
        comm.Barrier()
        hpcopt_command("run", str(config))
    hpcopt_command("resume", str(out / "resumed"), "--set", f"run.rounds={ROUNDS}")


def main() -> None:
    """Runs all cases; an error that all ranks have is written down, any other ends the launch. Collective."""
    comm, tree = MPI.COMM_WORLD, os.environ["PYTHONPATH"].split(":")[0]
    if not Path(hpcopt.__file__).resolve().is_relative_to(Path(tree).resolve()):
        sys.exit(f"compare: this is the hpcopt of {hpcopt.__file__}, not that of {tree}")
    for name, case in chosen(sys.argv[1]).items():
        for dtype in DTYPES if comm.size <= case.ranks else ():
            out = Path(name) / dtype
            if comm.rank == 0:
                out.mkdir(parents=True)
            try:
                run(comm, case, dtype, out)
            except Exception as error:
                error.add_note(f"in the case {name}, {dtype}")
                if comm.size > 1 and not hasattr(error, "exit_code"):
                    raise  # unlike hpcopt's own, it may have come on one rank alone
                if comm.rank == 0:
                    (out / "error").write_text("".join(traceback.format_exception_only(error)))


if __name__ == "__main__":
    main()
