"""Rows on their way into a data file: checked, images turned to (C, H, W), written block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpcopt.errors import UserError
from hpcopt.problems.data.writer import SplitWriter, new_file, write_attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import h5py
    from numpy.typing import NDArray

    from hpcopt.problems.data.columns import Column

    Report = Callable[[int, int], None]


@dataclass
class Feed:
    """Rows to be written: an x and a y that are read side by side.

    Attributes:
        x: (rows, …) numbers.
        y: (rows, …) targets.
        split: "train" or "test", where the rows go.
        is_test: (rows,) bool, the rows that go to test all the same; None for none.
    """

    x: Column
    y: Column
    split: str
    is_test: NDArray[np.bool_] | None = None

    def rows(self, split: str) -> int:
        """How many rows this brings to a split."""
        moved = 0 if self.is_test is None else int(self.is_test.sum())
        return {self.split: self.x.shape[0] - moved}.get(split, moved)


def write_feeds(out: Path, feeds: list[Feed], source: str, progress: Report | None) -> None:
    """Makes the file ``out`` of all rows of the feeds; ``source`` is what it says it was made from.

    Raises:
        UserError: the feeds do not fit together, are damaged, or the file cannot be written.
    """
    for feed in feeds:
        _check(feed)
    _check_alike(feeds)
    total = sum(feed.x.shape[0] for feed in feeds)
    done = 0
    with new_file(out, sum(feed.x.nbytes + feed.y.nbytes for feed in feeds)) as file:
        writers = {
            split: _writer(file, feeds, split)
            for split in ("train", "test")
            if any(feed.rows(split) for feed in feeds)
        }
        for feed in feeds:
            for block in _append(feed, writers):
                done += block
                if progress is not None:
                    progress(done, total)
        write_attributes(file, writers, source)


def _writer(file: h5py.File, feeds: list[Feed], split: str) -> SplitWriter:
    feed = next(feed for feed in feeds if feed.rows(split))
    x, y = (_row_shape(feed.x), _native(feed.x)), (_target_shape(feed.y), _native(feed.y))
    return SplitWriter(file, split, feed.rows(split), x, y)


def _append(feed: Feed, writers: dict[str, SplitWriter]) -> Iterator[int]:
    """Writes the feed's rows, block by block, and yields how many each block had."""
    rows, start = feed.x.block_rows, 0
    for x, y in zip(feed.x.blocks(rows), feed.y.blocks(rows), strict=True):
        x, y = _channels_first(x), y.reshape(len(y), *_target_shape(feed.y))
        try:
            if feed.is_test is None:
                writers[feed.split].append(x, y)
            else:
                chosen = feed.is_test[start : start + len(x)]
                writers["train"].append(x[~chosen], y[~chosen])
                writers["test"].append(x[chosen], y[chosen])
        except UserError as error:
            raise UserError(f"{feed.x.name}: {error}") from error
        start += len(x)
        yield len(x)


def _check(feed: Feed) -> None:
    """Raises `UserError` where x and y are no data set."""
    x, y = feed.x, feed.y
    for column in (x, y):
        if column.dtype.kind not in "buif" or column.dtype.itemsize > 8:
            raise UserError(f"{column.name}: holds {column.dtype}, not numbers of at most 8 bytes")
    if len(x.shape) < 2 or 0 in x.shape:
        raise UserError(f"{x.name}: has shape {x.shape}, but rows of at least one number are needed")
    if len(y.shape) < 1 or 0 in y.shape or y.shape[0] != x.shape[0]:
        raise UserError(f"{y.name}: has shape {y.shape}, but {x.name} has {x.shape[0]} rows")


def _check_alike(feeds: list[Feed]) -> None:
    """Raises `UserError` where the test rows do not look like the training rows."""
    first = feeds[0]
    for feed in feeds[1:]:
        # Labels may be stored in types of different size; pixels of another type have another scale.
        same_type = _native(first.x) == _native(feed.x) and first.y.dtype.kind == feed.y.dtype.kind
        if not same_type or any(
            a.shape[1:] != b.shape[1:] for a, b in ((first.x, feed.x), (first.y, feed.y))
        ):
            raise UserError(
                f"{feed.x.name} {feed.x.shape} {feed.x.dtype} and its targets {feed.y.shape} {feed.y.dtype} "
                f"do not look like the training rows {first.x.shape} {first.x.dtype} and "
                f"{first.y.shape} {first.y.dtype}"
            )


def _native(column: Column) -> np.dtype[Any]:
    return column.dtype.newbyteorder("=")


def _target_shape(y: Column) -> tuple[int, ...]:
    """A single whole number per row is a label, however it was wrapped."""
    return () if y.shape[1:] == (1,) and y.dtype.kind in "iub" else y.shape[1:]


def _channels_last(shape: tuple[int, ...]) -> bool:
    """Whether rows of this shape are images (H, W, C)."""
    return len(shape) == 3 and shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4)


def _row_shape(x: Column) -> tuple[int, ...]:
    """The shape of a row as it is stored: images are (C, H, W)."""
    shape = x.shape[1:]
    if len(shape) == 2:
        return (1, *shape)
    return (shape[2], shape[0], shape[1]) if _channels_last(shape) else shape


def _channels_first(block: NDArray[Any]) -> NDArray[Any]:
    if block.ndim == 3:
        return block[:, None]
    return np.moveaxis(block, 3, 1) if _channels_last(block.shape[1:]) else block
