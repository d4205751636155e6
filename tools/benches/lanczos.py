"""`tools/bench lanczos`: products with a Hessian against SciPy's eigsh; a refresh between rate-limited hosts.

On one rank (no argument): the 16 largest eigenvalues to residuals of 1e-4 of the largest |λ|, without the
sweeps for copies, with as many basis vectors as eigsh. ARPACK's tolerance is relative to each eigenvalue: it
is set so that the last of them is asked for the same residual. Where they are installed, PRIMME (PyPI's
primme) and SLEPc (Debian's python3-slepc4py; another Python that has it: SLEPC_PYTHON), too. SLEPc's seconds
have the start of its process in them, for it lives with an MPI of its own.

On hosts (an argument, the rate of their links): the seconds that a refresh of 24 products spends in the port,
against what DHO2's release sends in one: a broadcast and two allreduces of d numbers per product.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.staging import Staging
from hpcopt.config.problems import NetworkTable
from hpcopt.ground.placement import Placement
from hpcopt.math.lanczos import lanczos, random_start
from hpcopt.problems.base import Draw, Share
from tools.benches.common import Given, hosts, in_turn, ratios, spread

PAIRS, TOLERANCE, ROWS = 16, 1e-4, 256
DIM, PRODUCTS, REPEATS = 1_000_000, 24, 5

Vector = NDArray[Any]


class Operator:
    """A symmetric matrix, whose products are counted.

    Args:
        times: v -> H v.
        like: a vector (d,).
    """

    def __init__(self, times: Callable[[Tensor], Tensor], like: Tensor) -> None:
        self._times, self.like, self.products, self.sums = times, like, 0, 0

    def __call__(self, v: Tensor) -> Tensor:
        """H v."""
        self.products += 1
        return self._times(v)

    def numpy(self, v: Vector) -> Vector:
        """H v, of a vector or a column."""
        return self(torch.from_numpy(np.ascontiguousarray(v.reshape(-1))).to(self.like)).numpy()

    def add(self, values: Tensor) -> Tensor:
        """One rank's sum."""
        self.sums += 1
        return values


def operators() -> dict[str, Operator]:
    """Hessians with decaying, outlying and evenly spread spectra, and that of a network on Fashion-MNIST."""
    d = 20_000
    i, spread_out = torch.arange(1, d + 1), torch.linspace(0, 1, d).double()
    spectra = {
        "λ_i = 1/i": 1 / i.double(),
        "10 of 100 to 1, others below 1": torch.cat([torch.logspace(0, 2, 10).double(), spread_out[10:]]),
        "normal": torch.special.ndtri((i - 0.5) / d).double(),
    }
    found = {name: Operator(s.mul, s) for name, s in spectra.items()}
    table = NetworkTable(workers=1, dataset="fashion-mnist", model="mlp", hidden=[256, 128], batch_size=ROWS)
    problem = table.recipe().bind(Share(range(1), 1, seed=0, dtype=torch.float32))
    x = problem.initial()
    product = lambda v: problem.total_hvp(x, v, Draw(0))  # noqa: E731
    product(x)  # the first one takes longer
    found[f"mlp, d = {problem.dim}, {ROWS} rows of Fashion-MNIST, float32"] = Operator(product, x)
    return found


Pairs = tuple[Vector, Vector]
Solver = Callable[[Operator, Tensor, int, float, float], Pairs]
"""operator, start, basis, the largest and the smallest of the eigenvalues wanted, to eigenvalues and V"""


def ours(operator: Operator, start: Tensor, basis: int, *_: float) -> Pairs:
    """This package's."""
    d = len(start)
    keys: dict[str, Any] = {"largest": PAIRS, "iterations": basis, "tolerance": TOLERANCE}
    found = lanczos(operator, operator.add, start[:, None], d, range(d), **keys)
    return found.values.numpy(), found.vectors.numpy()


def scipys(operator: Operator, start: Tensor, basis: int, largest: float, smallest: float) -> Pairs:
    """ARPACK."""
    H = LinearOperator((len(start),) * 2, operator.numpy, dtype=start.numpy().dtype)
    tolerance = TOLERANCE * largest / abs(smallest)
    return eigsh(H, PAIRS, which="LA", ncv=basis, v0=start.numpy(), tol=tolerance, maxiter=10_000)


def primmes(operator: Operator, start: Tensor, basis: int, *_: float) -> Pairs:
    """PRIMME; a tolerance relative to the matrix's norm, as ours."""
    import primme

    H = LinearOperator((len(start),) * 2, operator.numpy, dtype=start.numpy().dtype)
    keys = {"ncv": basis, "v0": start.numpy()[:, None], "tol": TOLERANCE, "maxiter": 10_000}
    return primme.eigsh(H, PAIRS, which="LA", **keys)


