"""Files of torch, the one thing here for which it has to be there; imported when such a file is written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray


def save(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Writes arrays as a ``state_dict`` that `torch.load` reads."""
    torch.save({name: torch.tensor(array) for name, array in arrays.items()}, path)
