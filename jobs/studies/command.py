"""The command line of a study."""

from __future__ import annotations

import argparse
from collections.abc import Iterable


def arguments(
    study: str, doc: str | None, word: str, names: Iterable[str], **numbers: tuple[int, str]
) -> argparse.Namespace:
    """What the user asks of a study.

    Args:
        study: its name.
        doc: whose first line says what it does.
        word: what it has several of: "problem".
        names: of these.
        numbers: further options: the default, and what it is.

    Returns:
        ``chosen``, the names that were asked for, or all; ``table_only``; the numbers.

    Raises:
        SystemExit: there is no such name.
    """
    known = list(names)
    parser = argparse.ArgumentParser(
        prog=f"python -m jobs.studies.{study}", description=(doc or "").partition("\n")[0]
    )
    told = f"of {', '.join(known)}; all if none"
    parser.add_argument("chosen", nargs="*", metavar=word.upper(), help=told)
    for name, (default, what) in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=what)
    parser.add_argument("--table-only", action="store_true", help="run nothing, only write RESULTS.md")
    found = parser.parse_args()
    if wrong := set(found.chosen) - set(known):
        parser.error(f"{', '.join(sorted(wrong))}: no such {word}; there are {', '.join(known)}")
    found.chosen = found.chosen or known
    return found
