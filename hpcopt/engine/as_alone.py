"""Several runs in one process, each as if it were alone there."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hpcopt.engine.record import forget_peak


@contextmanager
def quiet() -> Iterator[None]:
    """Within, runs write to their log.jsonl only: many at once would not be read."""
    before = os.environ.get("HPCOPT_PROGRESS")
    os.environ["HPCOPT_PROGRESS"] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HPCOPT_PROGRESS"]
        else:
            os.environ["HPCOPT_PROGRESS"] = before


class Surroundings:
    """What a run may leave otherwise than it was: every case finds the process as if it were alone."""

    def __init__(self) -> None:
        self._dtype = torch.get_default_dtype()

    def restore(self) -> None:
        """As it was, and without what the last case needed."""
        torch.set_default_dtype(self._dtype)
        gc.collect()
        forget_peak()
