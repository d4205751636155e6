"""The ports that methods communicate through, as protocols, and their counters.

A method never sees a communicator or a rank: it hands over what its workers here contribute and gets
back what all workers made together. Every port has an implementation over MPI and a twin in one process
(`hpcopt.comm.local_ports`) that serves as the oracle in tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from hpcopt.comm.mailbox.port import Agreed as Agreed
from hpcopt.comm.mailbox.port import Full as Full
from hpcopt.comm.mailbox.port import Mail as Mail
from hpcopt.comm.mailbox.port import Mailbox as Mailbox
from hpcopt.comm.mailbox.port import Receive as Receive
from hpcopt.comm.mailbox.port import Transport as Transport
from hpcopt.costs.volumes import Exchange as Exchange

if TYPE_CHECKING:
    from torch import Tensor

    from hpcopt.math.mixing import Mixing

Select = Literal["local", "global"]
Way = Callable[[], object]
VERBS = ("sum", "scatter", "gather", "scalars", "slices")
"""of a `Reducer`"""


@dataclass
class Counter:
    """What a port, or one verb of a port that has several, cost on this rank so far.

    Attributes:
        calls: uses.
        bytes: bytes sent by this rank (see `hpcopt.costs.volumes` for the definition with collectives).
        bytes_workers: the same, had every worker a rank of its own; this rank's share.
        payload: bytes that were handed over here to be sent, however they then travelled.
        seconds: wall time inside the port [s].
        passes: allreduces of whole vectors; a reduce-scatter or an allgather is half of one.
        elsewhere: seconds of ranks that compute beside the rounds, where the counter is of that [s].
    """

    calls: int = 0
    bytes: float = 0.0
    bytes_workers: float = 0.0
    payload: float = 0.0
    seconds: float = 0.0
    passes: float = 0.0
    elsewhere: float = 0.0

    def add(
        self, since: float, bytes: float, bytes_workers: float, payload: float, passes: float = 0.0
    ) -> None:
        """Counts one call that began at ``since`` (`time.perf_counter`)."""
        self.calls += 1
        self.bytes += bytes
        self.bytes_workers += bytes_workers
        self.payload += payload
        self.seconds += time.perf_counter() - since
        self.passes += passes


class Gradients(Protocol):
    """What a reducer needs of a problem: see `hpcopt.problems.base.Problem`."""

    def gradients(
        self, X: Tensor, draw: Any = None, *, weighted: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """One row per worker here."""

    def total_gradient(
        self,
        X: Tensor,
        draw: Any = None,
        *,
        out: Tensor | None = None,
        ready: Callable[[int, int], None] | None = None,
    ) -> Tensor:
        """Their weighted sum."""

    def hvps(self, X: Tensor, V: Tensor, draw: Any = None, *, weighted: bool = False) -> Tensor:
        """One row per worker here."""

    def total_hvp(self, X: Tensor, V: Tensor, draw: Any = None, *, out: Tensor | None = None) -> Tensor:
        """Their weighted sum."""


class Products(Protocol):
    """What a contribution needs of a linear problem: see `hpcopt.problems.linear_problem.LinearProblem`."""

    def transposed(self, c: Tensor, out: Tensor) -> None:
        """out += Xᵀ c, (d,)."""

    def transposed_each(self, c: Tensor, out: Tensor) -> None:
        """out_i += X_pᵀ c_p, (n, d)."""


class Contribution(Protocol):
    """What the workers here contribute to a sum over all N workers: one sum after the other, in one buffer.

    Workers add, in any order and as often as they like; `sum` or `scatter` ends it, and what is added next
    belongs to the next sum.
    """

    def of(self, i: int) -> Tensor:
        """Where worker i (from 0 here) adds what it contributes, (m,): other workers may have been there."""

    def add(self, i: int, vector: Tensor, weight: float = 1.0) -> None:
        """Adds ``weight`` times a vector (m,) for worker i (from 0 here)."""

    def add_gradients(self, problem: Gradients, x: Tensor, draw: Any = None) -> Contribution:
        """Adds ω_n ∇f_n(x) of every worker here; x is (d,) or (n, d). Gives itself."""

    def add_hvps(self, problem: Gradients, x: Tensor, v: Tensor, draw: Any = None) -> Contribution:
        """Adds ω_n ∇²f_n(x) v of every worker here; x and v are (d,) or (n, d). Gives itself."""

    def add_transposed(self, problem: Products, c: Tensor) -> Contribution:
        """Adds X_pᵀ c_p of every worker here, c (r,) a number of each of their rows. Gives itself."""

    def sum(self) -> Tensor:
        """The sum over all workers, (m,), the same bits everywhere; until this is used again. Collective."""

    def scatter(self) -> Tensor:
        """This rank's slice of the sum, as `Reducer.own` says; new memory. Collective."""


