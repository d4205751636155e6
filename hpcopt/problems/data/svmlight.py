"""The svmlight (libsvm) text format: ``label index:value index:value … # comment``, a row per line.

Indices count from 1 and ascend. Blank lines and comments are skipped. ``qid:`` is refused: what it says about
rows that belong together would be lost. A name that ends in .gz, .bz2 or .xz is decompressed on the way.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import warnings
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from hpcopt.errors import UserError
from hpcopt.problems.data.columns import damage_is_user_error
from hpcopt.problems.data.svmlight_faults import first_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

BLOCK_BYTES = 1 << 20
LINE_BYTES = 64 << 20  # a line is held in memory
LARGEST_INDEX = 2**53 - 1  # numbers are read as float64
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMMENT = re.compile(rb"#[^\n]*")
SPACE, NEWLINE, COLON, DIGIT, SIGN, OTHER = range(6)
"""kinds of characters: those from DIGIT on make up words"""
KINDS = np.full(256, OTHER, np.uint8)
KINDS[list(b" \t\r")] = SPACE
KINDS[list(b"\n")] = NEWLINE
KINDS[list(b":")] = COLON
KINDS[list(b"0123456789")] = DIGIT
KINDS[list(b"+-.eE")] = SIGN


@dataclass(frozen=True)
class Block:
    """Some rows of a file.

    Attributes:
        labels: (r,) float64.
        lengths: numbers in each row, (r,) int64.
        indices: of all numbers, row after row, counted from 0, (nnz,) int64.
        values: (nnz,) float64, finite.
    """

    labels: NDArray[np.float64]
    lengths: NDArray[np.int64]
    indices: NDArray[np.int64]
    values: NDArray[np.float64]


def blocks(path: Path, features: int | None = None) -> Iterator[Block]:
    """The rows of a file, front to back, about 1 MiB of text at a time.

    Args:
        path: the file.
        features: the largest index that is allowed, or None.

    Raises:
        UserError: names the file, the line, what stands there and what is allowed.
    """
    most = LARGEST_INDEX if features is None else features
    for line, text in _texts(path):
        block = parsed(text, most)
        if block is None:
            # What is wrong, and where, is looked for only now: line by line it takes fifty times as long.
            place, fault = first_fault(text, most)
            raise UserError(f"{path}: line {line + place}: {fault}")
        yield block


def _texts(path: Path) -> Iterator[tuple[int, bytes]]:
    """Whole lines, with the number of the first of them."""
    line, pending, size = 1, list[bytes](), 0
    with damage_is_user_error(str(path)):
        stream: IO[bytes] = OPENERS.get(path.suffix.lower(), open)(path, "rb")
    with stream:
        while piece := _read(stream, path):
            head, newline, tail = piece.rpartition(b"\n")
            if newline:
                text = b"".join([*pending, head, newline])
                yield line, text
                line, pending, size = line + text.count(b"\n"), [], 0
            pending.append(tail)
            size += len(tail)
            if size > LINE_BYTES:
                raise UserError(f"{path}: line {line}: is longer than {LINE_BYTES >> 20} MiB; is this text?")
    if size:
        yield line, b"".join(pending)


def _read(stream: IO[bytes], path: Path) -> bytes:
    with damage_is_user_error(str(path)):
        return stream.read(BLOCK_BYTES)


def parsed(text: bytes, most: int) -> Block | None:
    """The rows in some whole lines, or None if there is anything wrong with them."""
    if b"#" in text:
        text = COMMENT.sub(b"", text)
    text = b"\n" + text + b"\n"
    kinds = np.frombuffer(text.translate(KINDS.tobytes()), np.uint8)
    if (kinds == OTHER).any():
        return None
    inside = kinds >= DIGIT
    edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts, ends = edges[::2], edges[1::2]
    numbers = _numbers(text) if len(starts) else np.empty(0)
    if numbers is None or len(numbers) != len(starts) or not np.isfinite(numbers).all():
        return None
    labels = _first_of_lines(kinds, starts)
    lengths, odd = np.divmod(np.diff(labels, append=len(starts)) - 1, 2)
    paired = np.ones(len(starts), np.bool_)
    paired[labels] = False
    places = np.flatnonzero(paired)[::2]
    if odd.any() or not _are_pairs(kinds, starts, ends, places):
        return None
    indices = numbers[places]
    if not _ascend(indices, lengths, most):
        return None
    return Block(numbers[labels], lengths, indices.astype(np.int64) - 1, numbers[places + 1])


def _numbers(text: bytes) -> NDArray[np.float64] | None:
    """All numbers, or None where something is none; "1-2" may be read as two."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # older versions of NumPy warn of what newer ones refuse
        try:
            return np.fromstring(text.replace(b":", b" ").decode("ascii"), sep=" ")
        except (ValueError, DeprecationWarning):
            return None


def _first_of_lines(kinds: NDArray[np.uint8], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which of the words that begin at ``starts`` are the first of a line."""
    first = np.searchsorted(starts, np.flatnonzero(kinds == NEWLINE))
    return first[np.diff(first, append=len(starts)) > 0]


def _are_pairs(
    kinds: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64], index: NDArray[np.int64]
) -> bool:
    """Whether the words ``index`` have digits alone, and one colon joins each to the next, and no others."""
    joined = (kinds[ends[index]] == COLON) & (ends[index] + 1 == starts[index + 1])
    if not joined.all() or np.count_nonzero(kinds == COLON) != len(index):
        return False
    signs = np.searchsorted(starts, np.flatnonzero(kinds == SIGN), side="right") - 1
    is_index = np.zeros(len(starts), np.bool_)
    is_index[index] = True
    return not is_index[signs].any()


def _ascend(indices: NDArray[np.float64], lengths: NDArray[np.int64], most: int) -> bool:
    """Whether indices are 1…most and ascend in every row."""
    if len(indices) == 0:
        return True
    rises = np.diff(indices, prepend=0) > 0
    begins = np.cumsum(lengths) - lengths
    rises[begins[lengths > 0]] = True
    return bool(rises.all() and indices.min() >= 1 and indices.max() <= most)
