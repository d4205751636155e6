"""What a run is made of: the same on every rank, and in every job that goes on with it.

A problem says what it is made of (`hpcopt.problems.base.Problem.made_of`): texts, numbers and lists of
numbers, by names in words. Numbers that are computed may differ a little, because machines round differently.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from crc32c import crc32c

from hpcopt.errors import UserError
from hpcopt.math.fingerprint import digest, plain
from hpcopt.state import Held

if TYPE_CHECKING:
    from torch import Tensor

    from hpcopt.config import RunConfig
    from hpcopt.engine.ranks import Ranks
    from hpcopt.problems.base import Problem
    from hpcopt.state import State

MadeOf = Mapping[str, Any]

ROUNDING = 1e-3
"""by which computed numbers may differ, relative to them: float32, on another machine or a GPU"""


def check_config(ranks: Ranks, config: RunConfig) -> None:
    """The ranks have the same config. Collective; raises as `check_same`."""
    tables = config.tables().items()
    check_same(
        ranks, {f"[{name}] {key}": plain(value) for name, keys in tables for key, value in keys.items()}
    )


def check_problem(ranks: Ranks, problem: Problem) -> None:
    """The ranks have the same problem, and the same start. Collective; raises as `check_same`."""
    with ranks.agreed():
        made_of = problem.made_of
    check_same(
        ranks, {"the start (torch.manual_seed, where it is random)": _bits(problem.initial())} | made_of
    )


def check_state(ranks: Ranks, state: State) -> None:
    """What all ranks hold of a state is the same. Collective; raises as `check_same`."""
    tensors = state.tensors().items()
    held = {name: _bits(tensor) for name, (held, tensor) in tensors if held is Held.REPLICATED}
    check_same(ranks, {f"{type(state).__name__}.{name} (replicated)": bits for name, bits in held.items()})


def check_same(ranks: Ranks, mine: MadeOf) -> None:
    """Compares what ranks have with what rank 0 has. Collective.

    Raises:
        UserError: it differs, on every rank.
    """
    if len(set(ranks.each(digest(mine)))) == 1:
        return
    every = ranks.each(dict(mine))
    lines = []
    for name in dict.fromkeys(name for one in every for name in one):
        others = [rank for rank, one in enumerate(every) if not alike(one.get(name), every[0].get(name))]
        if others:
            first, other = every[0].get(name, "missing"), every[others[0]].get(name, "missing")
            where = ", ".join(map(str, others))
            lines.append(
                f"{name}: is {first} on rank 0, but {other} on rank{'s' * (len(others) > 1)} {where}"
            )
    if lines:
        raise UserError("the ranks were given different things:\n" + "\n".join(lines))


def check_unchanged(path: object, begun: MadeOf, now: MadeOf) -> None:
    """Raises `UserError` where a run that goes on is made of other things, of those that both know."""
    changed = [
        f"{name}: is now {now[name]}, but the run was begun with {value}"
        for name, value in begun.items()
        if name in now and not alike(value, now[name])
    ]
    if changed:
        raise UserError("\n".join(f"{path}: {line}" for line in changed) + "\nstart another run")


def alike(a: Any, b: Any) -> bool:
    """Whether two values are the same; of lists of numbers, but for rounding."""
    if isinstance(a, list) and isinstance(b, list) and all(isinstance(x, float) for x in a + b):
        return len(a) == len(b) and all(
            math.isclose(x, y, rel_tol=ROUNDING, abs_tol=1e-12) or (math.isnan(x) and math.isnan(y))
            for x, y in zip(a, b, strict=True)
        )
    return bool(a == b)


def _bits(tensor: Tensor) -> str:
    numbers = np.ascontiguousarray(tensor.detach().cpu().numpy())
    return f"{tuple(tensor.shape)} {crc32c(numbers.reshape(-1).view(np.uint8).data):08x}"
