"""Averages with the neighbours: mixing matrices, checked, and the port that they travel through."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcopt.errors import UserError
from hpcopt.math.mixing import check, mixing

if TYPE_CHECKING:
    from torch import Tensor

    from hpcopt.comm.ports import Neighbours, Ports
    from hpcopt.config.methods import MixingTable
    from hpcopt.problems.base import Share


class Gossip:
    """The matrices W of a run, see `hpcopt.math.mixing`. Local; a large graph's spectrum takes seconds.

    Args:
        settings: topology and weights.
        share: which run it is.
        keeps_mean: whether W has to keep the mean over the workers.

    Raises:
        UserError: there is no such topology or mixing matrix, it never leads to agreement, or not to what is
            needed.
    """

    def __init__(self, settings: MixingTable, share: Share, keeps_mean: bool = False) -> None:
        self._mixing = mixing(
            settings.topology,
            settings.mixing,
            share.total,
            probability=settings.probability,
            seed=share.seed,
        )
        report = check(self._mixing)
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
        self.note = f"mixing: {report.description}"
        """the graph, and how fast it mixes"""

    def open(self, ports: Ports, like: Tensor) -> Neighbours:
        """The port for averages of rows like a vector (m,). Collective."""
        return ports.neighbours(like, self._mixing)
