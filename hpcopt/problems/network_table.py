"""The keys of kind = "network". Imports no torch before the network is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from hpcopt.config.base import Count, Fraction, NonNegative, Positive
from hpcopt.config.problems import PartitionTable

if TYPE_CHECKING:
    from hpcopt.problems.network import Network


class NetworkTable(PartitionTable):
    """A neural network on images; cross-entropy."""

    fixed = PartitionTable.fixed | {
        *("model", "hidden", "private", "regularisation", "logit_adjustment", "new_workers")
    }
    dataset: str = "digits"
    """"fashion-mnist", "digits", or the path of a file made by `hpcopt data import`"""
    model: Literal["mlp", "cnn", "alexnet", "resnet18"] = "mlp"
    """the network"""
    hidden: list[Count] = Field(default=[256, 128])
    """mlp: widths of the hidden layers; the last layer is the head"""
    dropout: Fraction = 0.0
    """cnn, alexnet: dropout before the head"""
    private: list[str] = Field(default=["head.*"])
    """name patterns of the parameters that methods with private parts keep on the worker"""
    regularisation: NonNegative = 0.0
    """λ of λ/2 ‖x‖² in every worker's loss"""
    logit_adjustment: Annotated[float, Field(ge=0, le=100)] = 0.0
    """τ of τ log π_n, added to worker n's logits in training and where it tests a model of its own; π_n: how
    often its rows have each class. With 1, what is shared need not learn who has what (arXiv 2007.07314)"""
    new_workers: Annotated[int, Field(ge=0)] = 0
    """workers beside run.workers that get rows, which the others then do not have, but take no part in
    training: at each evaluation each of them fits the private parameters to its own rows, on the
    representation of the run's one model (of the mean of the workers' own models), which stays as it is;
    measured as new_worker_accuracy, …"""
    new_worker_steps: Count = 50
    """SGD steps with which a new worker does so, from the values that all workers began with"""
    new_worker_lr: Positive = 0.1
    """learning rate of these steps, whatever the method"""

    def recipe(self) -> Network:
        """The network; raises `UserError` where there is no such data set, or the model cannot take it."""
        from hpcopt.problems.network import Network

        return Network.from_table(self)
