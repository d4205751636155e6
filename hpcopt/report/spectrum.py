"""A Hessian's spectrum, as text and as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hpcopt.ground import files
from hpcopt.ground.words import counted

if TYPE_CHECKING:
    import xarray

POINTS, WIDTH = 1000, 0.005
"""of the figure: places along the axis; the standard deviation that a node is smeared by, as a part of the
axis"""


def table(tree: xarray.DataTree) -> str:
    """The eigenvalues and residuals of `hpcopt.spectrum`, a line for each, the largest first."""
    about, products = tree.attrs, _numbers(tree, "metrics/products")
    values, residuals = (_numbers(tree, f"spectrum/{name}")[-1] for name in ("eigenvalue", "residual"))
    lines = [
        f"{about['problem']}, {counted(about['dim'], 'parameter')}, at {about['model']}: "
        f"{int(products[-1])} Hessian-vector products",
        f"{'pair':>6}  {'eigenvalue':>16}  {'residual':>9}",
    ]
    pairs = list(enumerate(zip(values, residuals, strict=True)))
    lines += [f"{i:>6}  {value:>16.9g}  {residual:>9.1e}" for i, (value, residual) in reversed(pairs)]
    return "\n".join(lines)


def density(nodes: NDArray[Any], weights: NDArray[Any], at: NDArray[Any], width: float) -> NDArray[Any]:
    """The density of eigenvalues at some places: Gaussians of one width at the nodes, mean over the probes.

    Args:
        nodes, weights: (probes, m), weights of a probe of sum 1.
        at: (places,).
        width: the standard deviation.
    """
    bells = np.exp(-0.5 * ((at[:, None, None] - nodes) / width) ** 2) / (width * np.sqrt(2 * np.pi))
    found: NDArray[Any] = (bells * weights).sum(2).mean(1)
    return found


def draw(tree: xarray.DataTree, file: Path) -> str:
    """Draws density and eigenvalues into a file; gives what there is to say about it.

    Args:
        tree: of `hpcopt.spectrum`, or loaded.
        file: the figure, in the format that its name tells.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return f"{file}: not drawn, for want of matplotlib: pip install 'hpcopt[report]'"
    nodes, weights = (_numbers(tree, f"density/{name}") for name in ("eigenvalue", "weight"))
    eigenvalues = _numbers(tree, "spectrum/eigenvalue")[-1]
    every = np.concatenate([nodes.ravel(), eigenvalues])
    span = float(np.ptp(every)) or 1.0
    at = np.linspace(every.min() - 0.03 * span, every.max() + 0.03 * span, POINTS)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    heights = density(nodes, weights, at, WIDTH * span)
    floor = 1 / (tree.attrs["dim"] * span)  # one eigenvalue in all of the axis
    axes.semilogy(at, heights, label="density")
    axes.set_ylim(floor / 10, 3 * heights.max())
    axes.plot(eigenvalues, np.full_like(eigenvalues, floor / 5), "|", color="black", label="eigenvalues")
    axes.set(xlabel="λ", ylabel="density of eigenvalues", title=f"at {tree.attrs['model']}")
    axes.legend()
    with files.replacing(file) as partial:
        figure.savefig(partial, format=file.suffix.removeprefix("."))
    return f"{file}: the density of eigenvalues"


def _numbers(tree: xarray.DataTree, column: str) -> NDArray[Any]:
    return np.asarray(tree[column])
