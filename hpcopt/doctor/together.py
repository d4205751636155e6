"""Probes of what the ranks do together."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.control.crowd import gives_way
from hpcopt.control.launcher import ends_at_once, expected_size, launcher_name, threads
from hpcopt.doctor.finding import Finding, Probe, Where, fails, note, ok, warning
from hpcopt.errors import UserError
from hpcopt.ground.words import counted

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpcopt.math.mixing import Mixing

_OTHER_MPI = (
    "mpirun or srun and mpi4py belong to different MPIs: put the matching mpirun first on PATH "
    "(source jobs/env.sh), or try srun --mpi=pmix"
)
_NETWORK = (
    "the ranks cannot reach each other: name the network (OMPI_MCA_btl_tcp_if_include=eth0, "
    "UCX_NET_DEVICES=…), and check the firewall between the nodes"
)
_NO_PARALLEL_HDF5 = (
    "install an h5py built with parallel HDF5 (tools/setup; README, «Installing»): without it runs of "
    "several ranks cannot write checkpoints"
)
_HDF5 = (
    "start in a directory on the cluster's parallel file system (Lustre, GPFS, BeeGFS); try "
    "OMPI_MCA_io=^ompio, and see that h5py and mpi4py use the same MPI"
)
_NO_GRAPHS = 'methods that average between neighbours need them: pip install "hpcopt[run]"'
_ONE_TRANSPORT = "nothing to do: methods whose workers wait for nobody use the other transport"
_CORES = "start fewer ranks per node, ask for more cores (--cpus-per-task), look at mpirun --bind-to, or set "
ALLREDUCE_BYTES = 1 << 20
GOSSIP_COLUMNS = 100_000
MAIL_LENGTH = 1000
FILE_BYTES = 16 << 20
GIB = 1 << 30


def launcher(comm: MPI.Comm, wanted: int | None = None) -> Finding:
    """Who started the ranks, and whether MPI sees as many as that (or as ``wanted``)."""
    from mpi4py import MPI

    hosts = sorted(set(comm.allgather(MPI.Get_processor_name())))
    wanted = wanted or expected_size()
    if comm.size != wanted and wanted > 1:
        return fails(f"the launcher started {wanted} ranks, but MPI sees {comm.size}", _OTHER_MPI)
    shown = ", ".join(hosts[:4]) + (", …" if len(hosts) > 4 else "")
    text = f"{launcher_name()}: {counted(comm.size, 'rank')} on {counted(len(hosts), 'host')} ({shown})"
    if comm.size > 1 and (lost := ends_at_once()):
        return note(text, lost)
    return ok(text) if comm.size > 1 else note(text)


def message_passing(comm: MPI.Comm) -> Finding:
    """A sum over all ranks whose result is known."""
    from mpi4py import MPI

    values = np.full(ALLREDUCE_BYTES // 8, comm.rank + 1.0)
    comm.Barrier()
    start = time.perf_counter()
    comm.Allreduce(MPI.IN_PLACE, values, MPI.SUM)
    seconds = time.perf_counter() - start
    if not np.all(values == comm.size * (comm.size + 1) / 2):
        return fails("an allreduce gives wrong sums", _OTHER_MPI)
    return ok(f"allreduce of 1 MiB over {counted(comm.size, 'rank')}: right, {1e3 * seconds:.1f} ms")


def sparse_sums(comm: MPI.Comm) -> Finding:
    """A sum of sparse vectors by every plan, whose result is known."""
    import torch

    from hpcopt.comm.mpi_ports import MPIPorts
    from hpcopt.comm.staging import Staging
    from hpcopt.costs.volumes import EXCHANGES
    from hpcopt.ground.placement import Placement

    placement = Placement.even(comm.size, comm.size, comm.rank)
    x = torch.zeros(comm.size + 1)
    expected = torch.ones_like(x)
    expected[0] = comm.size  # everybody's first entry; the second is everybody's own
    wrong: list[str] = []
    measured: dict[str, Any] = {}
    for exchange in EXCHANGES:
        ports = MPIPorts(comm, placement, Staging(x.device), x, "mpi", overlap=False, remembered=measured)
        total = ports.sparse_sum(x, exchange).sum(torch.tensor([[0, comm.rank + 1]]), torch.ones(1, 2))
        if not torch.equal(total.dense, expected):
            wrong.append(exchange)
        ports.free()
        measured = ports.remembered
    if wrong:
        return fails(f"sums of sparse vectors are wrong: {', '.join(wrong)}", _OTHER_MPI)
    return ok(f"{', '.join(EXCHANGES)} over {counted(comm.size, 'rank')}: right")


def neighbours(comm: MPI.Comm) -> Finding:
    """Averages between neighbours, one worker on a rank, whose result is known."""
    from hpcopt.math.mixing import mixing

    try:
        import networkx  # noqa: F401
        import scipy  # noqa: F401
    except ImportError:
        return note("not tried: networkx and scipy are not installed", _NO_GRAPHS)
    topologies = ("ring", "one_peer_exponential")
    try:
        wrong = [name for name in topologies if not _averages(comm, mixing(name, "metropolis", comm.size))]
    except RuntimeError as error:  # the port's own test
        return fails(str(error), _OTHER_MPI)
    if wrong:
        return fails(f"averages between neighbours are wrong: {', '.join(wrong)}", _OTHER_MPI)
    return ok(f"ring and one-peer exponential over {counted(comm.size, 'rank')}: right")


def mailbox(comm: MPI.Comm) -> Finding:
    """Vectors that ranks put to the next one, and to one far away, by each transport; numbers are known."""
    import torch

    from hpcopt.comm.mailbox.choice import WIRES
    from hpcopt.comm.mailbox.mpi_mailbox import MPIMailbox
    from hpcopt.comm.staging import Staging
    from hpcopt.ground.placement import Placement

    placement, like = Placement.even(comm.size, comm.size, comm.rank), torch.zeros(MAIL_LENGTH)
    links = [(n, (n + far) % comm.size) for n in range(comm.size) for far in (1, comm.size // 2)]
    wrong = []
    for transport in WIRES:
        try:
            MPIMailbox(comm, placement, Staging(like.device), like, links, transport=transport).free()
        except RuntimeError:  # on every rank
            wrong.append(transport)
    right = ", ".join(name for name in WIRES if name not in wrong)
    text = f"{right} over {counted(comm.size, 'rank')}: right"
    if len(wrong) == len(WIRES):
        return fails(f"vectors that ranks put to each other are wrong: {', '.join(wrong)}", _OTHER_MPI)
    return note(f"{text}; {wrong[0]}: wrong", _ONE_TRANSPORT) if wrong else ok(text)


def beside(comm: MPI.Comm) -> Finding:
    """What the last rank computes while the others go on, three times; numbers are known."""
    import torch
    from mpi4py import MPI

    from hpcopt.comm.beside.by_mail import ByMail
    from hpcopt.comm.beside.route import Route
    from hpcopt.comm.beside.service import Service
    from hpcopt.comm.ports import Answer, Task
    from hpcopt.comm.staging import Staging
    from hpcopt.control.crew import Crew
    from hpcopt.ground.placement import block

    if comm.size == 1:
        return note("not tried: there is one rank")
    crew, like = Crew(comm, 1), torch.zeros(MAIL_LENGTH)

    def twice(request: torch.Tensor, number: int, going: object) -> Answer:
        return Answer(2 * request.T + number, torch.tensor([float(number)], dtype=torch.float64))

    right = True
    route = Route(comm, crew.rounders, Task(MAIL_LENGTH, 1, 1, 1, twice), Staging(like.device), like)
    if crew.makes_rounds:
        own = block(MAIL_LENGTH, crew.rounders, comm.rank)
        way, x = ByMail(route, lambda where: None), torch.arange(own.start, own.stop, dtype=like.dtype)
        for number in range(3):
            way.ask(x[None], number)
            answer = way.take()
            right &= torch.equal(answer.columns[:, 0], 2 * x + number) and answer.numbers.tolist() == [number]
        way.free()
    else:
        Service(route, crew.comm, lambda: [0.0] * 5, lambda where: None).serve()
    crew.free()
    if not comm.allreduce(right, MPI.LAND):
        return fails("what a rank computes for the others comes out wrong", _OTHER_MPI)
    return ok(f"{counted(comm.size - 1, 'rank')} and one that computes for them: right")


def _averages(comm: MPI.Comm, mixing: Mixing) -> bool:
    """Whether a period's mixes of the ranks' numbers come out right on every rank. Collective."""
    import torch
    from mpi4py import MPI

    from hpcopt.comm.neighbours.mpi_neighbours import MPINeighbours
    from hpcopt.comm.staging import Staging
    from hpcopt.ground.placement import Placement

    placement = Placement.even(comm.size, comm.size, comm.rank)
    X = torch.full((1, GOSSIP_COLUMNS), float(comm.rank), dtype=torch.float64)
    expected = np.arange(float(comm.size))
    port = MPINeighbours(comm, placement, X[0], mixing, Staging(X.device))
    for t, W in enumerate(mixing.matrices):
        port.mix(X, t)
        expected = W @ expected
    port.free()
    right = bool(np.allclose(X, expected[comm.rank], rtol=0, atol=1e-12 * comm.size))
    return bool(comm.allreduce(right, MPI.LAND))


def parallel_hdf5(comm: MPI.Comm) -> Finding:
    """A collective write of one file in the current directory, the last rank's part empty, read back."""
    from hpcopt.storage import slab

    built = slab.parallel_hdf5()
    if comm.size > 1 and not built:
        return fails("h5py is built without parallel HDF5", _NO_PARALLEL_HDF5)
    try:
        with scratch(comm) as folder:
            seconds, right = _write_and_read(comm, folder / "probe.h5")
    except UserError as error:
        return fails(str(error), _HDF5)
    if not right:
        return fails("a collective write reads back differently", _HDF5)
    text = f"{FILE_BYTES >> 20} MiB by {counted(comm.size, 'rank')} into one file: right, {seconds:.2f} s"
    if not built:
        return warning(f"{text}; h5py is built without parallel HDF5", _NO_PARALLEL_HDF5)
    return ok(text + (", one rank empty" if comm.size > 1 else ""))


