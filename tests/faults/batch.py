"""Runs many command lines one after the other in one job, for starting a job costs seconds.

    batch.py CASES.json [alone]      alone: one process, which does not import MPI

Each goes through hpcopt's real entry point on every rank; a line of JSON on stdout tells every rank's exit
code and what it printed on stderr. What is no exit (a bug) ends the job as it would end the user's.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from hpcopt import cli

if sys.argv[2:] == ["alone"]:

    def gather(end: tuple[object, str]) -> list[tuple[object, str]] | None:
        """This process's, as rank 0 has them."""
        return [end]
else:
    from mpi4py import MPI

    gather = MPI.COMM_WORLD.gather


def run(command: list[str]) -> tuple[object, str]:
    """One command line on this rank: its exit code and its stderr."""
    sys.argv = ["hpcopt", *command]
    kept = os.dup(2)
    with tempfile.TemporaryFile() as err:
        os.dup2(err.fileno(), 2)
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            text = os.pread(err.fileno(), 1 << 20, 0).decode()
            if isinstance(sys.exc_info()[1], Exception):
                os.write(2, text.encode())
    return code, text


for number, command in enumerate(json.loads(Path(sys.argv[1]).read_text())):
    ends = gather(run(command))
    if ends is not None:
        codes, texts = zip(*ends, strict=True)
        os.write(1, (json.dumps({"case": number, "codes": codes, "texts": texts}) + "\n").encode())
