"""Class labels: how many classes there are, and how often each worker has them.

With a logit adjustment τ > 0 the loss of worker n is that of the logits h + τ log π_n, where h is what the
network gives and π_n are the frequencies of the classes in the worker's rows. Where workers differ in nothing
else, Bayes' rule says p_n(y | x) ∝ π_n(y) p(x | y): with τ = 1, one h that all share is the best for each of
them, and h alone is the best for test rows with all classes alike. It is the loss of Menon et al. (ICLR 2021,
arXiv 2007.07314, "Long-tail learning via logit adjustment"), who have one learner and a balanced test.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hpcopt.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

PSEUDO_COUNT = 0.1
"""of each class in its frequencies, so that no class is ruled out"""


def ignored_label(loss: Any) -> int | None:
    """The label of rows that a loss ignores, where it says so: a module of torch's, or a partial function."""
    found = getattr(loss, "keywords", {}).get("ignore_index", getattr(loss, "ignore_index", None))
    return found if isinstance(found, int) else None


def classes(output: Any, targets: Sequence[Tensor], ignored: int | None = None) -> int | None:
    """How many classes there are; None where outputs are not (B, classes) or targets are no labels.

    Args:
        output: what the network gives for a batch.
        targets: of each worker here.
        ignored: a label that is none, as negative ones are.

    Raises:
        UserError: a label is too large.
    """
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        return None
    if targets[0].dtype != torch.int64 or targets[0].ndim != 1:
        return None
    largest = max((int(labels.max()) for labels in _known(targets, ignored) if len(labels)), default=-1)
    if largest >= output.shape[1]:
        raise UserError(
            f"problem.model has {output.shape[1]} outputs, but a label is {largest}: it needs {largest + 1}"
        )
    return int(output.shape[1])


def log_priors(
    targets: Sequence[Tensor], count: int | None, dtype: torch.dtype, ignored: int | None = None
) -> Tensor:
    """log π of each worker here, (n, classes), from the labels of its rows.

    Args:
        targets: of each worker here; what is below 0 is ignored, as cross-entropy does.
        count: of the classes.
        dtype: of the result.
        ignored: see `classes`.

    Raises:
        UserError: there are no classes.
    """
    if count is None:
        raise UserError(
            "problem.logit_adjustment needs class labels as targets, and one output per class: "
            "set it to 0 for other losses"
        )
    counts = [torch.bincount(labels, minlength=count) for labels in _known(targets, ignored)]
    stacked = torch.stack(counts) if counts else torch.empty(0, count)
    smoothed = stacked.to(dtype) + PSEUDO_COUNT
    return (smoothed / smoothed.sum(1, keepdim=True)).log()


def _known(targets: Sequence[Tensor], ignored: int | None) -> list[Tensor]:
    """Without the labels that are none."""
    return [labels[(labels >= 0) & (labels != (-1 if ignored is None else ignored))] for labels in targets]
