"""The CPU's tensors on a GPU's ways to MPI: what can be tried of those where there is no GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from hpcopt.comm.staging import Staging


class Late:
    """`Copies` that are made at the last moment; until then there is nan where they will be.

    So who reads too early gets wrong numbers, always. A GPU may copy at any moment until then: what changes
    in between is an error, whether it came too late or was overwritten too early.
    """

    def __init__(self) -> None:
        self._outs: deque[Callable[[], object]] = deque()
        self._backs: deque[Callable[[], object]] = deque()
        self._made = self._begun = 0

    def begin(self) -> None:
        """See `hpcopt.comm.staging.Copies`."""

    def out(self, host: Tensor, tensor: Tensor) -> Callable[[], None]:
        """See `hpcopt.comm.staging.Copies`."""
        host.fill_(torch.nan)
        self._outs.append(partial(_copy, host, tensor, tensor.clone()))
        self._begun += 1
        return partial(self._make, self._begun)

    def back(self, tensor: Tensor, host: Tensor) -> None:
        """See `hpcopt.comm.staging.Copies`."""
        tensor.fill_(torch.nan)
        self._backs.append(partial(_copy, tensor, host, host.clone()))

    def finish(self) -> None:
        """See `hpcopt.comm.staging.Copies`."""
        while self._backs:
            self._backs.popleft()()

    def _make(self, count: int) -> None:
        """All copies out up to this one: they keep their order."""
        while self._made < count:
            self._outs.popleft()()
            self._made += 1


def _copy(into: Tensor, source: Tensor, before: Tensor) -> None:
    if not torch.allclose(source, before, rtol=0, atol=0, equal_nan=True):
        raise RuntimeError("what was to be copied has changed before it was")
    into.copy_(source)


class Rehearsal(Staging):
    """Tensors of floating point numbers in ordinary memory, taken like a GPU's.

    Direct, the wire is a tensor, no NumPy array, as with a CUDA-aware MPI; staged, it is other memory.

    Args:
        device: the CPU.
        aware: direct or staged; both, to be measured, if None.
    """

    def __init__(self, device: torch.device, aware: bool | None = None) -> None:
        super().__init__(device, aware)
        self._on_host, self._free, self._pin = False, aware is None, False
        self.direct = aware is not False
        self._copies = Late()

    @property
    def description(self) -> str:
        """See `Staging`."""
        return f"rehearsal: {super().description}"

    def _settle(self) -> None:
        """Nothing goes on by itself here."""
