"""How tensors reach MPI: CPU memory as it is; GPU memory as it is where MPI can, or by pinned host memory.

What the flags of an MPI library say about CUDA is often wrong, so `cuda_aware` tries it, in a subprocess,
because an MPI that cannot may crash. Nor is it faster by itself: many libraries take GPU memory through
pageable host memory, which is slower than what is done here. So where MPI can, both ways are timed when a run
begins. HPCOPT_CUDA_AWARE=0 or 1 overrides both.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Protocol

import torch
from torch import Tensor

from hpcopt.comm.wires import Wire
from hpcopt.control.launcher import without_launcher
from hpcopt.errors import UserError
from hpcopt.ground.words import counted

_PROBE = """
import torch
from mpi4py import MPI
comm = MPI.COMM_SELF
a = torch.arange(1024.0, device="cuda"); b = torch.zeros_like(a)
torch.cuda.synchronize()
comm.Sendrecv(a, 0, 0, b, 0, 0); comm.Allreduce(MPI.IN_PLACE, b)
torch.cuda.synchronize()
assert torch.equal(a, b)
"""


class Copies(Protocol):
    """Copies between device and host that go on by themselves, each kind in its order."""

    def begin(self) -> None:
        """What follows sees what has been computed so far."""

    def out(self, host: Tensor, tensor: Tensor) -> Callable[[], None]:
        """Begins to copy a tensor to the host; gives what waits until it is there."""

    def back(self, tensor: Tensor, host: Tensor) -> None:
        """Begins to copy a tensor back; the host's memory must stay as it is until `finish`."""

    def finish(self) -> None:
        """Returns when all that goes back is there."""


