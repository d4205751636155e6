"""Summing a vector over all ranks while its rest is still being computed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

# large enough for the bandwidth of a link, small enough that the first leaves early
BUCKET_BYTES = 4 << 20


class BucketedSum:
    """One sum, in buckets that a thread sends off as soon as they are complete, from the end to the start.

    A backward pass completes a gradient in that order. Buckets and their order follow from the vector's
    length alone, so that all ranks agree on them. Needs MPI_THREAD_MULTIPLE.

    Args:
        wire: the vector, (m,), to be summed in place.
        allreduce: sums a contiguous part of it in place. Collective; called from the thread.
    """

    def __init__(self, wire: NDArray[Any], allreduce: Callable[[NDArray[Any]], None]) -> None:
        step = max(1, BUCKET_BYTES // wire.itemsize)
        self._buckets = [(max(0, end - step), end) for end in range(len(wire), 0, -step)]
        self._missing = [end - start for start, end in self._buckets]
        self._complete = [threading.Event() for _ in self._buckets]
        self._wire, self._allreduce, self._step = wire, allreduce, step
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._send, name="overlap", daemon=True)
        self._thread.start()

    def ready(self, start: int, stop: int) -> None:
        """Elements [start, stop) have their final values; each may be told once."""
        size = len(self._wire)
        first, last = (size - stop) // self._step, (size - start - 1) // self._step
        for at in range(first, last + 1):
            low, high = self._buckets[at]
            self._missing[at] -= min(stop, high) - max(start, low)
            if self._missing[at] == 0:
                self._complete[at].set()

    def finish(self) -> None:
        """Everything has its final value; returns when all of it is summed."""
        for event in self._complete:
            event.set()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _send(self) -> None:
        try:
            for (start, end), event in zip(self._buckets, self._complete, strict=True):
                event.wait()
                self._allreduce(self._wire[start:end])
        except BaseException as error:  # raised again where somebody can act on it
            self._error = error
