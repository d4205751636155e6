"""A report as one HTML page that needs nothing else: no other file, no network, no JavaScript."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hpcopt.ground import files
from hpcopt.report import figures, tables
from hpcopt.report.runs import Found, Run, Scaling

if TYPE_CHECKING:
    from hpcopt.report.figures import Figure
    from hpcopt.report.tables import Table

FIRST = ("troubles", "summary", "medians", "scaling", "shares")
"""the tables that stand before the figures"""

ACROSS = 10
"""columns of a table that a page is wide enough for, besides the first"""
NAMED = 3
"""runs in the title"""


def write(found: Found, file: Path) -> None:
    """Writes the page of a report, all of it or nothing."""
    text = render(found, figures.for_report(found), tables.for_report(found))
    with files.replacing(file) as partial:
        partial.write_text(text, encoding="utf-8")


def render(found: Found, drawn: list[Figure], known: list[Table]) -> str:
    """The page. All text is escaped; figures are what `figures` made, where text is escaped, too."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup, escape

    environment = Environment(
        loader=PackageLoader("hpcopt.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    first = [table for name in FIRST for table in known if table.name == name]
    return environment.get_template("page.html").render(
        title=_title([*found.runs, *found.scalings]),
        about=_about(found),
        first=first,
        figures=drawn,
        svg={figure.name: Markup(figure.svg) for figure in drawn},
        rest=[table for table in known if table not in first],
        shown=tables.shown,
        parts=_parts,
        soft=lambda text: Markup(re.sub(r"([_/,.])(?=[A-Za-z])", r"\1<wbr>", str(escape(text)))),
        version=version("hpcopt"),
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _title(shown: Sequence[Run | Scaling]) -> str:
    names = [one.name for one in shown]
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _parts(table: Table) -> list[list[int]]:
    """The columns of a table, a page's width at a time; the first, which names the rows, in all of them."""
    others = range(1, len(table.columns))
    return [[0, *others[at : at + ACROSS]] for at in range(0, max(len(others), 1), ACROSS)]


def _about(found: Found) -> str:
    """What the report is about, in a line."""
    states = Counter(run.status for run in found.runs)
    parts = {
        f"runs: {', '.join(f'{n} {state}' for state, n in states.items())}": len(found.runs),
        f"scaling studies: {len(found.scalings)}": len(found.scalings),
        f"not in here, see the first table: {len(found.troubles)}": len(found.troubles),
    }
    return "; ".join(words for words, count in parts.items() if count)