def cores_and_memory(comm: MPI.Comm) -> Finding:
    """Whether the ranks of a node have the cores and the memory that they will use."""
    from mpi4py import MPI

    from hpcopt.doctor.machine import memory_bytes

    each, wanted = threads(), os.environ.get("OMP_NUM_THREADS", "1")
    if str(each) != wanted.partition(",")[0]:
        return warning(
            f"OMP_NUM_THREADS={wanted} is no number of threads: each rank has 1", "export OMP_NUM_THREADS=1"
        )
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    cores = len(set().union(*node.allgather(os.sched_getaffinity(0))))
    ranks, share = node.size, memory_bytes() / node.size / GIB
    node.Free()
    text = (
        f"{counted(ranks, 'rank')} of {counted(each, 'thread')} on {counted(cores, 'core')} of a node, "
        f"{share:.1f} GiB of memory for each rank"
    )
    if ranks * each > cores:
        polite = gives_way(MPI.Get_library_version())
        if ranks > cores:
            text += ", ranks that wait " + ("give their core away" if polite else "keep their core busy")
        return warning(f"{text}: too few cores", f"{_CORES}OMP_NUM_THREADS={max(1, cores // ranks)}")
    if share < 1:
        return warning(text, "ask for more memory (sbatch --mem), or start fewer ranks per node")
    if "OMP_NUM_THREADS" not in os.environ:
        return note(f"{text}; OMP_NUM_THREADS is not set", "export OMP_NUM_THREADS=1 (jobs/env.sh does)")
    return ok(text)


