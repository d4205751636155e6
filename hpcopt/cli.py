"""The command line's entry: which commands there are, and how errors end."""

from __future__ import annotations

import os
import re
import sys
from typing import Annotated, Any

import typer

from hpcopt.commands import cluster, results, runs
from hpcopt.commands.common import world
from hpcopt.commands.data import data
from hpcopt.control import signals
from hpcopt.control.launcher import expected_rank, expected_size
from hpcopt.errors import HpcoptError
from hpcopt.ground.terminal import brief, drop_unwritten, open_standard_streams, say, tell

COMMANDS = (
    *(runs.run, runs.resume, runs.sweep, cluster.submit, cluster.jobs, cluster.scale),
    *(results.report, results.predict, results.export, runs.spectrum, runs.init, runs.schema, runs.doctor),
)
app = typer.Typer(
    help="Communication-efficient distributed optimisation as MPI jobs.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help: rich and what it imports take longer than all the rest
)
for command in COMMANDS:
    app.command()(command)
app.add_typer(data, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        say(version("hpcopt"))
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Communication-efficient distributed optimisation as MPI jobs."""


def main() -> None:
    """The entry point: errors become one message from rank 0 and the exit code of the contract."""
    open_standard_streams()
    # typer's command line errors: click's, or those of the copy of click inside newer versions of typer
    usage: Any = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
    # read by torch when it is imported: large tensors in huge pages, which MPI copies faster
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    try:
        sys.exit(app([_at_home(word) for word in sys.argv[1:]], standalone_mode=False))
    except HpcoptError as error:
        _fail(f"hpcopt: error: {error}", error.exit_code)
    except usage as error:
        if expected_size() > 1:
            world()  # no rank ends, and the launcher with it the job, before rank 0 has spoken
        message = error.format_message()  # none where the help was printed for want of arguments
        _fail(f"hpcopt: error: {message} (hpcopt --help)" if message else "", 2)
    except typer.Abort:
        _fail("hpcopt: aborted", 1)
    finally:
        signals.ignore()
        drop_unwritten()


def _at_home(word: str) -> str:
    """An argument whose path begins with ~, which shells leave as it is in --out=~/mine."""
    option, equals, path = word.partition("=") if re.match(r"--[\w-]+=~", word) else ("", "", word)
    return f"{option}{equals}{os.path.expanduser(path)}"


def _fail(message: str, code: int) -> None:
    if _rank() == 0 and message:
        tell(brief(message))
    sys.exit(code)


def _rank() -> int:
    if "mpi4py.MPI" in sys.modules and (rank := world().rank):
        return rank
    return expected_rank()  # of processes that MPI does not bring together one speaks for all, too