def slepcs(operator: Operator, start: Tensor, basis: int, largest: float, _: float, python: str) -> Pairs:
    """SLEPc, through pipes; with an absolute tolerance."""
    d = len(start)
    command = [python, str(Path(__file__).with_name("slepc.py")), *map(str, (d, PAIRS, basis))]
    pairs = []
    # neither this environment's packages nor the name of its MPI job
    alien = ("PYTHON", "VIRTUAL_ENV", "OMPI_", "PMIX_", "PRTE_")
    env = {key: value for key, value in os.environ.items() if not key.startswith(alien)}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": env}
    with subprocess.Popen([*command, str(TOLERANCE * largest)], **pipes) as process:
        there, back = process.stdin, process.stdout
        assert there
        assert back
        there.write(start.double().numpy().tobytes())
        there.flush()
        while what := back.read(1):
            numbers = np.frombuffer(back.read(8 * (d + (what == b"e")))).copy()
            if what == b"e":
                pairs.append(numbers)
            else:
                there.write(operator.numpy(numbers).astype(np.float64).tobytes())
                there.flush()
    return np.array([pair[0] for pair in pairs]), np.stack([pair[1:] for pair in pairs], axis=1)


def solvers() -> dict[str, Solver]:
    """Those that are installed."""
    found: dict[str, Solver] = {"ours": ours, "eigsh": scipys}
    if importlib.util.find_spec("primme"):
        found["PRIMME"] = primmes
    python = os.environ.get("SLEPC_PYTHON", "/usr/bin/python3")
    if subprocess.run([python, "-c", "import slepc4py"], capture_output=True).returncode == 0:
        found["SLEPc"] = partial(slepcs, python=python)
    return found


def compare(name: str, operator: Operator, basis: int, solvers: dict[str, Solver]) -> None:
    """Prints a line for each: products, seconds, how far the eigenvalues are apart, residuals."""
    like = operator.like
    start = random_start(range(len(like)), 1, like.dtype, like.device)
    print(f"{name}, {basis} vectors")
    first: Vector | None = None
    largest = smallest = 0.0
    for who, solve in solvers.items():
        operator.products = operator.sums = 0
        began = time.perf_counter()
        values, V = solve(operator, start, basis, largest, smallest)
        took, products, sums = time.perf_counter() - began, operator.products, operator.sums
        if first is None:
            first = values
            largest, smallest = abs(values).max(), values.min()
        apart = abs(np.sort(values) - first).max() / largest if len(values) == PAIRS else np.nan
        print(
            f"  {who:6} {products:4} products, {took:6.2f} s, residual "
            f"{residual(operator, values, V) / largest:.1e}, eigenvalues differ by {apart:.1e}"
            + (f", {sums / products:.2f} reductions for each product" if sums else ""),
            flush=True,
        )


def residual(operator: Operator, values: Vector, V: Vector) -> float:
    """The largest ‖H v − λ v‖."""
    pairs = zip(values, V.T, strict=True)
    return float(max(np.linalg.norm(operator.numpy(v) - value * v) for value, v in pairs))


class Identity(Given):
    """Products that cost nothing."""

    def total_hvp(self, X: Tensor, V: Tensor, draw: Any = None, *, out: Tensor | None = None) -> Tensor:
        """Something like V."""
        assert out is not None
        return torch.mul(V, self._given[0], out=out)


def refresh(comm: MPI.Comm, rate: str) -> None:
    """Prints the seconds of a refresh in the port, and of DHO2's pattern."""
    problem = Identity(comm, DIM)
    placement = Placement.even(comm.size, comm.size, comm.rank)
    x = problem.initial()
    ports = MPIPorts(comm, placement, Staging(x.device), x, "auto", False, {})
    reduce, own = ports.reduce, ports.reduce.own(DIM)
    part, start = reduce.contribution(DIM), random_start(own, 0, x.dtype, x.device)[:, None]
    vector = np.ones(DIM, np.float32)
    spent: list[float] = []

    def product(v: Tensor) -> Tensor:
        return part.add_hvps(problem, x, reduce.allgather(v, DIM)).scatter()

    def ours() -> None:
        before = sum(counter.seconds for counter in reduce.counters.values())
        lanczos(product, reduce.slices, start, DIM, own, largest=10, iterations=PRODUCTS)
        mine = sum(counter.seconds for counter in reduce.counters.values()) - before
        spent.append(comm.allreduce(mine, MPI.MAX))

    def theirs() -> None:
        for _ in range(PRODUCTS):
            comm.Bcast(vector)
            comm.Allreduce(MPI.IN_PLACE, vector)
            comm.Allreduce(MPI.IN_PLACE, vector)
            vector[:] = 1

    times = in_turn(comm, {"ours": ours, "theirs": theirs}, REPEATS)
    count, port = hosts(comm), spent[-REPEATS:]
    if comm.rank == 0:
        print(f"{count} hosts, {comm.size} ranks, {rate}, d = {DIM}, {PRODUCTS} products, {ports.chosen}")
        print(f"  ours, in the port             {spread(port)} s; all of it {spread(times['ours'])} s")
        print(f"  a broadcast, two allreduces   {spread(times['theirs'])} s")
        print(f"  theirs / ours                 {ratios(times['theirs'], port)}", flush=True)
    ports.free()


def main() -> None:
    """One of the two."""
    torch.set_num_threads(1)
    if sys.argv[1:]:
        refresh(MPI.COMM_WORLD, sys.argv[1])
        return
    installed = solvers()
    for name, operator in operators().items():
        for basis in (2 * PAIRS + 1, 3 * PAIRS):
            compare(name, operator, basis, installed)


if __name__ == "__main__":
    main()
