"""Mixing matrices that are sure to lead workers to agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcopt.errors import UserError
from hpcopt.math.mixing import Mixing, check, mixing

if TYPE_CHECKING:
    from hpcopt.config.methods.gossip import GraphTable
    from hpcopt.problems.base import Problem


def agreeing(settings: GraphTable, problem: Problem, keeps_mean: bool = False) -> tuple[Mixing, str]:
    """The matrices W of a run, and in words the graph and how fast it mixes.

    Args:
        settings: topology and weights.
        problem: whose N workers these are.
        keeps_mean: whether W has to keep the mean over the workers.

    Raises:
        UserError: there is no such topology or mixing matrix, it never leads to agreement, or not to what is
            needed, or workers would have to count by their rows.
    """
    share = problem.share
    if not problem.equal_weights:
        raise UserError(
            "run.method: its workers count the same, but in this problem they count by their rows, and have "
            "different numbers of them; take a method with one model for all, or set samples_per_worker"
        )
    found = mixing(
        settings.topology,
        settings.mixing,
        share.total,
        probability=settings.probability,
        seed=share.seed,
    )
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
