"""Which worker gets which rows: a pure function of the labels, the arguments and the seed.

Kinds (N workers, rows of a worker in ascending order):

- ``iid``: all rows shuffled and split evenly; sizes differ by at most one.
- ``dirichlet``: each class is split over the workers by proportions from Dir(α), without a cap.
- ``classes``: each worker holds ``classes_per_worker`` classes, chosen so that classes are used equally
  often (all of them if N · classes_per_worker allows; rows of the others are not used), and a class is split
  evenly among its workers.
- ``unequal``: iid with sizes proportional to Dir(α), each at least 1.
- ``blocks``: worker i has the i-th contiguous block of rows, one piece of the file; sizes differ by at most
  one, larger ones first. A fair sample where rows lie in random order, as the import puts sparse ones.

Every worker has at least one training row: where a label split leaves one empty, the worker with most rows
(the first of them) gives it its last row.

Test rows follow the training rows: evenly (iid, blocks), by size (unequal), or class by class in proportion
to the training rows of that class on each worker; test rows of a class that nobody trains on are spread
evenly. A worker may have no test rows.

With ``samples_per_worker = n`` a worker has exactly n training rows. ``dirichlet``: worker i draws
p_i ~ Dir(α) over the classes and n rows with these proportions, without replacement; workers draw
independently, so they may share rows. Where a class has too few rows, the rest is drawn from the other
classes in proportion to p_i. Its test rows, ⌊T/N⌋ of T or fewer where a class would run out, have the
proportions of its training rows; workers may share these, too. With the other kinds the rows stay disjoint:
n of the worker's own share, with its proportions of labels (so ``unequal`` becomes ``iid``), or the first n
of its block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.errors import UserError
from hpcopt.ground.placement import block
from hpcopt.ground.words import suggestion
from hpcopt.math.streams import stream
from hpcopt.problems.data.apportion import (
    apportion,
    counts_like,
    counts_within,
    dirichlet,
    rows_by_class,
    rows_by_owner,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Rows = NDArray[np.int64]

KINDS = ("iid", "dirichlet", "classes", "unequal", "blocks")
UNUSED = -1


@dataclass(frozen=True)
class Partition:
    """Row numbers of every worker, ascending int64; ``test`` is None if there are no test rows at all."""

    train: list[Rows]
    test: list[Rows] | None


def partition(
    train_labels: NDArray[Any],
    test_labels: NDArray[Any] | None,
    workers: int,
    *,
    kind: str,
    alpha: float = 0.5,
    classes_per_worker: int = 2,
    samples_per_worker: int | None = None,
    seed: int,
) -> Partition:
    """Spreads rows over N workers; see the module for what each kind does.

    Args:
        train_labels: (rows,) class numbers; for iid, unequal and blocks any targets (rows, …).
        test_labels: the same for the test rows, or None.
        workers: N.
        kind: "iid", "dirichlet", "classes", "unequal" or "blocks".
        alpha: α > 0, for dirichlet and unequal.
        classes_per_worker: for classes.
        samples_per_worker: n, or None to share out all rows.
        seed: the run's seed.

    Raises:
        UserError: the arguments do not fit the data; names the key and what is allowed.
    """
    _check(train_labels, workers, kind, alpha, samples_per_worker)
    if kind == "blocks":
        return _blocks(len(train_labels), test_labels, workers, samples_per_worker)
    if kind in ("iid", "unequal"):
        n = samples_per_worker
        return _by_size(
            len(train_labels), test_labels, workers, alpha if kind == "unequal" else None, n, seed
        )
    for labels in (train_labels, test_labels):
        if labels is not None and (labels.ndim != 1 or labels.dtype.kind not in "iub"):
            raise UserError(
                f'problem.partition = "{kind}" needs class labels, but the targets are {labels.dtype} of '
                f'shape {labels.shape}: use "iid", "unequal" or "blocks"'
            )
    if kind == "dirichlet" and samples_per_worker is not None:
        return _sampled(train_labels, test_labels, workers, alpha, samples_per_worker, seed)
    rng = stream(seed, "partition")
    if kind == "dirichlet":
        owner = _split_by_dirichlet(train_labels, workers, alpha, rng)
    else:
        owner = _split_by_classes(train_labels, workers, classes_per_worker, rng)
    _feed_empty(owner, workers)
    if samples_per_worker is not None:
        _thin(owner, train_labels, workers, samples_per_worker, rng)
    if test_labels is None:
        return Partition(rows_by_owner(owner, workers), None)
    test = _split_like(owner, train_labels, test_labels, workers, stream(seed, "partition test"))
    return Partition(rows_by_owner(owner, workers), rows_by_owner(test, workers))


def _check(labels: NDArray[Any], workers: int, kind: str, alpha: float, samples: int | None) -> None:
    if kind not in KINDS:
        hint = suggestion(kind, KINDS, '"')
        raise UserError(f'problem.partition = "{kind}" is not known: allowed are {", ".join(KINDS)}{hint}')
    if not 1 <= workers <= len(labels):
        raise UserError(f"run.workers = {workers}: must be 1…{len(labels)}, the number of training rows")
    if not 0 < alpha < np.inf:
        raise UserError(f"problem.alpha = {alpha}: must be a finite number above 0")
    # Only dirichlet lets workers share rows.
    most = len(labels) if kind == "dirichlet" else len(labels) // workers
    if samples is not None and not 1 <= samples <= most:
        raise UserError(
            f'problem.samples_per_worker = {samples}: must be 1…{most} for partition = "{kind}" of '
            f"{len(labels)} rows over {workers} workers"
        )


def _blocks(rows: int, test_labels: NDArray[Any] | None, workers: int, n: int | None) -> Partition:
    train = [_range(block(rows, workers, worker))[:n] for worker in range(workers)]
    if test_labels is None:
        return Partition(train, None)
    return Partition(train, [_range(block(len(test_labels), workers, worker)) for worker in range(workers)])


def _range(rows: range) -> Rows:
    return np.arange(rows.start, rows.stop)


def _by_size(
    rows: int, test_labels: NDArray[Any] | None, workers: int, alpha: float | None, n: int | None, seed: int
) -> Partition:
    """iid (alpha None) and unequal: only the sizes matter."""
    rng = stream(seed, "partition")
    if n is not None:
        sizes = np.full(workers, n)
    elif alpha is None:
        sizes = _even(rows, workers)
    else:
        sizes = 1 + apportion(rows - workers, dirichlet(alpha, workers, rng), rng)
    train = _deal(rng.permutation(rows), sizes)
    if test_labels is None:
        return Partition(train, None)
    rng = stream(seed, "partition test")
    total = len(test_labels)
    sizes = _even(total, workers) if alpha is None else apportion(total, sizes, rng)
    return Partition(train, _deal(rng.permutation(total), sizes))


def _even(rows: int, workers: int) -> Rows:
    return np.diff(np.arange(workers + 1) * rows // workers)


def _deal(rows: Rows, sizes: Rows) -> list[Rows]:
    """The first rows to worker 0, the next to worker 1, …; each worker's in ascending order."""
    ends = np.cumsum(sizes).tolist()
    return [np.sort(rows[end - size : end]) for end, size in zip(ends, sizes.tolist(), strict=True)]


