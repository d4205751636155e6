"""Tables in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from hpcopt.ground.terminal import forgiving
from hpcopt.report.tables import Column, Table, shown

WIDE = 160
"""characters of a line where nobody looks, in a pipe or a file"""
BETWEEN = 3
"""characters between two columns"""

Rows = list[list[str]]


def write(tables: Iterable[Table], console: Console | None = None) -> None:
    """Writes tables; one that is too wide lies on its side where that fits, else its columns take turns."""
    console = console or Console(file=forgiving(sys.stdout))
    width = console.width if console.is_terminal else WIDE
    if not console.is_terminal:  # nothing there is cut or broken
        console = Console(file=console.file, width=1_000_000, color_system=None)
    for table in tables:
        heads = list(table.columns)
        rows = [[shown(cell) for cell in row] for row in table.rows]
        console.print(Text(table.title, style="bold"))
        for part in _parts(*_upright(heads, rows, width), width):
            console.print(_grid(*part))
        console.print(Text(table.caption, style="dim"), soft_wrap=not console.is_terminal)
        console.print()


def _upright(heads: list[Column], rows: Rows, width: int) -> tuple[list[Column], Rows]:
    """A table, or the same on its side: a row for each column but the first."""
    if sum(_widths(heads, rows)) <= width:
        return heads, rows
    turned = [Column(heads[0].name), *(Column(row[0], "1") for row in rows)]
    others = [[head.head, *(row[at] for row in rows)] for at, head in enumerate(heads) if at]
    return (turned, others) if sum(_widths(turned, others)) <= width else (heads, rows)


def _parts(heads: list[Column], rows: Rows, width: int) -> Iterator[tuple[list[Column], Rows]]:
    """As many columns at a time as there is room for; the first is in all of them."""
    first, *widths = _widths(heads, rows)
    at = 1
    while at < len(heads):
        room, end = width - first, at
        while end < len(heads) and (end == at or widths[end - 1] <= room):
            room -= widths[end - 1]
            end += 1
        yield [heads[0], *heads[at:end]], [[row[0], *row[at:end]] for row in rows]
        at = end


def _widths(heads: list[Column], rows: Rows) -> list[int]:
    columns = zip([head.head for head in heads], *rows, strict=True)
    return [max(map(cell_len, column)) + BETWEEN for column in columns]


def _grid(heads: list[Column], rows: Rows) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in heads:
        grid.add_column(Text(head.head), justify="right" if head.unit else "left", overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))
    return grid