class Reducer(Protocol):
    """Sums over all workers. Every call but `contribution` and `own` is collective over the run's ranks.

    In which order a sum is carried out, in what pieces, and whether it travels while the rest is computed,
    is the port's own business. A "pass" is counted for a sum of d numbers, d the model's.

    Attributes:
        counters: what each of the `VERBS` cost so far.
    """

    counters: dict[str, Counter]

    def gradient(self, problem: Gradients, x: Tensor, draw: Any = None) -> Tensor:
        """Σ_n ω_n ∇f_n(x) over all workers, (d,), the same bits on every rank, until the next call.

        Counted as a "sum".

        Args:
            problem: the workers here.
            x: (d,), or (n, d).
            draw: which mini-batch; None for all rows.
        """

    def contribution(self, size: int) -> Contribution:
        """A buffer for sums of vectors of ``size`` numbers of the model's dtype. Local."""

    def sum(self, rows: Tensor) -> Tensor:
        """The sum of a vector of each worker: (n, m) here, to (m,), the same bits on every rank."""

    def scalars(self, rows: Tensor) -> Tensor:
        """As `sum`, of a few numbers: (n, k) to (k,); no pass is counted."""

    def slices(self, values: Tensor) -> Tensor:
        """The sum over *ranks* of what their slices of vectors contribute, a dot product, say: (k,) to (k,).

        Its last bits depend on where the slices begin and end, and so on the number of ranks.
        """

    def own(self, size: int) -> range:
        """This rank's slice of a vector of length ``size``."""

    def allgather(self, piece: Tensor, size: int, by_worker: bool = False) -> Tensor:
        """The whole vector, (size,), from every rank's slice of it.

        Args:
            piece: this rank's.
            size: of the vector.
            by_worker: slices are those of the workers, worker p's being `block(size, N, p)`, and a rank has
                those of its workers. Where they begin then does not depend on the number of ranks.
        """

    def free(self) -> None:
        """Frees buffers and communicators. Collective."""


@dataclass(frozen=True)
class Aggregate:
    """The sum of sparse vectors; valid until the next sum through the same port.

    Attributes:
        dense: (d,), zero outside of ``support``; belongs to the port and must not be changed.
        support: the entries that at least one worker gave, (u,) int64, ascending; after a global selection
            those that are left.
    """

    dense: Tensor
    support: Tensor

    def holds(self, indices: Tensor) -> Tensor:
        """Which of some indices are in the support, bool, same shape."""
        if not len(self.support):
            return torch.zeros_like(indices, dtype=torch.bool)
        at = torch.searchsorted(self.support, indices.contiguous()).clamp_(max=len(self.support) - 1)
        return self.support[at] == indices


class SparseSum(Protocol):
    """Sums vectors of which every worker gives a few entries. Every call is collective over the run's ranks.

    Attributes:
        counter: what it cost so far. ``bytes``: of indices and values that left this rank; an allgather of n
            bytes counts as n(P - 1)/P per rank. ``bytes_workers`` and ``passes``: with N ranks and, where the
            exchange is "auto", the plan that then needs the fewest bytes, all ranges equally full; so they do
            not depend on the ranks. What ranks tell each other about lengths is not counted.
    """

    counter: Counter

    def sum(self, indices: Tensor, values: Tensor, expected: int = 0) -> Aggregate:
        """The sum over all workers, the same bits on every rank.

        Args:
            indices: one row per worker here, (n, k) int64, ascending.
            values: (n, k).
            expected: about how many entries the sum will have, for example as many as the last one; 0 if
                nobody knows. Helps to choose a plan; the same on every rank.
        """

    def affordable(self, densities: tuple[float, ...]) -> float:
        """The largest of some densities (1: dense) that costs little more than the fastest of them.

        "Little" is a quarter, and never more than the dense sum. A pure function of what was measured when
        the port was opened, which is stored with the run.
        """

    def free(self) -> None:
        """Frees buffers and communicators. Collective."""


