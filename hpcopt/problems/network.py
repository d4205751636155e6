"""Any torch module on any data set: the description of the problem for all workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from hpcopt.config.problems import NetworkTable
from hpcopt.errors import UserError
from hpcopt.ground.own_code import is_own
from hpcopt.math.flat import check_split
from hpcopt.problems import models, own_network
from hpcopt.problems.batches import sizes
from hpcopt.problems.data import array_dataset, given_rows, open_dataset, partition
from hpcopt.problems.network_problem import NetworkProblem
from hpcopt.problems.newcomers import Newcomers
from hpcopt.problems.torch_dataset import torch_dataset

if TYPE_CHECKING:
    from hpcopt.problems.base import Share
    from hpcopt.problems.data import Dataset, Partition

Loss = Callable[[Tensor, Tensor], Tensor]
Augment = Callable[[Tensor], Tensor]
Arrays = tuple[Any, Any]
BUILT_IN = ("dataset", "model", "model_options", "loss_options", "hidden", "dropout")
"""keys that choose the data and a model and a loss by their names"""


class Network:
    """f_n(x) = mean loss over worker n's rows + λ/2 ‖x‖², of the logits + τ log π_n.

    The vector x holds the module's parameters that require a gradient; frozen ones stay as they are.

    Attributes:
        workers, table, data, model, loss, augment: what describes the problem.
        default_dtype: of a run that names none.
    """

    default_dtype = "float32"

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        train: Arrays | TorchDataset[Any] | str | Path,
        test: Arrays | TorchDataset[Any] | None = None,
        *,
        workers: int,
        augment: Augment | None = None,
        rows: Sequence[Any] | str | Path | None = None,
        test_rows: Sequence[Any] | None = None,
        **keys: Any,
    ) -> None:
        """Describes a problem with your own module and arrays.

        Args:
            model: the network; its present values are the start, so they must be the same on every rank
                (seed torch before you make it). It is copied, not changed.
            loss: loss(output, target) -> the mean over the batch, a scalar.
            train: (x, y), tensors or arrays with one row per sample. A batch of x has the run's dtype, unless
                it is int32 or int64 (indices), which it keeps; y becomes int64 if it is an integer (classes),
                else it has the run's dtype. Or a torch ``Dataset`` of such rows (x, y), of which each rank
                reads its own; or the name of a data set or the path of an imported file, test rows included,
                standardised by its mean and deviation.
            test: the same for the test rows.
            workers: N.
            augment: changes a batch of training x (B, …) on its way into the model; may draw from torch's
                global generator, which is seeded per worker and mini-batch.
            rows: which training rows each worker has, as numbers or as a mask, in place of a partition; the
                new workers' after those of the N. Or the path of a file (`hpcopt.problems.data.given`).
            test_rows: the same for the test rows that models of the workers' own are tested on; even parts of
                all if None.
            keys: those of `NetworkTable`, but for the ones that choose data, model and loss by name. Where
                there are new workers, they see the network in evaluation mode, and no augmentation.

        Raises:
            UserError: a key is unknown or out of its range, or the arrays do not fit together.
        """
        given = [key for key in keys if key in BUILT_IN]
        if given:
            raise UserError(f"{given[0]}: is for configs and built-in models, and here you give your own")
        named: dict[str, Any] = {"rows": str(rows)} if isinstance(rows, str | Path) else {}
        self.workers, self.table = workers, NetworkTable(workers=workers, **keys, **named)
        self._rows, self._test_rows = rows, test_rows
        self.data, self.model, self.loss, self.augment = _dataset(train, test), model, loss, augment
        _refuse_sparse(self.data, "train")

    def bind(self, share: Share) -> NetworkProblem:
        """This process's part; reads the rows of its workers.

        Raises:
            UserError: more workers than rows, a partition that the data do not allow, or a model, loss and
                data that do not fit together (tried out on the first rows).
        """
        parts, table = self._parts(share.seed), self.table
        problem = NetworkProblem(share, self, parts)
        if table.new_workers:
            check_split(problem.layout, f"problem.new_workers = {table.new_workers}")
            theirs = share.newcomers(table.new_workers)
            fitted = NetworkProblem(theirs, self, parts, frozen=True) if theirs.n else None
            problem.newcomers = Newcomers(fitted, table.new_worker_steps, table.new_worker_lr)
        return problem

    def sizes_of_workers(self, seed: int) -> list[tuple[int, int]]:
        """See `hpcopt.problems.base.Recipe`; raises `UserError` as `bind` does."""
        parts = self._parts(seed).train[: self.workers]
        return sizes(map(len, parts), self.table.batch_size)

    def _parts(self, seed: int) -> Partition:
        table, data = self.table, self.data
        most = len(data.train) - self.workers
        if table.new_workers > most >= 0:
            raise UserError(
                f"problem.new_workers = {table.new_workers}: with run.workers = {self.workers} and "
                f"{len(data.train)} training rows at most {most}"
            )
        if self._rows is not None:
            totals = len(data.train), None if data.test is None else len(data.test)
            return given_rows(self._rows, self._test_rows, totals, self.workers + table.new_workers)
        return partition(
            data.train.labels,
            None if data.test is None else data.test.labels,
            self.workers + table.new_workers,
            kind=table.partition,
            alpha=table.alpha,
            classes_per_worker=table.classes_per_worker,
            samples_per_worker=table.samples_per_worker,
            seed=seed,
        )


class BuiltInNetwork(Network):
    """The problem of a config file: a model, a loss and a data set by their names."""

    def __init__(self, table: NetworkTable) -> None:
        """Opens the data set and builds the model.

        Raises:
            UserError: no such data set or loss, or a built-in model that cannot take the rows.
        """
        self.workers, self.table, self.data = table.workers, table, open_dataset(table.dataset)
        _refuse_sparse(self.data, f'problem.dataset = "{table.dataset}"')
        own_model, own_loss = is_own(table.model), is_own(table.loss)
        self.loss, self.augment = nn.functional.cross_entropy, None
        if own_loss:
            self.loss = own_network.own_loss(table.loss, table.loss_options)
        self._rows, self._test_rows = table.rows, None
        if self.data.classes is None and not (own_model and own_loss):
            raise UserError(
                f'problem.dataset = "{table.dataset}": its targets are no class labels 0, 1, …, which '
                "the built-in models and cross-entropy need; name a model and a loss of your own"
            )
        self._own = own_model
        if not own_model:
            classes, shape = self.data.classes or 0, models.image_shape(self.data.train.shape)
            self.model = models.build(table.model, shape, classes, table.hidden, table.dropout)

    def bind(self, share: Share) -> NetworkProblem:
        """See `Network`; the model starts from the seed."""
        if self._own:
            self.model = own_network.own_model(self.table.model, self.table.model_options, share.seed)
        else:
            models.initialise(self.model, share.seed)
        return super().bind(share)


def _dataset(train: Any, test: Any) -> Dataset:
    if isinstance(train, str | Path):
        if test is not None:
            raise UserError(f'test: "{train}" has the test rows, too')
        return open_dataset(str(train))
    if isinstance(train, TorchDataset):
        return torch_dataset(train, test)
    return array_dataset(train, test)


def _refuse_sparse(data: Dataset, name: str) -> None:
    if data.sparse:
        raise UserError(f'{name}: its rows are sparse, but kind = "network" needs dense ones')
