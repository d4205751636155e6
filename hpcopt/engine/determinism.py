"""`run.deterministic` for what torch computes: the same bits each time, or an error that names what has none.

Sums in the order of the workers are the ports' part of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import compress
from typing import TYPE_CHECKING, Any

import torch
from torch.backends import cudnn
from torch.utils import deterministic as _deterministic

from hpcopt.errors import UserError

if TYPE_CHECKING:
    from hpcopt.config.run import RunTable

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
WORKSPACES = (":4096:8", ":16:8")
"""with which cuBLAS gives the same bits each time"""
NO_FORM = re.compile(r"(\S+) does not have a deterministic implementation")
"""how torch says that an operator has no deterministic form"""

# torch declares a part of what these have
_cudnn: Any = cudnn
_memory: Any = _deterministic


@contextmanager
def repeatable(run: RunTable) -> Iterator[None]:
    """Within, torch computes the same bits each time, where ``run.deterministic`` asks for it. Local.

    Afterwards torch is as it was before, but for the environment variable that cuBLAS reads once, when it
    starts: that stays.

    Raises:
        UserError: CUDA has been started without that variable, or an operator has no deterministic form.
    """
    if not run.deterministic:
        yield
        return
    if run.device != "cpu" and torch.cuda.is_available():
        _workspace(torch.cuda.is_initialized())
    before = torch.get_deterministic_debug_mode(), cudnn.deterministic, cudnn.benchmark
    filled = _memory.fill_uninitialized_memory
    try:
        # what nobody reads need not be filled
        _set("error", True, False, filled=False)
        yield
    except (RuntimeError, UserError) as error:  # the trial of a model has made a UserError of it
        if (found := NO_FORM.search(str(error))) is None:
            raise
        raise UserError(
            f"[run] deterministic = true: torch's {found[1]} has no deterministic form. Set "
            "run.deterministic = false, or compute without it in the model, the loss or the metrics"
        ) from error
    finally:
        _set(*before, filled=filled)


def tf32(device: torch.device) -> str:
    """What torch rounds to TF32 on this device, in words; empty where there is no such thing."""
    if device.type != "cuda":
        return ""
    try:
        used = torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32
    except RuntimeError:  # set by their newer names, which exclude these
        used = tuple(of.fp32_precision == "tf32" for of in (torch.backends.cuda.matmul, _cudnn.conv))
    return ", ".join(compress(("matrix products", "convolutions"), used)) or "nothing"


def device_name(device: torch.device) -> str:
    """What the GPU is called; empty of a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""


def _workspace(started: bool) -> None:
    """Sets what cuBLAS reads when it starts."""
    given = os.environ.get(WORKSPACE)
    if given in WORKSPACES:
        return
    allowed = " or ".join(WORKSPACES)
    if given is not None:
        raise UserError(
            f"[run] deterministic = true: the environment has {WORKSPACE}={given}, with which matrix "
            f"products differ from run to run on a GPU; set it to {allowed}, or to nothing at all"
        )
    if started:
        raise UserError(
            f"[run] deterministic = true: CUDA has been started in this process without {WORKSPACE}, which "
            f"cuBLAS reads then; set it to {allowed} before Python starts, or before the first use of CUDA"
        )
    os.environ[WORKSPACE] = WORKSPACES[0]


def _set(mode: int | str, same_convolutions: bool, benchmark: bool, *, filled: bool) -> None:
    torch.set_deterministic_debug_mode(mode)
    cudnn.deterministic, cudnn.benchmark = same_convolutions, benchmark
    _memory.fill_uninitialized_memory = filled
