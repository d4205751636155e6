"""Mixing matrices for gossip: x_i ← Σ_j W_ij x_j, and how fast they bring workers to agreement.

Weights on an undirected graph, deg_i neighbours of i (without i); the diagonal is the rest of each row:

- ``metropolis``: W_ij = 1 / (1 + max(deg_i, deg_j)); symmetric (Xiao, Boyd & Lall, IPSN 2005).
- ``uniform``: W_ij = 1 / (1 + deg_i), the mean over i and its neighbours; columns sum to 1 on regular graphs
  only, and elsewhere the consensus is the mean weighted by 1 + deg_i.
- ``laplacian``: W = I - L / (1 + max_i deg_i), L the graph's Laplacian; symmetric.
- ``weighted``: W_ij = ω_j / max(s_i, s_j), s_i the sum of the weights ω of i and its neighbours. With equal
  weights that is ``metropolis``. As ω_i W_ij = ω_j W_ji, mixing keeps Σ ω_i x_i, and that is the consensus;
  on the complete graph W_ij = ω_j, and it is reached at once. (Metropolis-Hastings whose proposals are the
  neighbours by their weights.)
- a file of lines ``i j w``: W_ij = w, and W_ji = w where it has no line of its own.

``one_peer_exponential`` changes from round to round. In round t, with j = t mod τ and τ = ⌈log₂ N⌉, i sends
to i + 2^j mod N and averages what it has with what it gets from i - 2^j mod N, half and half: doubly
stochastic, not symmetric, and for N a power of two exact after τ rounds
(Ying et al., "Exponential graph is provably efficient for decentralized deep training", NeurIPS 2021).

Symbols: N workers, W the matrix, λ₂ its second largest eigenvalue by modulus, J = 11ᵀ/N.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hpcopt.errors import UserError
from hpcopt.math.graphs import (
    ONE_PEER,
    TOPOLOGIES,
    check_name,
    check_size,
    doublings,
    graph,
    read_edges,
    torus_shape,
)
from hpcopt.math.mixing_rate import ROUNDING, is_symmetric, second_largest

if TYPE_CHECKING:
    import networkx
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    Floats = NDArray[np.float64]

WEIGHTS = {
    "metropolis": lambda c, deg, i, j: 1 / (1 + np.maximum(deg[i], deg[j])),
    "uniform": lambda c, deg, i, j: 1 / (1 + deg[i]),
    "laplacian": lambda c, deg, i, j: np.full(len(i), 1 / (1 + deg.max(initial=0))),
    "weighted": lambda c, deg, i, j: _weighted(c, i, j),
}
"""W_ij of neighbours by their numbers, (edges,), from all weights and degrees, (N,)"""
WEIGHTED = "weighted"
WORDS = {
    "complete": "complete graph",
    "erdos_renyi": "Erdős–Rényi graph",
    "exponential": "exponential graph",
    ONE_PEER: "one-peer exponential graph",
}
TOLERANCE = 1e-9
"""how far a row's or a column's sum may be from 1"""


@dataclass(frozen=True, eq=False)
class Mixing:
    """A periodic sequence of sparse mixing matrices.

    Attributes:
        topology, weights: names or paths, as given to `mixing`.
        matrices: W_0 … W_{period-1}, each (N, N) float64 in CSR form, columns ascending in a row.
        counts: c, (N,), of "weighted": c_i W_ij = c_j W_ji, so that mixing keeps Σ c_i x_i; else None.
    """

    topology: str
    weights: str
    matrices: tuple[csr_array, ...]
    counts: Floats | None = None

    @property
    def N(self) -> int:
        """Workers."""
        return int(self.matrices[0].shape[0])

    @property
    def period(self) -> int:
        """Rounds after which the matrices repeat."""
        return len(self.matrices)

    def at(self, round: int) -> csr_array:
        """The matrix W of a round, counted from 0."""
        return self.matrices[round % self.period]

    @cached_property
    def common(self) -> Floats | None:
        """c, (N,), if every row of every W is c, to rounding: the workers then get one average, Σ c_j x_j."""
        W = self.matrices[0]
        if self.period > 1 or W.nnz < self.N**2:
            return None
        rows = W.toarray()
        # the diagonal is the rest of its row: rounded
        return np.median(rows, axis=0) if np.ptp(rows, axis=0).max() <= ROUNDING else None

    @property
    def differs(self) -> str:
        """What to say where ranks have different ones."""
        return (
            f'topology = "{self.topology}", mixing = "{self.weights}": the ranks have read different '
            "graphs; name files that are the same on every node"
        )

    def digest(self) -> str:
        """Of all matrices: the same where they are."""
        parts = (part for W in self.matrices for part in (W.indptr, W.indices, W.data))
        return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


@dataclass(frozen=True)
class Report:
    """What `check` found.

    Attributes:
        name: topology and weights in words.
        workers, period: N, and rounds after which the matrices repeat.
        symmetric, doubly_stochastic: whether every W of the period is.
        column_sums: least and largest over the period.
        consensus: what is agreed on: the "mean", a "degree-weighted" one, one "weighted by ω", or one
            "weighted" in another way.
        neighbours: fewest and most that a worker takes values from in a round.
        lambda2: |λ₂| of W; of a longer period the geometric mean per round of ‖P - JP‖₂, P = W_{τ-1}…W_0.
    """

    name: str
    workers: int
    period: int
    symmetric: bool
    doubly_stochastic: bool
    column_sums: tuple[float, float]
    consensus: str
    neighbours: tuple[int, int]
    lambda2: float

    @property
    def gap(self) -> float:
        """The spectral gap 1 - |λ₂|."""
        return 1 - self.lambda2

    @property
    def mixing_time(self) -> float:
        """Rounds in which disagreement shrinks by a factor e: 1 / ln(1/|λ₂|), ∞ for |λ₂| = 1.

        For |λ₂| = 0 the period, after which agreement is exact; 0 for a single worker.
        """
        if self.lambda2 == 0:
            return float(self.period) if self.workers > 1 else 0.0
        return -1 / math.log(self.lambda2) if self.lambda2 < 1 else math.inf

    @property
    def description(self) -> str:
        """All this in one line for the log."""
        digits = max(3, math.ceil(-math.log10(self.gap))) if self.gap else 3
        fewest, most = self.neighbours
        neighbours = f"{most}" if fewest == most else f"{fewest}…{most}"
        line = (
            f"{self.name}: |λ₂| {self.lambda2:.{digits}f}, {self._speed()}, "
            f"{neighbours} neighbour{'s' * (most != 1)}"
        )
        if not self.symmetric:
            line += ", not symmetric"
        if self.doubly_stochastic:
            return line
        low, high = self.column_sums
        return f"{line}; row-stochastic only, consensus is {self.consensus}; column sums {low:.2f}…{high:.2f}"

    def _speed(self) -> str:
        if not self.gap:
            return "no agreement ever"
        if self.lambda2 == 0 and self.workers > 1:
            return f"exact after {self.period} round{'s' * (self.period > 1)}"
        time = self.mixing_time
        return f"mixing time {time:,.0f} rounds" if time >= 10 else f"mixing time {time:.2g} rounds"


def mixing(
    topology: str,
    weights: str,
    N: int,
    *,
    probability: float = 0.25,
    seed: int = 0,
    counts: Floats | None = None,
) -> Mixing:
    """The matrices of a topology and a kind of weights; files are not trusted before `check` has seen them.

    Args:
        topology: a name, or the path of an edge list (see `graphs`).
        weights: "metropolis", "uniform", "laplacian" or "weighted", which are all 1/2 for
            one_peer_exponential; or the path of a weight file. That may leave edges of the topology out
            (weight 0) but use no others; if it is the topology's own path, it defines the edges, too.
        N: workers.
        probability, seed: of erdos_renyi.
        counts: in proportion to ω, (N,), for "weighted"; equal if None.

    Raises:
        UserError: there is no such topology or no such weights.
    """
    check_size(N)
    check_name("mixing", weights, WEIGHTS)
    _check_scipy(topology)
    counts = np.ones(N) if counts is None else counts
    if topology == ONE_PEER:
        if weights == WEIGHTED and np.ptp(counts):
            raise UserError(
                f'mixing = "{weights}": topology = "{ONE_PEER}" has weights 1/2, and here workers have '
                "different ones; take another topology"
            )
        return Mixing(topology, weights, _one_peer(N, weights))
    if weights not in WEIGHTS and topology not in TOPOLOGIES and Path(topology) == Path(weights):
        return Mixing(topology, weights, (_from_file(weights, N, None, topology),))
    edges = graph(topology, N, probability=probability, seed=seed)
    if weights in WEIGHTS:
        if any(weight is not None for _, _, weight in edges.edges(data="weight")):
            raise UserError(
                f'topology = "{topology}" has weights, which mixing = "{weights}" does not use: '
                f'set mixing = "{topology}" too, or leave them out'
            )
        matrices = (_from_degrees(weights, edges, counts),)
        return Mixing(topology, weights, matrices, counts if weights == WEIGHTED else None)
    return Mixing(topology, weights, (_from_file(weights, N, edges, topology),))


def check(mixing: Mixing) -> Report:
    """Looks whether gossip with these matrices leads to agreement, and how fast.

    Raises:
        UserError: a negative or infinite weight, a row that does not sum to 1, or workers that never hear of
            each other.
    """
    for t, W in enumerate(mixing.matrices):
        _check_rows(f'mixing = "{mixing.weights}": W' + (f"_{t}" if mixing.period > 1 else ""), W)
    _check_connected(mixing)
    columns = np.stack([W.sum(axis=0) for W in mixing.matrices])
    taken = np.stack([np.diff(W.indptr) - (W.diagonal() != 0) for W in mixing.matrices])
    doubly = bool(np.abs(columns - 1).max() <= TOLERANCE)
    return Report(
        name=_words(mixing),
        workers=mixing.N,
        period=mixing.period,
        symmetric=all(map(is_symmetric, mixing.matrices)),
        doubly_stochastic=doubly,
        column_sums=(float(columns.min()), float(columns.max())),
        consensus=_consensus(mixing, doubly),
        neighbours=(int(taken.min()), int(taken.max())),
        lambda2=second_largest(mixing.matrices, mixing.counts),
    )


def _consensus(mixing: Mixing, doubly: bool) -> str:
    if doubly:
        return "mean"
    if mixing.counts is not None:
        return "weighted by ω"
    return "degree-weighted" if mixing.weights == "uniform" else "weighted"


def _check_scipy(topology: str) -> None:
    try:
        import scipy.sparse  # noqa: F401
    except ImportError as error:
        raise UserError(f'topology = "{topology}" needs scipy: pip install "hpcopt[run]"') from error


def _one_peer(N: int, weights: str) -> tuple[csr_array, ...]:
    if weights not in WEIGHTS:
        raise UserError(
            f'mixing = "{weights}": topology = "{ONE_PEER}" has weights 1/2; '
            f"allowed are {', '.join(WEIGHTS)}, which mean the same here"
        )
    i = np.arange(N)
    halves = np.full(N, 0.5)
    return tuple(_csr(N, i, (i - (1 << j)) % N, halves) for j in range(doublings(N))) or (
        _csr(N, i[:0], i[:0], halves[:0]),
    )


def _from_degrees(kind: str, edges: networkx.Graph, counts: Floats) -> csr_array:
    ends = np.array(edges.edges, dtype=np.int64).reshape(-1, 2)
    i, j = np.concatenate([ends, ends[:, ::-1]]).T
    degrees = np.bincount(i, minlength=len(edges))
    return _csr(len(edges), i, j, WEIGHTS[kind](counts, degrees, i, j))


def _weighted(counts: Floats, i: NDArray[np.int64], j: NDArray[np.int64]) -> Floats:
    around = counts + np.bincount(i, weights=counts[j], minlength=len(counts))
    return counts[j] / np.maximum(around[i], around[j])


def _from_file(path: str, N: int, edges: networkx.Graph | None, topology: str) -> csr_array:
    """W of a weight file, whose edges must be among the given ones (None: may be any)."""
    W: dict[tuple[int, int], float] = {}
    for edge in (lines := read_edges(path, N, weighted=True)):
        if edges is not None and edge.i != edge.j and not edges.has_edge(edge.i, edge.j):
            raise UserError(
                f'{path}, line {edge.line}: "{edge.i} {edge.j}" has a weight but is no edge of topology = '
                f'"{topology}". Allowed are its edges; topology = "{path}" allows all in this file'
            )
        W[edge.i, edge.j] = edge.weight or 0.0
    for edge in lines:
        W.setdefault((edge.j, edge.i), edge.weight or 0.0)
    i, j = np.array(list(W), dtype=np.int64).reshape(-1, 2).T
    given = np.zeros(N, dtype=bool)
    given[i[i == j]] = True
    return _csr(N, i, j, np.array(list(W.values())), ~given)


def _csr(
    N: int, i: NDArray[np.int64], j: NDArray[np.int64], w: Floats, fill: NDArray[np.bool_] | None = None
) -> csr_array:
    """The matrix of entries, each i, j once; where ``fill`` (N,) is set, W_ii is the rest of the row."""
    from scipy.sparse import coo_array

    rest = 1 - np.bincount(i, weights=w, minlength=N)
    rest[np.abs(rest) < ROUNDING] = 0
    nodes = np.arange(N) if fill is None else np.flatnonzero(fill)
    places = (np.concatenate([i, nodes]), np.concatenate([j, nodes]))
    W = coo_array((np.concatenate([w, rest[nodes]]), places), shape=(N, N)).tocsr()
    W.eliminate_zeros()
    W.sort_indices()
    return W


def _check_rows(name: str, W: csr_array) -> None:
    entries = W.tocoo()
    for at in np.flatnonzero(~((entries.data >= 0) & (entries.data < np.inf)))[:1]:
        i, j, w = entries.row[at], entries.col[at], entries.data[at]
        others = f" (the others of row {i} sum to {W[[i]].sum() - w:.12g})" if i == j else ""
        raise UserError(f"{name}[{i}, {j}] = {w:.12g}: allowed are finite weights of at least 0{others}")
    sums = W.sum(axis=1)
    for i in np.flatnonzero(np.abs(sums - 1) > TOLERANCE)[:1]:
        raise UserError(f"{name}: row {i} sums to {sums[i]:.12g}, allowed is 1 (to {TOLERANCE:g})")


def _check_connected(mixing: Mixing) -> None:
    from scipy.sparse.csgraph import connected_components

    union = reduce(lambda a, b: a + b, mixing.matrices)
    count, group = connected_components(union, directed=True, connection="strong")
    if count > 1:
        raise UserError(
            f'topology = "{mixing.topology}", mixing = "{mixing.weights}": the {mixing.N} workers are not '
            f"connected but in {count} groups: there are not paths both ways between workers "
            f"0 and {np.flatnonzero(group != group[0])[0]}"
        )


def _words(mixing: Mixing) -> str:
    """`Report.name`."""
    name, kind, N = mixing.topology, mixing.weights, mixing.N
    topology = (
        f"torus {'×'.join(map(str, torus_shape(N)))}"
        if name == "torus"
        else f"{WORDS.get(name, name)} of {N}"
    )
    weights = {"metropolis": "Metropolis", "laplacian": "Laplacian"}.get(kind, kind)
    if name == ONE_PEER:
        return f"{topology}, weights 1/2"
    return f"{topology}, {weights} weights" if kind in WEIGHTS else f"{topology}, weights of {kind}"
