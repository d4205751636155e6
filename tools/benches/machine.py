"""`tools/bench comm|hosts --machine FILE`: writes a machine file, or adds these ranks to one that is there.

    mpirun -n P python -m mpi4py machine.py FILE [RATE]    all ranks on one host, or each on its own

Latency is half of a ping-pong, bandwidth that of both directions at once, sustained, in messages as short as
the ring's. Points are uses of ports, one worker a rank, medians of the slowest rank's seconds. What a link
lets pass at once after a pause (tools/cluster --burst) is used up before anything is measured.
"""

from __future__ import annotations

import platform
import re
import statistics
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch
from mpi4py import MPI

from hpcopt.comm.mpi_ports import MPIPorts
from hpcopt.comm.staging import Staging
from hpcopt.costs.machine import load_machine
from hpcopt.costs.volumes import Shape
from hpcopt.engine.build import cores
from hpcopt.ground.placement import Placement, block
from hpcopt.ground.stamps import now
from hpcopt.math.mixing import mixing
from hpcopt.storage.provenance import commit
from tools.benches.common import hosts, seconds

SIZES = (64, 8 << 10, 128 << 10, 1 << 20, 8 << 20)
"""bytes of vectors"""
ENTRIES = (500, 10_000, 100_000)
"""of a worker, in sparse sums"""
DIM = 4 << 20
"""d of sparse sums"""
SECONDS, BLOCKS = 0.15, 5
"""of a block of uses, and how many blocks"""
PIECE = 60 << 10


def blocks(comm: MPI.Comm, call: Callable[[], object]) -> list[float]:
    """Seconds of a use, of the slowest rank, in blocks of uses."""
    call()
    once = seconds(comm, call)
    count = max(1, min(2000, int(SECONDS / max(once, 1e-6))))

    def block_of() -> None:
        for _ in range(count):
            call()

    if count > 1:
        block_of()
    return [seconds(comm, block_of) / count for _ in range(BLOCKS)]


def timed(comm: MPI.Comm, call: Callable[[], object]) -> tuple[float, float]:
    """Their median, and half the interquartile range over that."""
    low, middle, high = statistics.quantiles(blocks(comm, call), n=4)
    return middle, (high - low) / 2 / middle


def link(comm: MPI.Comm) -> tuple[float, float]:
    """Latency and bandwidth between the first two ranks, of the quickest block; the others wait."""
    pair = comm.Split(comm.rank < 2)
    if comm.rank > 1:
        comm.Barrier()
        pair.Free()
        return 0.0, 0.0
    small, there = np.zeros(8, np.uint8), 1 - comm.rank

    def ping() -> None:
        if comm.rank == 0:
            pair.Send(small, there)
            pair.Recv(small, there)
        else:
            pair.Recv(small, there)
            pair.Send(small, there)

    latency = min(blocks(pair, ping)) / 2
    sent, landed = np.zeros(64 * PIECE, np.uint8), np.empty(64 * PIECE, np.uint8)
    pieces = [slice(at, at + PIECE) for at in range(0, len(sent), PIECE)]

    def both() -> None:
        requests = [pair.Irecv(landed[p], there) for p in pieces] + [
            pair.Isend(sent[p], there) for p in pieces
        ]
        MPI.Request.Waitall(requests)

    bandwidth = len(sent) / min(blocks(pair, both))
    comm.Barrier()
    pair.Free()
    return latency, bandwidth


