"""A table as data: numbers stay numbers, texts are printable and never markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpcopt.ground.terminal import printable

Cell = str | float | int | None
"""text, a number in its column's unit, or what there is not"""
LONGEST = 120
"""characters of a value from outside that is shown"""


@dataclass(frozen=True)
class Column:
    """A column's head: its name and the unit of its numbers ("1": pure numbers; "": texts)."""

    name: str
    unit: str = ""

    @property
    def head(self) -> str:
        """What stands above the column."""
        return printable(self.name) + (f" [{self.unit}]" if self.unit not in ("", "1") else "")


@dataclass(frozen=True)
class Table:
    """A table.

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
        object.__setattr__(self, "rows", [[_cell(cell) for cell in row] for row in self.rows])

    def trimmed(self) -> Table:
        """Without columns that have nothing in any row."""
        kept = [at for at in range(len(self.columns)) if any(row[at] is not None for row in self.rows)]
        return Table(
            self.name,
            self.title,
            self.caption,
            [self.columns[at] for at in kept],
            [[row[at] for at in kept] for row in self.rows],
        )


def columns(*heads: str) -> list[Column]:
    """Heads written ``name`` (texts), ``name [1]`` (numbers) or ``name [s]``."""
    parted = (head.removesuffix("]").partition(" [") for head in heads)
    return [Column(name, unit) for name, _, unit in parted]


def shown(cell: Cell) -> str:
    """A cell as people read it: six digits, and nothing for what there is not."""
    if cell is None:
        return ""
    return f"{cell:.6g}" if isinstance(cell, float) else str(cell)


def short(text: str) -> str:
    """A value from outside, cut where it is too long."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def number(value: Any) -> float | int | None:
    """A NumPy number as Python's; None stays None."""
    found: float | int | None = None if value is None else np.asarray(value).item()
    return found


def numbers(values: Iterable[Any]) -> list[float | int | None]:
    """See `number`."""
    return [number(value) for value in values]


def _cell(cell: Cell) -> Cell:
    return printable(cell) if isinstance(cell, str) else cell
