"""The tables of a report: numbers and text, for the terminal, for HTML and for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hpcopt.report.runs import plain

Cell = str | float | int | None
"""text, a number in its column's unit, or what there is not"""


@dataclass(frozen=True)
class Column:
    """A column's head: its name and the unit of its numbers ("1": pure numbers; "": text)."""

    name: str
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """A table; texts in it are printable, never markup.

    Attributes:
        name: a word, its id in a page.
        title: a short heading.
        caption: what is to be known about the numbers.
        columns: their heads.
        rows: as many cells as columns each.
    """

    name: str
    title: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        rows = [[plain(cell) if isinstance(cell, str) else cell for cell in row] for row in self.rows]
        object.__setattr__(self, "rows", rows)
