"""How tensors reach MPI: CPU memory as it is; GPU memory as it is where MPI can, else by pinned host memory.

What the flags of an MPI library say about CUDA is often wrong, so `cuda_aware` tries it, in a subprocess,
because an MPI that cannot may crash. HPCOPT_CUDA_AWARE=0 or 1 overrides the probe.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

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


class Staging:
    """The way of one device's tensors to MPI and back; decided once, at the start.

    Args:
        device: where the tensors live.
        aware: whether MPI takes the GPU's pointers; probed if None.
    """

    def __init__(self, device: torch.device, aware: bool | None = None) -> None:
        self.device = device
        self._on_host = device.type == "cpu"
        self.direct = self._on_host or (cuda_aware() if aware is None else aware)
        self._pinned: dict[tuple[str, int, torch.dtype], Tensor] = {}

    @property
    def description(self) -> str:
        """In words, for doctor and provenance."""
        if self._on_host:
            return "host memory"
        return "CUDA-aware MPI" if self.direct else "staged through pinned host memory"

    def out(self, tensor: Tensor) -> Any:
        """A buffer for MPI with the tensor's contents: the tensor's own memory, or its pinned copy."""
        if self._on_host:
            return tensor.numpy()
        if self.direct:
            torch.cuda.current_stream(self.device).synchronize()
            return tensor
        host = self._host("out", tensor)
        host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return host.numpy()

    def to_host(self, tensor: Tensor) -> Tensor:
        """The tensor in host memory: itself, or its pinned copy, until the next one of its size."""
        if self._on_host:
            return tensor
        host = self._host("host", tensor)
        host.copy_(tensor, non_blocking=True)
        torch.cuda.current_stream(self.device).synchronize()
        return host

    def landing(self, tensor: Tensor) -> Any:
        """A buffer that MPI may write into in place of ``tensor``; `back` brings it home."""
        if self.direct:
            return self.out(tensor)
        return self._host("landing", tensor).numpy()

    def back(self, wire: Any, tensor: Tensor) -> None:
        """Copies what MPI wrote into ``wire`` to ``tensor``, unless they are the same memory."""
        if not self.direct:
            tensor.copy_(torch.from_numpy(wire), non_blocking=True)
            # the pinned buffer is used again by the next call
            torch.cuda.current_stream(self.device).synchronize()

    def _host(self, use: str, tensor: Tensor) -> Tensor:
        key = (use, tensor.numel(), tensor.dtype)
        if key not in self._pinned:
            self._pinned[key] = torch.empty(tensor.numel(), dtype=tensor.dtype, pin_memory=True)
        return self._pinned[key].view(tensor.shape)


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
