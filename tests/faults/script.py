"""A user's script: `python script.py OUT WHAT`, without `-m mpi4py`."""

import sys

from mpi4py import MPI
from trouble import factory

import hpcopt

out, what = sys.argv[1:]
keys = {"rounds": 20, "evaluate_every": 10}
keys |= {"rounds": 400, "stop_signal": "USR2"} if what == "pause" else {}
pause = 0.05 if what == "pause" else 0.0
path = hpcopt.run(hpcopt.AllreduceSGD(lr=0.1), factory(2, what=what, pause=pause), out=out, **keys)
if what == "lost" and MPI.COMM_WORLD.rank == 1:
    hpcopt.load("nowhere")
MPI.COMM_WORLD.Barrier()
print("ranks", hpcopt.load(out).attrs["ranks"], path)
if what == "nothing":
    # of two ranks the second is in no communicator
    comm = MPI.COMM_WORLD.Split(0 if MPI.COMM_WORLD.rank == 0 else MPI.UNDEFINED)
    if comm == MPI.COMM_NULL:
        try:
            hpcopt.run(hpcopt.AllreduceSGD(lr=0.1), factory(2), comm=comm, out=f"{out}-null", **keys)
        except hpcopt.UserError as error:
            print(error)
