"""Mixing matrices that are sure to lead workers to agree."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hpcopt.errors import UserError
from hpcopt.math.mixing import WEIGHTED, Mixing, check, mixing

if TYPE_CHECKING:
    from hpcopt.config.methods.gossip import GraphTable
    from hpcopt.problems.base import Problem


def agreeing(
    settings: GraphTable, problem: Problem, keeps_mean: bool = False, weighs: bool = False
) -> tuple[Mixing, str]:
    """The matrices W of a run, and in words the graph and how fast it mixes.

    Args:
        settings: topology and weights.
        problem: whose N workers these are.
        keeps_mean: whether W has to keep the mean over the workers.
        weighs: whether the method multiplies gradients by `scales`; then W has to keep the mean where workers
            have different weights, or their mean by ω (mixing = "weighted").

    Raises:
        UserError: there is no such topology or mixing matrix, it never leads to agreement, or not to what is
            needed, or workers would have to count by their rows.
    """
    share = problem.share
    if not (problem.equal_weights or weighs):
        raise UserError(
            "run.method: its workers count the same, but in this problem they count by their rows, and have "
            "different numbers of them; take a method with one model for all, or set samples_per_worker"
        )
    if settings.mixing == WEIGHTED and not problem.counts.all():
        raise UserError(
            f'mixing = "{WEIGHTED}": worker {int(problem.counts.argmin())} has no rows, so that nobody would '
            "listen to it; give it some, or take metropolis"
        )
    found = mixing(
        settings.topology,
        settings.mixing,
        share.total,
        probability=settings.probability,
        seed=share.seed,
        counts=problem.counts.double().numpy(),
    )
    report = check(found)  # of a large graph the spectrum takes seconds
    if not report.gap:
        raise UserError(
            f'mixing = "{settings.mixing}": workers would never agree: their weights go round in circles '
            "(|λ₂| = 1). Give some worker a weight of its own, in a weight file a line i i weight"
        )
    kept = report.doubly_stochastic or settings.mixing == WEIGHTED
    if (keeps_mean or not problem.equal_weights) and not kept:
        who = "this method" if keeps_mean else "a problem whose workers count by their rows"
        raise UserError(
            f'mixing = "{settings.mixing}": the columns of W do not sum to 1, so mixing does not keep '
            f"the mean, which {who} needs to end in the right point; take metropolis, laplacian or weighted"
        )
    return found, f"mixing: {report.description}"


def scales(problem: Problem, settings: GraphTable) -> list[float]:
    """N ω_n of the workers here: with gradients so many times, plain means lead to a minimum of Σ ω_n f_n.

    Means by ω (mixing = "weighted") lead there with gradients as they are: 1.
    """
    if problem.equal_weights or settings.mixing == WEIGHTED:
        return [1.0] * problem.share.n  # to the last bit
    return [float(weight) for weight in problem.share.total * problem.weights.double()]
