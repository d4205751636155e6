"""Mixing matrices that are sure to lead workers to agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcopt.errors import UserError
from hpcopt.math.mixing import Mixing, check, mixing

if TYPE_CHECKING:
    from hpcopt.config.methods import MixingTable


def agreeing(settings: MixingTable, N: int, seed: int, keeps_mean: bool = False) -> tuple[Mixing, str]:
    """The matrices W of a run, and in words the graph and how fast it mixes.

    Args:
        settings: topology and weights.
        N: workers.
        seed: of random graphs.
        keeps_mean: whether W has to keep the mean over the workers.

    Raises:
        UserError: there is no such topology or mixing matrix, it never leads to agreement, or not to what is
            needed.
    """
    found = mixing(settings.topology, settings.mixing, N, probability=settings.probability, seed=seed)
    report = check(found)  # of a large graph the spectrum takes seconds
    if not report.gap:
        raise UserError(
            f'mixing = "{settings.mixing}": workers would never agree: their weights go round in circles '
            "(|λ₂| = 1). Give some worker a weight of its own, in a weight file a line i i weight"
        )
    if keeps_mean and not report.doubly_stochastic:
        raise UserError(
            f'mixing = "{settings.mixing}": the columns of W do not sum to 1, so mixing does not keep '
            "the mean, which this method needs to end in the right point; take metropolis or laplacian"
        )
    return found, f"mixing: {report.description}"
