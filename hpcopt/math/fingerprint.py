"""Short texts that tell what is different apart: of arrays, and of plain values.

Whole numbers count by their bits. Of floating-point numbers the norm and a sum with weights are told to a few
digits: machines round differently, and a run may go on on another one.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from crc32c import crc32c
from numpy.typing import NDArray

PIECE = 1 << 16
"""numbers of an array that are looked at at a time"""
SHOWN = 60
"""letters of a value"""


def fingerprint(array: Any) -> str:
    """Of an array, or of a tensor on any device: dtype, shape, and what is in it."""
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    numbers = np.asarray(array)
    kind = f"{numbers.dtype.newbyteorder('=')}{list(numbers.shape)}"
    if numbers.dtype.kind != "f":
        return f"{kind} {crc32c(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8).data):08x}"
    norm, weighted = _sums(numbers.reshape(-1))
    return f"{kind} {norm:.6g} {weighted / norm if norm else 0:.5f}"


def digest(thing: Any) -> str:
    """Of plain values, as JSON has them."""
    return f"{crc32c(json.dumps(thing, default=str).encode()):08x}"


def plain(thing: Any) -> str:
    """A plain value as a text, a long one by its beginning and its digest."""
    text = repr(thing)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}… ({digest(thing)})"


def _sums(flat: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """‖x‖ and Σ w_i x_i, weights between −1 and 1 that depend on the place."""
    wave = np.cos(np.arange(min(PIECE, flat.size)))
    square = weighted = 0.0
    with np.errstate(all="ignore"):
        for k, start in enumerate(range(0, flat.size, PIECE)):
            piece = flat[start : start + PIECE].astype(np.float64)
            square += float(piece @ piece)
            weighted += float(np.cos(k) * (piece @ wave[: len(piece)]))
    return square**0.5, weighted