def _split_by_dirichlet(labels: NDArray[Any], workers: int, alpha: float, rng: np.random.Generator) -> Rows:
    """The worker of every row, (rows,): each class by its own Dir(α)."""
    owner = np.full(len(labels), UNUSED, np.int64)
    for rows in rows_by_class(labels).values():
        counts = apportion(len(rows), dirichlet(alpha, workers, rng), rng)
        owner[rng.permutation(rows)] = np.repeat(np.arange(workers), counts)
    return owner


def _split_by_classes(
    labels: NDArray[Any], workers: int, classes_per_worker: int, rng: np.random.Generator
) -> Rows:
    """The worker of every row, (rows,), or UNUSED where no worker holds the class."""
    by_class = list(rows_by_class(labels).values())
    if not 1 <= classes_per_worker <= len(by_class):
        raise UserError(
            f"problem.classes_per_worker = {classes_per_worker}: must be 1…{len(by_class)} (classes)"
        )
    holders: list[list[int]] = [[] for _ in by_class]
    for worker in range(workers):
        used = np.array([len(held) for held in holders])
        for c in np.lexsort((rng.random(len(by_class)), used))[:classes_per_worker]:
            holders[c].append(worker)
    owner = np.full(len(labels), UNUSED, np.int64)
    for rows, held in zip(by_class, holders, strict=True):
        if held:
            counts = apportion(len(rows), np.ones(len(held)), rng)
            owner[rng.permutation(rows)] = np.repeat(held, counts)
    return owner


