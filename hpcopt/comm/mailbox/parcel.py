"""What travels: one block of host memory, a header of eight integers and then the vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcopt.comm.ports import Full
from hpcopt.costs.volumes import PARCEL_HEADER

HEADER = PARCEL_HEADER
"""bytes; the vector begins on a cache line of its own"""
NUMBER, COUNT, STAMP, STAMPS, LENGTH, BYTES = range(6)
"""places in the header: the fields of `hpcopt.comm.ports.Mail`, how many numbers, how many bytes in all"""
TOLD = 2
"""numbers that a target tells: entries that are free again, puts that were collected"""

Bytes = NDArray[np.uint8]


class Parcel:
    """Room for one vector of at most as many numbers as ``like`` has; pinned where ``like`` is on a GPU."""

    def __init__(self, like: Tensor) -> None:
        pinned = like.device.type != "cpu"
        raw = torch.empty(room(like), dtype=torch.uint8, pin_memory=pinned)
        self.bytes: Bytes = raw.numpy()
        self.header: NDArray[np.int64] = self.bytes[:HEADER].view(np.int64)
        self._numbers = raw[HEADER : HEADER + len(like) * like.element_size()].view(like.dtype)

    @property
    def vector(self) -> Tensor:
        """What it holds, in host memory, a view."""
        return self._numbers[: int(self.header[LENGTH])]

    @property
    def used(self) -> Bytes:
        """The bytes that travel."""
        return self.bytes[: int(self.header[BYTES])]

    def fill(self, vector: Tensor, number: int, stamp: int) -> None:
        """Takes one vector."""
        nbytes = HEADER + len(vector) * vector.element_size()
        self.header[:6] = number, 1, stamp, stamp, len(vector), nbytes
        self.vector.copy_(vector)

    def meet(self, vector: Tensor, stamp: int, full: Full) -> None:
        """Takes one more vector of the same length, where no other can be sent."""
        assert len(vector) == self.header[LENGTH], "vectors between the same workers have one length"
        self.header[COUNT] += 1
        self.header[STAMPS] += stamp
        if full == "add":
            self.vector.add_(vector)
        else:
            self.vector.copy_(vector)
            self.header[STAMP] = stamp


def room(like: Tensor) -> int:
    """The bytes of a parcel, whole cache lines."""
    return -(-(HEADER + len(like) * like.element_size()) // 64) * 64


def pieces(nbytes: int, total: int, largest: int, act: Callable[[int, int], Any]) -> list[Any]:
    """What ``act`` gives for ranges of ``nbytes``, as many as ``total`` bytes need: the last may be empty."""
    starts = range(0, total, largest)
    return [act(min(start, nbytes), min(start + largest, nbytes)) for start in starts]
