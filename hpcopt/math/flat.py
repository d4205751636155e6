"""Flat parameter vectors: where each named parameter lives in one long vector of length d."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from math import prod

import numpy as np
import torch

from hpcopt.errors import UserError

HUGE_PAGE = 2 << 20
SHOWN = 12
"""names in a message"""
ALIGNMENT = 64
"""bytes to which torch aligns what it allocates on the CPU"""


def buffer(shape: Sequence[int], like: torch.Tensor) -> torch.Tensor:
    """An uninitialised tensor to communicate with, of the dtype and on the device of another.

    On the CPU a large one begins at a huge page (NumPy asks the kernel for such pages), which MPI's copies
    between processes on a node gain a quarter from.
    """
    nbytes = prod(shape) * like.element_size()
    if like.device.type != "cpu" or nbytes < HUGE_PAGE:
        return torch.empty(*shape, dtype=like.dtype, device=like.device)
    memory = np.empty(nbytes + HUGE_PAGE, dtype=np.uint8)
    start = -memory.ctypes.data % HUGE_PAGE
    return torch.from_numpy(memory[start : start + nbytes]).view(like.dtype).view(*shape)


def copied(X: torch.Tensor, last: torch.Tensor | None) -> torch.Tensor:
    """A tensor's numbers in a buffer: that of the last copy, where it has the shape."""
    kept = buffer(X.shape, X) if last is None or last.shape != X.shape else last
    return kept.copy_(X)


def buffer_of_rows(n: int, d: int, like: torch.Tensor) -> torch.Tensor:
    """A `buffer` (n, d) whose rows are all `aligned`, for which there may be gaps between them."""
    together = ALIGNMENT // like.element_size()
    return buffer((n, -(-d // together) * together), like)[:, :d]


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, or an aligned copy: BLAS gives other last bits for the same numbers in unaligned memory."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()


def wave(like: torch.Tensor) -> torch.Tensor:
    """A point (d,) that is the same wherever it is made, whatever the start: 0.1 cos 0, 0.1 cos 1, …"""
    return (0.1 * torch.arange(len(like), dtype=torch.float64).cos()).to(like)


@dataclass(frozen=True)
class Layout:
    """Names, shapes and places of the parameters in a flat vector: shared ones first, private ones last.

    So ``x[..., layout.shared]`` and ``x[..., layout.private]`` are views, whatever the order in the model.

    Attributes:
        names: parameter names, in the order of the vector.
        shapes: their shapes.
        n_shared: how many of the names are shared (the others are private to a worker).
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    n_shared: int

    @classmethod
    def of(cls, named_shapes: Iterable[tuple[str, Sequence[int]]], private: Sequence[str] = ()) -> Layout:
        """The layout of named parameters; those whose name matches a pattern in ``private`` come last."""
        items = [(name, tuple(shape)) for name, shape in named_shapes]
        is_private = [any(fnmatchcase(name, pattern) for pattern in private) for name, _ in items]
        order = sorted(range(len(items)), key=lambda i: is_private[i])  # stable
        return cls(
            names=tuple(items[i][0] for i in order),
            shapes=tuple(items[i][1] for i in order),
            n_shared=len(items) - sum(is_private),
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of elements of each parameter."""
        return tuple(prod(shape) for shape in self.shapes)

    @cached_property
    def dim(self) -> int:
        """The length d of the flat vector."""
        return sum(self.sizes)

    @cached_property
    def shared(self) -> slice:
        """The shared parameters' range."""
        return slice(0, sum(self.sizes[: self.n_shared]))

    @cached_property
    def private(self) -> slice:
        """The private parameters' range (empty where there are none)."""
        return slice(self.shared.stop, self.dim)

    def part(self, part: str) -> slice:
        """The range of ``"all"``, ``"shared"`` or ``"private"`` parameters."""
        return {"all": slice(0, self.dim), "shared": self.shared, "private": self.private}[part]

    def chosen(self, part: str) -> slice:
        """Which of the names belong to ``"all"``, ``"shared"`` or ``"private"`` parameters."""
        shared = self.n_shared
        return {"all": slice(None), "shared": slice(shared), "private": slice(shared, None)}[part]

    def tensors(self, flat: torch.Tensor, part: str = "all") -> list[torch.Tensor]:
        """Views of a flat vector (d,), one for each parameter of a part, of its shape."""
        return list(self.views(flat).values())[self.chosen(part)]

    def views(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Named views of a flat vector of shape (..., d), each of shape (..., *shape); nothing is copied."""
        # not split(), which takes as long again to find out what it was given
        pieces = (flat,) if len(self.sizes) == 1 else flat.split_with_sizes(self.sizes, -1)
        lead = flat.shape[:-1]
        return {
            name: piece.view((*lead, *shape))
            for name, shape, piece in zip(self.names, self.shapes, pieces, strict=True)
        }


def check_split(layout: Layout, who: str) -> None:
    """Raises `UserError` where no parameter is private, or all are, which ``who`` cannot do with."""
    if 0 < layout.n_shared < len(layout.names):
        return
    names = layout.names
    listed = ", ".join(names[:SHOWN]) + (f", … ({len(names)} in all)" if len(names) > SHOWN else "")
    what = "matches no parameter" if layout.n_shared else "matches all parameters"
    head, dot, _ = names[-1].rpartition(".")
    such = f"{head}.*" if dot else names[-1]
    hint = f'give patterns that match some of them, such as problem.private = ["{such}"]'
    if len(names) == 1:
        hint = 'a problem of one parameter has no head: take kind = "network" or one of your own'
    raise UserError(
        f"problem.private {what}: {who} needs some that stay with their worker (the head) and others that "
        f"are shared. The parameters are {listed}; {hint}"
    )
