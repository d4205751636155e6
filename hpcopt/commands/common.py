"""What commands share: options, and how what the user gave is checked."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hpcopt.control.launcher import expected_size
from hpcopt.errors import UserError

if TYPE_CHECKING:
    from mpi4py import MPI

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Override a key of the config.")
]
Over = Annotated[
    list[str] | None,
    typer.Option(
        metavar="TABLE.KEY=V1,V2,…", help="A key's values; 0:5 is 0 to 4. Every combination is a case."
    ),
]
Zip = Annotated[bool, typer.Option("--zip", help="Pair the values of the keys.")]
RanksEach = Annotated[int, typer.Option(min=1, help="Ranks of each case.")]
AtOnce = Annotated[int | None, typer.Option(min=1, help="Cases at the same time, at most.")]


def world() -> MPI.Comm:
    """All ranks of the job; starts MPI."""
    from hpcopt.control.world import world

    return world()


def together(check: Callable[[], Any]) -> tuple[MPI.Comm, Any]:
    """Checks the user's input: at once on one rank, in agreement on more."""
    if expected_size() == 1:
        result = check()
        return world(), result
    from hpcopt.control.agree import agreed
    from hpcopt.control.world import ranks_for

    comm = ranks_for(None)
    result = None
    with agreed(comm):
        result = check()
    return comm, result


@contextmanager
def importing() -> Iterator[None]:
    """Around imports that bring torch: all that they make stays, and to look for garbage there takes long."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Says which part of the package is not installed where a library is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"needs {error.name}: pip install 'hpcopt[{name}]'") from None
