"""`tools/bench sparse`: `hpcopt.math.topk.largest` against torch.topk, in one process with one thread."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mpi4py import MPI
from torch import Tensor

from hpcopt.math.topk import largest
from tools.benches.common import in_turn, ratios, spread

ELEMENTS = 11_000_000
REPEATS = 9
DENSITIES = (0.001, 0.01)


def normal() -> Tensor:
    """Like a gradient that was averaged a lot."""
    return torch.randn(ELEMENTS)


def heavy_tailed() -> Tensor:
    """Student's t with 2 degrees of freedom: no variance."""
    return torch.distributions.StudentT(2.0).sample((ELEMENTS,))


def many_equal() -> Tensor:
    """A few dozen magnitudes, each of which many entries have."""
    return (torch.randn(ELEMENTS) * 4).round_().div_(4)


def mostly_zero() -> Tensor:
    """Fewer entries differ from zero than are wanted: which of the zeros are taken is a matter of order."""
    return torch.randn(ELEMENTS) * (torch.rand(ELEMENTS) < 5e-4)


def clustered() -> Tensor:
    """All large entries in one place, as in a network whose last layer has the largest gradients."""
    x = torch.randn(ELEMENTS)
    x[-ELEMENTS // 200 :] *= 100
    return x


KINDS: dict[str, Callable[[], Tensor]] = {
    "normal": normal,
    "heavy tails": heavy_tailed,
    "adverse: clustered": clustered,
    "adverse: many equal": many_equal,
    "adverse: mostly zero": mostly_zero,
}


def main() -> None:
    """Prints a line per kind of values and density: medians and the paired ratios."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"d = {ELEMENTS / 1e6:.0f} M float32, medians of {REPEATS} [min, max]; aim: ratio at most 0.25")
    for kind, make in KINDS.items():
        x = make()
        for density in DENSITIES:
            k = round(density * ELEMENTS)
            calls = {
                "torch": lambda x=x, k=k: torch.topk(x.abs(), k),
                "largest": lambda x=x, k=k: largest(x[None], k),
            }
            mine, theirs = x[largest(x[None], k)[0]].abs(), torch.topk(x.abs(), k).values
            assert torch.equal(mine.sort(descending=True).values, theirs)
            times = in_turn(MPI.COMM_SELF, calls, REPEATS)
            print(
                f"  {kind:20} density {density:<5}  torch.topk {spread(times['torch'])} s  "
                f"largest {spread(times['largest'])} s  ratio {ratios(times['largest'], times['torch'])}"
            )


if __name__ == "__main__":
    main()