def _split_like(
    owner: Rows, train_labels: NDArray[Any], labels: NDArray[Any], workers: int, rng: np.random.Generator
) -> Rows:
    """The worker of every test row: each class in proportion to the workers' training rows of it."""
    trained = rows_by_class(train_labels)
    out = np.full(len(labels), UNUSED, np.int64)
    for label, rows in rows_by_class(labels).items():
        owners = owner[trained[label]] if label in trained else owner[:0]
        weights = np.bincount(owners[owners != UNUSED], minlength=workers)
        if label in trained and not weights.any():
            continue  # a class that no worker holds, and whose training rows are not used either
        counts = apportion(len(rows), weights if weights.any() else np.ones(workers), rng)
        out[rng.permutation(rows)] = np.repeat(np.arange(workers), counts)
    return out


def _feed_empty(owner: Rows, workers: int) -> None:
    """Gives every worker without rows the last row of the one with most, in place."""
    by_owner = np.argsort(owner, kind="stable")
    sizes = np.bincount(owner[owner != UNUSED], minlength=workers)
    ends = np.cumsum(sizes) + np.count_nonzero(owner == UNUSED)
    for worker in np.flatnonzero(sizes == 0):
        richest = int(np.argmax(sizes))
        ends[richest] -= 1
        owner[by_owner[ends[richest]]] = worker
        sizes[richest] -= 1
        sizes[worker] = 1


def _thin(owner: Rows, labels: NDArray[Any], workers: int, n: int, rng: np.random.Generator) -> None:
    """Leaves every worker n rows with the label proportions of its share, in place."""
    shares = rows_by_owner(owner, workers)
    smallest = min(len(rows) for rows in shares)
    if n > smallest:
        raise UserError(
            f"problem.samples_per_worker = {n}: must be 1…{smallest}, the rows of the worker with the fewest"
        )
    for rows in shares:
        by_class = [rows[place] for place in rows_by_class(labels[rows]).values()]
        counts = apportion(n, np.array([len(part) for part in by_class]), rng)
        for part, count in zip(by_class, counts, strict=True):
            owner[rng.permutation(part)[count:]] = UNUSED


def _sampled(
    train_labels: NDArray[Any],
    test_labels: NDArray[Any] | None,
    workers: int,
    alpha: float,
    n: int,
    seed: int,
) -> Partition:
    """dirichlet with samples_per_worker: each worker draws for itself, from its own stream."""
    by_class = rows_by_class(train_labels)
    pools = list(by_class.values())
    test_by_class = {} if test_labels is None else rows_by_class(test_labels)
    test_pools = [test_by_class.get(label, np.empty(0, np.int64)) for label in by_class]
    room, test_room = (np.array([len(pool) for pool in part]) for part in (pools, test_pools))
    quota = 0 if test_labels is None else max(1, len(test_labels) // workers)
    train, test = [], []
    for worker in range(workers):
        rng = stream(seed, "partition", worker)
        counts = counts_within(n, dirichlet(alpha, len(pools), rng), room, rng)
        train.append(_draw(pools, counts, rng))
        test.append(_draw(test_pools, counts_like(quota, counts, test_room, rng), rng))
    return Partition(train, None if test_labels is None else test)


def _draw(pools: list[Rows], counts: Rows, rng: np.random.Generator) -> Rows:
    """That many rows of each pool, without replacement, ascending."""
    parts = [
        rng.choice(pool, int(count), replace=False, shuffle=False)
        for pool, count in zip(pools, counts, strict=True)
        if count
    ]
    return np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