@contextmanager
def scratch(comm: MPI.Comm) -> Iterator[Path]:
    """A new directory in the current one, the same for all ranks, removed afterwards. Collective.

    Raises:
        UserError: it cannot be made, or is not seen by every rank.
    """
    from hpcopt.control.agree import agree, agreed
    from hpcopt.doctor.examination import scratch_path

    folder: Path = comm.bcast(scratch_path())
    try:
        with agreed(comm):
            if comm.rank == 0:
                _make(folder)
        agree(comm, folder.is_dir(), "the current directory is not shared: rank 0's files are not seen")
        yield folder
        comm.Barrier()
    finally:
        if comm.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir()
    except OSError as error:
        raise UserError(f"{folder.parent}: cannot be written ({error.strerror})") from None


def _write_and_read(comm: MPI.Comm, path: Path) -> tuple[float, bool]:
    """Seconds of the write, and whether this rank finds what another one wrote. Collective."""
    from hpcopt.control.agree import agreed
    from hpcopt.ground import files
    from hpcopt.storage import format
    from hpcopt.storage.checkpoint import Piece, allocate, write_pieces

    writers = max(1, comm.size - 1)
    rows = max(1, FILE_BYTES // 8 // writers)
    count = rows if comm.rank < writers else 0
    mine = np.arange(count, dtype=np.float64) + comm.rank * rows
    pieces = [Piece("x", (writers * rows,), min(comm.rank, writers) * rows, mine)]
    with agreed(comm):
        if comm.rank == 0:
            try:
                allocate(path, pieces)
            except OSError as error:
                raise UserError(f"{path.parent.parent}: cannot be written ({error.strerror})") from None
    start = time.perf_counter()
    write_pieces(comm, path, pieces)
    files.sync(path)
    comm.Barrier()
    seconds = time.perf_counter() - start
    begin = (comm.rank + 1) % writers * rows
    found = format.read_rows(path, "x", begin, begin + rows)
    return seconds, bool(np.array_equal(found, np.arange(begin, begin + rows, dtype=np.float64)))


# the probes of later ports go here, one line each
PORTS = (
    Probe("sparse sums", sparse_sums, _OTHER_MPI, Where.TOGETHER),
    Probe("neighbours", neighbours, _OTHER_MPI, Where.TOGETHER),
    Probe("mailbox", mailbox, _OTHER_MPI, Where.TOGETHER),
    Probe("ranks without workers", beside, _OTHER_MPI, Where.TOGETHER),
)

LAUNCHER = Probe("launcher", launcher, _OTHER_MPI, Where.TOGETHER)
MESSAGES = Probe("message passing", message_passing, _NETWORK, Where.TOGETHER)
HDF5 = Probe("parallel HDF5", parallel_hdf5, _HDF5, Where.TOGETHER, seconds=30.0)
CORES = Probe("cores and memory", cores_and_memory, f"{_CORES}OMP_NUM_THREADS=1", Where.TOGETHER)