class Streams:
    """`Copies` on two streams of a GPU, one for each direction."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._out, self._back = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def begin(self) -> None:
        """See `Copies`."""
        for stream in (self._out, self._back):
            stream.wait_stream(torch.cuda.current_stream(self._device))

    def out(self, host: Tensor, tensor: Tensor) -> Callable[[], None]:
        """See `Copies`."""
        with torch.cuda.stream(self._out):
            host.copy_(tensor, non_blocking=True)
            return self._out.record_event().synchronize

    def back(self, tensor: Tensor, host: Tensor) -> None:
        """See `Copies`."""
        with torch.cuda.stream(self._back):
            tensor.copy_(host, non_blocking=True)

    def finish(self) -> None:
        """See `Copies`."""
        self._back.synchronize()


class Staging:
    """One way of a device's tensors to MPI and back.

    Args:
        device: where the tensors live.
        aware: whether MPI is given the GPU's pointers; probed if None.

    Attributes:
        direct: MPI reads and writes the tensors' own memory.
    """

    def __init__(self, device: torch.device, aware: bool | None = None) -> None:
        self.device = device
        self._on_host = device.type == "cpu"
        self._free = aware is None and os.environ.get("HPCOPT_CUDA_AWARE", "") not in ("0", "1")
        self.direct = self._on_host or (cuda_aware() if aware is None else aware)
        self._pin = True
        self._copies: Copies | None = None
        self._memory: dict[tuple[str, int, torch.dtype], Tensor] = {}

    @property
    def description(self) -> str:
        """In words, for doctor and provenance."""
        if self._on_host:
            return "host memory"
        if not self.direct:
            return "staged through pinned host memory"
        return "CUDA-aware MPI" + ", direct or staged as measured" * self._free

    def another(self, direct: bool) -> Staging:
        """One of this kind with memory of its own, for another user or to go the other way."""
        return type(self)(self.device, direct)

    def ways(self) -> dict[str, Staging]:
        """The ways that these tensors may take, by name; which is faster can only be measured."""
        if self._on_host:
            return {"": self}
        if self.direct and self._free:
            return {"direct": self, "staged": self.another(direct=False)}
        return {"direct" if self.direct else "staged": self}

    # --- whole tensors --------------------------------------------------------------------------------------

    def out(self, tensor: Tensor) -> Wire:
        """A wire with the tensor's contents: the tensor's own memory, or its copy in host memory."""
        if self._on_host:
            return tensor.numpy()
        if self.direct:
            self._settle()
            return tensor
        return self._copied("out", tensor).numpy()

    def to_host(self, tensor: Tensor) -> Tensor:
        """The tensor in host memory: itself, or its copy, until the next one of its size."""
        return tensor if self._on_host else self._copied("host", tensor)

    def landing(self, tensor: Tensor) -> Wire:
        """A wire that MPI may write into in place of ``tensor``; `back` or `home` brings it home."""
        return self.out(tensor) if self.direct else self._host("landing", tensor.shape, tensor.dtype).numpy()

    def back(self, wire: Wire, tensor: Tensor) -> None:
        """Copies what MPI wrote into ``wire`` to ``tensor``, unless they are the same memory."""
        if not self.direct:
            self._go().back(tensor, torch.from_numpy(wire))
            self.finish()

    # --- in steps, while others travel; where it is not direct ----------------------------------------------

    def leaving(self, steps: Sequence[Sequence[Tensor]]) -> Iterator[Wire]:
        """For each step a wire with its tensors (k,), one after the other, as soon as they are there.

        All of them are on their way from the first one on, and stay where they are until the next use.
        """
        copies, end, begun = self._go(), 0, []
        if not steps:
            return
        size, dtype = sum(part.numel() for parts in steps for part in parts), steps[0][0].dtype
        host = self._host("out", (size,), dtype)
        for parts in steps:
            start = end
            for part in parts:
                at, end = end, end + len(part)
                wait = copies.out(host[at:end], part)
            begun.append((host[start:end], wait))
        for step, wait in begun:
            wait()
            yield step.numpy()

    def home(self, wire: Wire, parts: Sequence[Tensor]) -> None:
        """Begins to copy what MPI wrote to tensors (k,), one after the other; complete at `finish`."""
        assert self._copies is not None, "something left before"
        host, end = torch.from_numpy(wire), 0
        for part in parts:
            at, end = end, end + len(part)
            self._copies.back(part, host[at:end])

    def finish(self) -> None:
        """Returns when everything is home."""
        if self._copies is not None:
            self._copies.finish()

    # --- inside ---------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        torch.cuda.current_stream(self.device).synchronize()

    def _go(self) -> Copies:
        if self._copies is None:
            self._copies = Streams(self.device)
        self._copies.begin()
        return self._copies

    def _copied(self, use: str, tensor: Tensor) -> Tensor:
        host = self._host(use, tensor.shape, tensor.dtype)
        self._go().out(host, tensor)()
        return host

    def _host(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        key = (use, prod(shape), dtype)
        if key not in self._memory:
            self._memory[key] = torch.empty(prod(shape), dtype=dtype, pin_memory=self._pin)
        return self._memory[key].view(*shape)


def cuda_aware() -> bool:
    """Whether MPI can send from and receive into GPU memory, by trying it. Local; takes seconds."""
    override = os.environ.get("HPCOPT_CUDA_AWARE", "")
    if override in ("0", "1"):
        return override == "1"
    if not torch.cuda.is_available():
        return False
    try:
        probe = subprocess.run(
            [sys.executable, "-c", _PROBE],
            env=without_launcher(),
            capture_output=True,
            timeout=60,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return probe.returncode == 0


def local_device(name: str, local_rank: int) -> torch.device:
    """The device that ``run.device`` names; "auto" and "cuda" give the local rank's GPU, if any.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and gpus == 0):
        return torch.device("cpu")
    index = int(name[5:]) if name.startswith("cuda:") else local_rank % max(gpus, 1)
    if index >= gpus:
        here = counted(gpus, "GPU")
        raise UserError(f'[run] device = "{name}", but this node has {here} that torch can use')
    return torch.device("cuda", index)