def uses(comm: MPI.Comm, ports: MPIPorts) -> Iterator[tuple[dict[str, Any], Callable[[], object]]]:
    """What is timed: the point without its seconds, and the use."""
    ranks, ring = comm.size, ports.chosen["reduction"] == "ring"
    about = {"ranks": ranks, "itemsize": 4}
    for nbytes in SIZES:
        m = nbytes // 4
        # zeros: what is summed in place again and again would grow beyond all numbers
        vector, piece = torch.zeros(m), torch.zeros(len(block(m, ranks, comm.rank)))
        scattered = ports.reduce.contribution(m)
        dense = about | {"bytes": nbytes, "ring": ring}
        yield dense | {"verb": "sum"}, lambda v=vector: ports.reduce.total(v)  # type: ignore[misc,attr-defined]
        yield dense | {"verb": "gather"}, lambda p=piece, m=m: ports.reduce.allgather(p, m)  # type: ignore[misc]
        yield dense | {"verb": "scatter"}, scattered.scatter
        neighbours = ports.neighbours(vector, mixing("ring", "metropolis", ranks))
        X = vector[None].clone()
        yield about | {"bytes": nbytes, "verb": "neighbours"}, lambda n=neighbours, X=X: n.mix(X, 0)  # type: ignore[misc]
    entry = Shape(DIM, ranks, 4).record.itemsize
    for k in ENTRIES:
        chosen = np.sort(np.random.default_rng([comm.rank, k]).choice(DIM, k, replace=False))
        indices, values = torch.from_numpy(chosen)[None], torch.ones((1, k))
        for exchange in ("allgather", "owner"):
            port = ports.sparse_sum(torch.zeros(DIM), exchange=exchange)
            of_sparse = {"bytes": k * entry, "verb": "sparse", "exchange": exchange, "dim": DIM}
            yield about | of_sparse, partial(port.sum, indices, values)


def burst() -> float:
    """Bytes that tbf lets pass at once through this host's link; 0: it is not limited, or nobody knows."""
    shown = subprocess.run(
        ["tc", "qdisc", "show", "dev", "eth0"], capture_output=True, text=True, check=False
    )
    found = re.search(r"qdisc tbf .*burst (\d+)(b|Kb|Mb) lat (\S+)", shown.stdout)
    return float(found[1]) * {"b": 1, "Kb": 1 << 10, "Mb": 1 << 20}[found[2]] if found else 0.0


def conditions(count: int) -> dict[str, Any]:
    """Under which it was measured."""
    sysctl = Path("/proc/sys/net/ipv4")
    shown = subprocess.run(
        ["tc", "qdisc", "show", "dev", "eth0"], capture_output=True, text=True, check=False
    )
    queue = re.search(r"qdisc tbf .*rate (\S+) burst \S+ lat (\S+)", shown.stdout)
    return {
        "control": (sysctl / "tcp_congestion_control").read_text().strip(),
        "slow_start_after_idle": int((sysctl / "tcp_slow_start_after_idle").read_text()),
        "rate": queue[1] if queue else "none",
        "queue": queue[2] if queue else "none",
        "cores": len(cores()),
        "mpi": MPI.Get_library_version().splitlines()[0].rstrip("\0 ").split(",")[0],
        "kernel": platform.release(),
        "commit": commit(),
        f"measured_on_{count}": now(),
    }


def main(file: Path, rate: str = "") -> None:
    """Measures, and writes the file on rank 0."""
    torch.set_num_threads(1)
    comm, began = MPI.COMM_WORLD, time.monotonic()
    count = hosts(comm)
    assert count in (1, comm.size), "all ranks on one host, or each on its own"
    place = "within" if count == 1 else "between"
    latency, bandwidth = link(comm)
    placement, like = Placement.even(comm.size, comm.size, comm.rank), torch.zeros(SIZES[-1] // 4)
    ports = MPIPorts(comm, placement, Staging(like.device), like, "auto", False, {})
    points = []
    for point, use in uses(comm, ports):
        took, spread = timed(comm, use)
        points.append(point | {"seconds": took, "spread": spread})
    ports.free()
    if comm.rank:
        return
    tables: dict[str, Any] = tomllib.loads(file.read_text()) if file.is_file() else {}
    about = {"name": f"hosts in a box, {rate}" if rate else platform.node(), "date": now()}
    tables.setdefault("machine", about | {"source": " ".join(["tools/benches/machine.py", *sys.argv[1:]])})
    link_of = {"latency": latency, "bandwidth": bandwidth}
    known = tables.setdefault(place, link_of | {"burst": burst(), "points": []})
    known["points"] = [point for point in known["points"] if point["ranks"] != comm.size] + points
    tables["conditions"] = tables.get("conditions", {}) | conditions(comm.size)
    file.write_text(tomli_w.dumps(tables))
    _, digest = load_machine(file)
    print(
        f"{file}: {place}, {comm.size} ranks, {len(points)} points in {time.monotonic() - began:.0f} s; "
        f"{known['latency'] * 1e6:.1f} µs, {known['bandwidth'] / 1e6:.4g} MB/s; sha256 {digest}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
