"""Undirected graphs over which workers talk: named topologies, and edge lists from files.

An edge list has one edge a line, ``i j`` or ``i j weight``, separated by white space; ``#`` begins a comment.
Nodes are counted from 0.

Symbols: N nodes (workers), i and j nodes, p the probability of an edge.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hpcopt.errors import UserError
from hpcopt.ground.files import home
from hpcopt.ground.words import suggestion
from hpcopt.math.streams import stream

if TYPE_CHECKING:
    import networkx

SHOWN = 5
"""wrong lines of a file that one message names"""


class Edge(NamedTuple):
    """A line of an edge list."""

    i: int
    j: int
    weight: float | None
    line: int


def graph(
    topology: str, N: int, *, probability: float = 0.25, seed: int = 0, path: str | Path | None = None
) -> networkx.Graph:
    """The simple undirected graph of a topology, nodes 0…N-1. N = 1 gives a single node without edges.

    - ``ring``: i and i+1; ``star``: 0 and all others; ``complete``: all pairs.
    - ``torus``: the most square r×c grid with r·c = N and r, c ≥ 2, both directions closed (`torus_shape`).
    - ``erdos_renyi``: G(N, p), drawn once from the stream (seed, "graph"); refused where it is not connected.
    - ``exponential``: i and i ± 2^j mod N for all 2^j < N.

    Args:
        topology: one of these, or the path of an edge list; its weights become edge attributes.
        N: nodes.
        probability: p of erdos_renyi.
        seed: seed of erdos_renyi.
        path: the edge list, where ``topology`` is neither one of the names nor the path itself.

    Raises:
        UserError: the topology does not exist, or not with these arguments.
    """
    check_size(N)
    if topology == ONE_PEER:
        raise UserError(f'topology = "{topology}" is another graph in every round: it has no single one')
    try:
        import networkx
    except ImportError as error:
        raise UserError(f'topology = "{topology}" needs networkx: pip install "hpcopt[run]"') from error
    result = networkx.Graph()
    result.add_nodes_from(range(N))
    result.add_edges_from(_edges(topology, N, probability, seed, path))
    if topology == "erdos_renyi" and not networkx.is_connected(result):
        raise UserError(
            f'topology = "erdos_renyi" with probability = {probability}, N = {N}, seed = {seed}: the graph '
            f"is not connected. With high probability it is for a probability well above ln N / N = "
            f"{math.log(N) / N:.3g}; raise it, or take another seed"
        )
    return result


def check_size(N: int) -> None:
    """Raises `UserError` if there can be no graph of N nodes."""
    if N < 1:
        raise UserError(f"N = {N}: a graph needs at least 1 node")


def doublings(N: int) -> int:
    """How many powers of two are below N: ⌈log₂ N⌉, the τ of exponential graphs."""
    return (N - 1).bit_length()


def torus_shape(N: int) -> tuple[int, int]:
    """Rows and columns of the most square torus, r ≤ c; (1, 1) for N = 1.

    Raises:
        UserError: N is 2, 3 or another prime, of which there is none.
    """
    rows = _rows(N)
    if rows == 1 and N > 1:
        raise UserError(
            f'topology = "torus" with N = {N}: N must be a product r·c with r and c at least 2. '
            f'Take topology = "ring", or N = {max(4, N - 1)}'  # beside an odd prime: even
        )
    return rows, N // rows


def check_name(key: str, value: str, names: Iterable[str]) -> None:
    """Raises `UserError` if a value is neither one of the names nor an existing file."""
    names = tuple(names)
    if value not in names and not os.path.isfile(value):  # unlike Path.is_file, it takes any name
        hint = suggestion(value, names, '"')
        raise UserError(
            f'{key} = "{value}" is neither a file nor known: allowed are {", ".join(names)} or a path{hint}'
        )


def read_edges(path: str | Path, N: int, *, weighted: bool) -> list[Edge]:
    """The edges in a file, in its order.

    Args:
        path: the file.
        N: nodes that there are.
        weighted: a file of weights: every line has one, (i, j) is not (j, i), and (i, i) is allowed.
            Otherwise edges are undirected, and the weight may be missing.

    Raises:
        UserError: the file cannot be read, or has wrong lines; names the first five of them.
    """
    found: dict[tuple[int, int], Edge] = {}
    faults = []
    for line, text in enumerate(_lines(path), 1):
        fields = text.split("#")[0].split()
        if not fields:
            continue
        try:
            edge = _parse(fields, line, N, weighted)
            first = found.setdefault(_key(edge, weighted), edge)
            if first is not edge:
                raise ValueError(f'"{edge.i} {edge.j}" repeats line {first.line}; each edge is allowed once')
        except ValueError as error:
            faults.append(f"{path}, line {line}: {error}")
    if faults:
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        raise UserError("\n".join(faults[:SHOWN] + more))
    return list(found.values())


def _lines(path: str | Path) -> list[str]:
    try:
        return home(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not a text file; an edge list has lines i j or i j weight") from None
    except (OSError, ValueError) as error:  # ValueError: no name of a file
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', error)})") from None


def _key(edge: Edge, weighted: bool) -> tuple[int, int]:
    return (edge.i, edge.j) if weighted else (min(edge.i, edge.j), max(edge.i, edge.j))


def _parse(fields: list[str], line: int, N: int, weighted: bool) -> Edge:
    """One line's edge; raises ValueError with what is wrong and what is allowed."""
    if len(fields) not in ((3,) if weighted else (2, 3)):
        allowed = "i j weight" if weighted else "i j or i j weight"
        raise ValueError(f'"{" ".join(fields)}": allowed is {allowed}')
    i, j = _node(fields[0], N), _node(fields[1], N)
    if i == j and not weighted:
        raise ValueError(f'"{i} {j}" joins a node to itself; an edge is allowed between two different ones')
    return Edge(i, j, _weight(fields[2]) if len(fields) == 3 else None, line)


