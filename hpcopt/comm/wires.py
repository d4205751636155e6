"""What MPI reads and writes: NumPy arrays in host memory, or tensors where it takes the GPU's as they are.

What is written for the one works with the other: slices, ``+=``, ``dtype.itemsize``. Here is the rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

Wire = Any
"""a NumPy array or a tensor, (m,)"""


def empty(size: int, like: Wire) -> Wire:
    """Memory (size,) of the dtype of a wire, where that is."""
    return np.empty(size, like.dtype) if isinstance(like, np.ndarray) else like.new_empty(size)


def settle(wire: Wire) -> None:
    """Returns when what was computed in a wire's memory is there, for MPI knows of no stream."""
    if isinstance(wire, torch.Tensor) and wire.is_cuda:
        torch.cuda.current_stream(wire.device).synchronize()