class Neighbours(Protocol):
    """Averages of the workers' vectors with those of their neighbours. Every call is collective.

    Attributes:
        counter: what it cost so far; a row that several workers of another rank need travels there once.
            Where all rows of W are the same, a mix is one sum over the workers, and of whole models a pass.
    """

    counter: Counter

    def mix(self, X: Tensor, round: int) -> None:
        """X ← W X in place, with the W of a round.

        Args:
            X: one row per worker here, (n, m); rows are contiguous, X need not be.
            round: counted from 0.
        """

    def begin(self, X: Tensor, round: int) -> Tensor:
        """Sends off a `mix` whose effect `finish` adds later: a snapshot of X, (n, m), that must be kept."""

    def finish(self, X: Tensor, snapshot: Tensor) -> None:
        """X ← X + (W − I) snapshot: what `mix` would have changed when it began, applied to what X is now.

        Another method mathematically: neighbours are averaged with a delay of what happened in between.
        """

    def free(self) -> None:
        """Frees buffers, requests and communicators. Collective."""


@dataclass(frozen=True)
class Answer:
    """What a `Task` computes.

    Attributes:
        columns: (d here, q), a slice.
        numbers: (m,) float64 on the CPU, the same on every rank.
        samples: sample gradients that it took on ranks that host no worker; each is told to one rank.
    """

    columns: Tensor
    numbers: Tensor
    samples: int = 0


@dataclass(frozen=True)
class Task:
    """What may be computed while rounds go on, over all N workers and in slices, wherever these are.

    Attributes:
        size: d, of what is in slices, as `Reducer.own` says.
        rows: r, of a request.
        columns, numbers: q and m, of an answer.
        compute: a request (r, d here), its number, and what is to be called before each part of the work and
            may end it by raising -> the answer. Collective over the ranks that compute.
    """

    size: int
    rows: int
    columns: int
    numbers: int
    compute: Callable[[Tensor, int, Callable[[], None]], Answer]


class Beside(Protocol):
    """A task's way from those who make the rounds to those who compute it, and back.

    Not a port: what travels, travels by `Mailbox`. One request is under way at most.
    """

    def ask(self, request: Tensor, number: int) -> None:
        """Hands a request over: this rank's slice, (r, d here), which is copied. Nobody waits. Local."""

    def arrived(self) -> bool:
        """Whether the answer is here. Local; to be called now and then, for the mail moves within."""

    def take(self) -> Answer:
        """The answer, once it is here. Collective."""


class Ports(Protocol):
    """The ports of one run: methods open in their `start` those that they need, several of a kind if need be.

    Attributes:
        reduce: dense sums; always there.
        wish: what this rank wishes of the run, 0: nothing; read, also by threads, by ports that agree on
            something while ranks compute.
    """

    reduce: Reducer
    wish: Callable[[], int]

    def fastest(self, name: str, ways: Mapping[str, Way | None]) -> str:
        """Which way of computing something is fastest here, the same on every rank. Collective.

        Timed where a run begins, on the slowest rank, and remembered where it goes on. Where sums are in the
        order of the workers it is the first, untimed, so that the bits depend on no clock.

        Args:
            name: under which it is remembered.
            ways: name -> what to time, which must wait for the device; None: not possible on this rank. The
                first is possible everywhere.
        """

    def agree_same(self, digest: str, message: str) -> None:
        """Raises `UserError` with this message, on every rank, where their digests differ. Collective."""

    def beside(self, task: Task) -> Beside:
        """Has a task computed by the ranks that host no worker, or, without such, in line. Collective.

        Args:
            task: as it is computed in line; ranks without workers have that of
                `hpcopt.methods.base.Method.beside`.
        """

    def neighbours(self, like: Tensor, mixing: Mixing) -> Neighbours:
        """Opens a port for averages between neighbours. Collective.

        Args:
            like: a vector (m,) of the dtype and on the device of the rows.
            mixing: the matrices W, (N, N).
        """

    def sparse_sum(self, like: Tensor, exchange: Exchange = "auto", select: Select = "local") -> SparseSum:
        """Opens a port for sums of sparse vectors. Collective.

        Args:
            like: a vector (d,) of the dtype and on the device of the values.
            exchange: the plan, or "auto".
            select: "global": of every sum, only the k largest entries that are not zero are kept.
        """

    def mailbox(
        self,
        like: Tensor,
        links: Iterable[tuple[int, int]] | None = None,
        depth: int = 4,
        transport: Transport = "auto",
        full: Full = "add",
        receive: Receive | None = None,
    ) -> Mailbox:
        """Opens a port for vectors that workers put to each other without waiting. Collective.

        Args:
            like: a vector (m,), as long as the longest, of the dtype and on the device of all of them.
            links: (origin, to), the same on every rank; None: every worker to every worker.
            depth: K, the most vectors of a link that are under way.
            transport: "windows" (one-sided), "messages", or "auto": within a host windows if they are right,
                which is tried, else messages.
            full: what becomes of a put where K are under way and one more waits: it is added to that one, or
                takes its place.
            receive: see `Mailbox`; None: `Mailbox.collect` gives what has arrived.
        """
