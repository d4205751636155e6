"""What all figures share: how they look, sheets of panels, and what becomes of a drawn one.

Colours are those of Okabe and Ito, which people who see colours differently tell apart; a line style and a
marker beside each do so on grey paper.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Sheet
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

from hpcopt.ground import files
from hpcopt.ground.terminal import printable

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#A0A0A0"
COLOURED = 10
"""curves of one figure; all others are grey"""
WIDTH = 7.2
"""inches: what A4 paper has room for"""
TOP, BELOW = 0.25, 0.42
"""inches above all panels, where a warning stands, and below each"""
FEW = 200.0
"""what an axis may span for ticks between powers of ten"""
DOTS = 200
"""per inch, of a PNG"""
LONGEST = 38
"""characters of a label"""
_LOOK: dict[Any, Any] = {
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],  # the first two are as wide as each other
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "hpcopt",  # the same bytes for the same numbers
    "text.parse_math": False,  # names are text
}


@dataclass(frozen=True)
class Figure:
    """A figure of a report.

    Attributes:
        name: a word, its id in a page and the name of its file.
        title: a short heading.
        caption: what is to be seen, and under which conditions it was measured.
        sheet: as drawn.
    """

    name: str
    title: str
    caption: str
    sheet: Sheet

    @cached_property
    def svg(self) -> str:
        """An <svg> element for a page that may have others: its ids begin with the figure's name."""
        with _look():
            text = io.StringIO()
            self.sheet.savefig(text, format="svg", metadata={"Date": None})
        return _within_a_page(text.getvalue(), self.name, self.title)

    def save_png(self, file: Path) -> None:
        """Writes it to a file, all of it or nothing; its caption is in the file."""
        with _look(), files.replacing(file) as partial:
            about = {"Title": self.title, "Description": self.caption}
            self.sheet.savefig(partial, format="png", dpi=DOTS, metadata=about)


@contextmanager
def sheet(
    panels: int,
    columns: int = 3,
    height: float = 2.0,
    left: float = 0.64,
    sharey: bool = False,
    warning: str | None = None,
) -> Iterator[tuple[Sheet, list[Axes]]]:
    """An empty sheet of panels, to be drawn on within; places that are left over show nothing.

    Margins are always as wide as numbers and labels may need: to find out for each sheet takes as long as
    drawing it.

    Args:
        panels: how many.
        columns: of them beside each other.
        height: of a panel with its margins, in inches, as `left` is, its left margin.
        sharey: one vertical axis for all.
        warning: written above all panels.
    """
    rows = -(-panels // columns)
    across, up, high = WIDTH / columns, height, height * rows + (TOP if warning else 0)
    with _look():
        drawn = Sheet(figsize=(WIDTH, high))
        axes = list(drawn.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
        for at, axis in enumerate(axes):
            x, y = at % columns * across, (rows - 1 - at // columns) * up
            box = (x + left, y + BELOW, across - left - 0.12, up - BELOW - 0.2)
            axis.set_position((box[0] / WIDTH, box[1] / high, box[2] / WIDTH, box[3] / high))
        for axis in axes[panels:]:
            axis.set_axis_off()
        if warning:
            frame = {"boxstyle": "square,pad=0.3", "facecolor": "white", "edgecolor": COLOURS[1]}
            drawn.text(
                0.5, 1 - 0.07 / high, f"⚠ {warning}", ha="center", va="top", color=COLOURS[1], bbox=frame
            )
        yield drawn, axes


class Decades(LogLocator):
    """Ticks at powers of ten; at 2 and 5 times these too where there are few of them."""

    def tick_values(self, vmin: float, vmax: float) -> Any:
        """See `matplotlib.ticker.Locator`."""
        self.set_params(subs=(1.0, 2.0, 5.0) if vmin > 0 and vmax < FEW * vmin else (1.0,))
        return super().tick_values(vmin, vmax)


def scales(axis: Axes, x: str = "linear", y: str = "linear") -> None:
    """Linear or logarithmic axes, with numbers as plain text."""
    axis.set(xscale=x, yscale=y)
    for one, scale in ((axis.xaxis, x), (axis.yaxis, y)):
        if scale == "log":
            one.set_major_locator(Decades())
            one.set_major_formatter(FuncFormatter(lambda value, _: _decade(value)))
            one.set_minor_formatter(NullFormatter())
        else:
            one.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
            plain = ScalarFormatter()
            plain.set_powerlimits((-3, 5))
            one.set_major_formatter(plain)


def _decade(value: float) -> str:
    """A power of ten, or 2 or 5 times one, in few characters."""
    return f"{value:g}" if 0.01 <= value < 1e5 else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")


def style(number: int) -> dict[str, Any]:
    """How the curve of this number looks."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)],
    }


def legend(axis: Axes, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """A panel that holds nothing but the legend."""
    axis.set_axis_off()
    axis.legend(handles, [label(text) for text in labels], loc="center left", borderaxespad=0, handlelength=3)


def label(text: str, longest: int = LONGEST) -> str:
    """A name short enough to be drawn, and never taken for one that a legend is to leave out."""
    text = printable(text)
    text = text if len(text) <= longest else f"{text[: longest // 2]}…{text[-(longest - longest // 2 - 1) :]}"
    return f" {text}" if text.startswith("_") else text


@contextmanager
def _look() -> Iterator[None]:
    """Within, figures look as ours do, whatever the user's own settings are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # characters that the font lacks; medians of nothing
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_LOOK)
        yield


def _within_a_page(svg: str, name: str, title: str) -> str:
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):  # the latter would be of the whole page
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key.endswith("}href"):
                del element.attrib[key]
                element.set("href", value.replace("#", f"#{name}-"))
            elif key == "d":  # a hundredth of a point is nothing to see
                element.set(key, re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", value))
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))
    about = {"role": "img", "aria-label": title, "style": "stroke-linejoin:round;stroke-linecap:butt"}
    for key, value in about.items():
        root.set(key, value)
    root.set("xmlns", "http://www.w3.org/2000/svg")
    return ElementTree.tostring(root, encoding="unicode")
