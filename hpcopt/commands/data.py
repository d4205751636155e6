"""Commands for data files: hpcopt data …"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from hpcopt.commands.common import Overrides
from hpcopt.errors import UserError
from hpcopt.ground.terminal import say

data = typer.Typer(help="Data files that every rank reads its own rows of.", no_args_is_help=True)


@data.command("import")
def data_import(
    file: Annotated[Path, typer.Argument(help="Text, an npz, or a directory or images file in idx format.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.h5", help="The file to write.")],
    format: Annotated[str, typer.Option(help="idx, npz or svmlight (sparse rows; plain, .gz, .bz2 or .xz).")],
    test: Annotated[Path | None, typer.Option(help="svmlight: a file with the test rows.")] = None,
    test_fraction: Annotated[
        float | None, typer.Option(help="svmlight, npz: the part of the rows that becomes test rows.")
    ] = None,
    features: Annotated[
        int | None, typer.Option(help="svmlight: the length of a row (else the largest index).")
    ] = None,
) -> None:
    """Import a data set, in pieces, also one larger than memory."""
    from hpcopt.problems.data import importer

    formats: dict[str, tuple[Callable[..., None], set[str]]] = {
        "idx": (importer.import_idx, set()),
        "npz": (importer.import_npz, {"test_fraction"}),
        "svmlight": (importer.import_svmlight, {"test", "test_fraction", "features"}),
    }
    if format not in formats:
        raise UserError(f"--format {format}: allowed are idx, npz and svmlight")
    function, allowed = formats[format]
    options = {"test": test, "test_fraction": test_fraction, "features": features}
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() - allowed:
        raise UserError(f"--{name.replace('_', '-')} is not for --format {format}")
    function(file, out, **given)
    _print_info(out)


@data.command("info")
def data_info(file: Annotated[Path, typer.Argument(metavar="FILE.h5")]) -> None:
    """Tell what a data file holds."""
    _print_info(file)


@data.command("optimum")
def data_optimum(
    config: Annotated[Path, typer.Argument(help="The TOML file.")], overrides: Overrides = None
) -> None:
    """Compute the smallest value of a linear problem's objective; prints the line for [problem]."""
    from hpcopt.config import load
    from hpcopt.engine.optimum import optimum

    say(f"optimum = {optimum(load(config, overrides or []))!r}")


def _print_info(file: Path) -> None:
    from hpcopt.problems.data import importer

    for key, value in importer.describe(file).items():
        say(f"{key}: {value}")