def _node(text: str, N: int) -> int:
    allowed = f"allowed are the integers 0…{N - 1}, nodes are counted from 0"
    if not re.fullmatch(r"-?[0-9]+", text):
        raise ValueError(f'node "{text}" is not an integer: {allowed}')
    node = int(text)
    if not 0 <= node < N:
        raise ValueError(f"node {node} is out of range: {allowed}")
    return node


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise ValueError(f'weight "{text}" is not allowed: it must be a finite number')
    return weight


def _edges(
    topology: str, N: int, probability: float, seed: int, path: str | Path | None
) -> Iterator[tuple[Any, ...]]:
    """Edges as networkx takes them."""
    if topology == "erdos_renyi":
        yield from _erdos_renyi(N, probability, seed)
    elif topology in SHAPES:
        yield from ((i, j) for i, j in SHAPES[topology](N) if i != j)
    else:
        if path is None:
            check_name("topology", topology, TOPOLOGIES)
        for edge in read_edges(path or topology, N, weighted=False):
            yield edge.i, edge.j, {} if edge.weight is None else {"weight": edge.weight}


def _erdos_renyi(N: int, p: float, seed: int) -> Iterator[tuple[int, int]]:
    if not 0 < p <= 1:
        raise UserError(f"probability = {p}: must be above 0 and at most 1")
    rng = stream(seed, "graph")
    for i in range(N):
        chosen = np.flatnonzero(rng.random(N - 1 - i) < p) + i + 1
        yield from ((i, j) for j in chosen.tolist())


def _rows(N: int) -> int:
    """The largest divisor of N that is at most √N."""
    return next(r for r in range(math.isqrt(N), 0, -1) if N % r == 0)


def _torus(N: int) -> Iterator[tuple[int, int]]:
    rows, columns = torus_shape(N)
    for i in range(N):
        row, column = divmod(i, columns)
        yield i, row * columns + (column + 1) % columns
        yield i, (row + 1) % rows * columns + column


SHAPES: dict[str, Callable[[int], Iterable[tuple[int, int]]]] = {
    "ring": lambda N: ((i, (i + 1) % N) for i in range(N)),
    "torus": _torus,
    "star": lambda N: ((0, i) for i in range(1, N)),
    "complete": lambda N: ((i, j) for j in range(N) for i in range(j)),
    "exponential": lambda N: ((i, (i + (1 << j)) % N) for i in range(N) for j in range(doublings(N))),
}
ONE_PEER = "one_peer_exponential"
TOPOLOGIES = (*SHAPES, "erdos_renyi", ONE_PEER)
