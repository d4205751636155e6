"""A model and its loss, tried out on a few rows before the first round: what cannot be right is told then.

What one pass through the network may do beside its result, and whether the loss is a mean over rows, nobody
can read off the code; two passes over the same rows and one over parts of them show it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from crc32c import crc32c
from torch import Tensor, nn

from hpcopt.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

ROWS = 32
"""most rows of a data set on which a loss is tried"""
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-9}
"""by which numbers may differ that are computed in two ways, relative to them"""
COUNTED = "num_batches_tracked"
"""of batch normalisation; nothing depends on it"""
MOST = 1000
"""entries of a list that are looked at"""
OWN = frozenset(vars(nn.Module()))
"""what every module has"""


def rows_to_try(labels: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Row numbers, ascending: evenly from all, and of class labels one of each, as far as there is room."""
    even = np.linspace(0, len(labels) - 1, min(ROWS, len(labels))).astype(np.int64)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        return np.unique(even)
    firsts = np.unique(labels, return_index=True)[1][: ROWS // 2]
    return np.unique(np.concatenate([firsts, even[: ROWS - len(firsts)]]))


def check_loss(loss: object) -> None:
    """Raises `UserError` where what a training pass gives is no number that depends on the parameters."""
    if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.is_complex():
        what = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise UserError(f"problem.loss must return one number, the mean over the batch, not {what}")
    if not loss.requires_grad:
        raise UserError(
            "problem.loss does not depend on the parameters: it or the model's output is detached (by "
            "detach(), item(), no_grad() or argmax, say), so that there is no gradient"
        )


def check_passes(
    once: Callable[[], float], dtype: torch.dtype, model: nn.Module, others: Mapping[str, Any], kept: set[str]
) -> None:
    """Makes the same training pass twice and looks for what it leaves behind.

    A pass may fill caches; what it counts, draws or averages would be shared by all workers of a rank and be
    in no checkpoint.

    Args:
        once: a pass, from the same buffers and states of torch's generators each time; gives the loss.
        dtype: of the numbers.
        model, others: what may change; ``others`` by what they are called.
        kept: names of the model's buffers that every worker has for itself.

    Raises:
        UserError: something that matters has changed.
    """
    named = [("problem.model", model), *others.items()]
    for name, thing in others.items():
        if isinstance(thing, nn.Module) and any(p.requires_grad for p in thing.parameters()):
            raise UserError(f"{name} has parameters of its own, which nobody trains: make them the model's")
    first = once()  # fills what is only made in the first pass
    before = _memory(named, kept)
    second = once()
    changed = [name for name, value in _memory(named, kept).items() if value != before.get(name)]
    counts = [name for name in changed if before.get(name, ("",))[0] != "numbers"]
    other = not same(first, second, dtype)
    if counts or other:
        what = " and ".join(counts or changed) or "something, or draws random numbers in its own way,"
        raise UserError(
            f"a training pass changes {what} of problem.model, problem.loss or problem.augment"
            + (f": the same pass gave first {first!r} and then {second!r}" if other else "")
            + ". Only floating-point buffers of the model that its state_dict has are kept for each worker "
            "and in checkpoints, and only torch's global generator is seeded by worker and mini-batch"
        )


def kind_of_mean(loss: Callable[[slice], float], rows: int, dtype: torch.dtype) -> Literal["rows", "whole"]:
    """Whether a loss is the mean of what it is on parts of the rows; "whole": it has to see all at once.

    Args:
        loss: of a range of the rows.
        rows: how many there are.
        dtype: of the numbers.

    Raises:
        UserError: it is a sum over rows.
    """
    cut = max(1, rows // 3)
    if rows < 2:
        return "rows"
    whole = loss(slice(0, rows))
    try:
        one, two = loss(slice(0, cut)), loss(slice(cut, rows))
    except (RuntimeError, ValueError, IndexError):  # it takes no batch as small as that
        return "whole"
    if not np.isfinite([one, two]).all():
        return "whole" if np.isfinite(whole) else "rows"
    if same(whole, (cut * one + (rows - cut) * two) / rows, dtype):
        return "rows"
    if same(whole, one + two, dtype):
        raise UserError(
            f"problem.loss is a sum over rows: {whole:.6g} of {rows} rows, {one:.6g} of {cut} of them and "
            f'{two:.6g} of the others. Return the mean over the batch (reduction="mean"), so that the '
            "learning rate does not depend on the batch's size"
        )
    return "whole"


def same(a: float, b: float, dtype: torch.dtype) -> bool:
    """Whether two losses are the same but for rounding; those that are not finite say nothing."""
    if not (np.isfinite(a) and np.isfinite(b)):
        return True
    return abs(a - b) <= ROUNDING.get(dtype, 1e-3) * max(abs(a), abs(b))


def _memory(named: list[tuple[str, Any]], kept: set[str]) -> dict[str, tuple[str, str]]:
    """What things carry beside parameters and kept buffers: name -> kind and a digest of the value."""
    found = {}
    for name, value in (pair for thing in named for pair in _parts(*thing, kept)):
        told = _told(value)
        if told is not None:
            found[name] = told
    return found


def _parts(name: str, thing: Any, kept: set[str]) -> Iterator[tuple[str, Any]]:
    if isinstance(thing, nn.Module):
        for path, buffer in thing.named_buffers():
            if path not in kept and not path.endswith(COUNTED):
                yield f"{name}: {path}", buffer
        for path, module in thing.named_modules():
            for key, value in vars(module).items():
                if key not in OWN:
                    yield f"{name}: {path + '.' * bool(path)}{key}", value
        return
    for key, value in getattr(thing, "__dict__", {}).items():
        yield f"{name}: {key}", value
    code, cells = getattr(thing, "__code__", None), getattr(thing, "__closure__", None) or ()
    for key, cell in zip(getattr(code, "co_freevars", ()), cells, strict=False):
        with suppress(ValueError):  # an empty one
            yield f"{name}: {key}", cell.cell_contents


def _told(value: Any) -> tuple[str, str] | None:
    """Kind and digest of a value that may be state; None of one that cannot be told."""
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_meta:
            return None
        text = bytes(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        kind = "numbers" if value.is_floating_point() else "counts"
        return kind, f"{value.dtype} {tuple(value.shape)} {crc32c(text)}"
    if isinstance(value, np.ndarray) and value.dtype.kind in "buifc":
        kind = "numbers" if value.dtype.kind == "f" else "counts"
        return kind, f"{value.dtype} {value.shape} {crc32c(np.ascontiguousarray(value).tobytes())}"
    if isinstance(value, bool | int | float | complex | str | bytes | type(None)):
        return "counts", repr(value)
    if isinstance(value, torch.Generator):
        return "draws", str(crc32c(bytes(value.get_state().numpy())))
    if isinstance(value, np.random.Generator):
        return "draws", repr(value.bit_generator.state)
    if isinstance(value, random.Random):
        return "draws", str(hash(value.getstate()))
    if isinstance(value, dict):
        value = [*value.items()]
    if isinstance(value, list | tuple | set) or type(value).__name__ == "deque":
        inside = [_told(part) for part in [*value][:MOST]]
        numbers = bool(inside) and all(part is not None and part[0] == "numbers" for part in inside)
        return "numbers" if numbers else "counts", f"{len(value)} {inside}"
    return None
