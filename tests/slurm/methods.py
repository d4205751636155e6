"""Several configs one after another on the ranks that there are, as `hpcopt run` runs one of them.

    mpirun -n 4 python -m mpi4py tests/slurm/methods.py CONFIG.toml OUT [CONFIG.toml OUT ...]

Starting the ranks takes longer than these runs do.
"""

import json
import sys
from pathlib import Path

from mpi4py import MPI

from hpcopt.api import start
from hpcopt.config import load

for config, out in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
    start(MPI.COMM_WORLD, load(Path(config), [f"run.out={json.dumps(out)}"]))
