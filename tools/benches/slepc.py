"""Eigenpairs by SLEPc, in a process of a Python that has it (Debian's): `tools/bench lanczos`.

    slepc.py D PAIRS BASIS TOLERANCE      residuals of at most TOLERANCE; vectors are float64

What goes through stdin and stdout begins with a vector, where to start. Then stdout has "v" and a vector
for each product that stdin has to answer with, and at the end "e", an eigenvalue and its vector for each.
"""

import os
import sys

import numpy as np
import slepc4py

asked = os.fdopen(os.dup(1), "wb")  # whatever these libraries print is no product
os.dup2(2, 1)
slepc4py.init([])

from petsc4py import PETSc  # noqa: E402
from slepc4py import SLEPc  # noqa: E402

d, pairs, basis = map(int, sys.argv[1:4])


def read() -> PETSc.Vec:
    """The next vector."""
    return PETSc.Vec().createWithArray(np.frombuffer(sys.stdin.buffer.read(8 * d)).copy())


class Products:
    """The matrix, at the other end."""

    def mult(self, matrix: PETSc.Mat, v: PETSc.Vec, out: PETSc.Vec) -> None:
        """Out <- H v."""
        asked.write(b"v" + v.getArray(readonly=True).tobytes())
        asked.flush()
        read().copy(out)


H = PETSc.Mat().createPython([d, d], Products())
H.setUp()
solver = SLEPc.EPS().create()
solver.setOperators(H)
solver.setProblemType(SLEPc.EPS.ProblemType.HEP)
solver.setWhichEigenpairs(SLEPc.EPS.Which.LARGEST_REAL)
solver.setDimensions(pairs, basis)
solver.setConvergenceTest(SLEPc.EPS.Conv.ABS)
solver.setTolerances(float(sys.argv[4]), 10_000)
solver.setInitialSpace([read()])
solver.solve()
v = H.createVecRight()
for pair in range(min(pairs, solver.getConverged())):
    value = solver.getEigenpair(pair, v).real
    asked.write(b"e" + np.float64(value).tobytes() + v.getArray(readonly=True).tobytes())
asked.flush()
