"""Any torch module on any data set: the description of the problem for all workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from hpcopt.config.problems import NetworkTable
from hpcopt.errors import UserError
from hpcopt.problems import models
from hpcopt.problems.base import check_split
from hpcopt.problems.data import array_dataset, open_dataset, partition
from hpcopt.problems.network_problem import NetworkProblem
from hpcopt.problems.newcomers import Newcomers
from hpcopt.problems.rows import read_worker

if TYPE_CHECKING:
    from hpcopt.problems.base import Share
    from hpcopt.problems.data import Dataset, Partition

Loss = Callable[[Tensor, Tensor], Tensor]
Augment = Callable[[Tensor], Tensor]
Arrays = tuple[Any, Any]
BUILT_IN = ("dataset", "model", "hidden", "dropout")
"""keys that choose the data and a built-in model"""


class Network:
    """f_n(x) = mean loss over worker n's rows + λ/2 ‖x‖², of the logits + τ log π_n.

    The vector x holds the module's parameters that require a gradient; frozen ones stay as they are.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        train: Arrays,
        test: Arrays | None = None,
        *,
        workers: int,
        augment: Augment | None = None,
        **keys: Any,
    ) -> None:
        """Describes a problem with your own module and arrays.

        Args:
            model: the network; its present values are the start, so they must be the same on every rank
                (seed torch before you make it). It is copied, not changed.
            loss: loss(output, target) -> the mean over the batch, a scalar.
            train: (x, y), tensors or arrays with one row per sample. A batch of x has the run's dtype, unless
                it is int32 or int64 (indices), which it keeps; y becomes int64 if it is an integer (classes),
                else it has the run's dtype.
            test: the same for the test rows.
            workers: N.
            augment: changes a batch of training x (B, …) on its way into the model; may draw from torch's
                global generator, which is seeded per worker and mini-batch.
            keys: those of `NetworkTable`, but for the ones that choose the data and a built-in model. Where
                there are new workers, they see the network in evaluation mode, and no augmentation.

        Raises:
            UserError: a key is unknown or out of its range, or the arrays do not fit together.
        """
        given = [key for key in keys if key in BUILT_IN]
        if given:
            raise UserError(f"{given[0]}: is for a built-in model or data set, and here you give your own")
        table = NetworkTable(workers=workers, **keys)
        self._describe(table, array_dataset(train, test), model, loss, augment, own=True)

    @classmethod
    def from_table(cls, table: NetworkTable) -> Network:
        """The problem of a config file: a built-in model, a data set by name, cross-entropy.

        Raises:
            UserError: no such data set, one without classes, or images that the model cannot take.
        """
        data = open_dataset(table.dataset)
        if data.classes is None:
            raise UserError(
                f'problem.dataset = "{table.dataset}": its targets are no class labels 0, 1, …, which '
                'kind = "network" needs; use hpcopt.Network with a loss of your own'
            )
        shape = models.image_shape(data.train.shape)
        model = models.build(table.model, shape, data.classes, table.hidden, table.dropout)
        network = cls.__new__(cls)
        network._describe(table, data, model, nn.functional.cross_entropy, None, own=False)
        return network

    def _describe(
        self,
        table: NetworkTable,
        data: Dataset,
        model: nn.Module,
        loss: Loss,
        augment: Augment | None,
        own: bool,
    ) -> None:
        self.workers, self.table, self._data = table.workers, table, data
        self._model, self._loss, self._augment, self._own_model = model, loss, augment, own

    def bind(self, share: Share) -> NetworkProblem:
        """This process's part; reads the rows of its workers.

        Raises:
            UserError: more workers than rows, a partition that the data do not allow, or a model, loss and
                data that do not fit together (tried out on the first rows).
        """
        if not self._own_model:
            models.initialise(self._model, share.seed)
        parts, table = self._parts(share.seed), self.table
        problem = self._problem(share, parts, self._augment)
        if table.new_workers:
            check_split(problem.layout, f"problem.new_workers = {table.new_workers}")
            theirs = share.newcomers(table.new_workers)
            fitted = self._problem(theirs, parts, None, frozen=True) if theirs.n else None
            problem.newcomers = Newcomers(fitted, table.new_worker_steps, table.new_worker_lr)
        return problem

    def _problem(
        self, share: Share, parts: Partition, augment: Augment | None, frozen: bool = False
    ) -> NetworkProblem:
        # a rank without workers, too, has to know what an evaluation tells: it looks at somebody's rows
        workers = share.workers or range(1)
        return NetworkProblem(
            share,
            self._model,
            self._loss,
            [read_worker(self._data, parts, worker, share) for worker in workers],
            all_rows=[len(rows) for rows in parts.train[: share.total]],
            table=self.table,
            moments=(self._data.mean, self._data.std),
            augment=augment,
            # a module of the user's may draw random numbers in any place
            random=self._own_model or augment is not None or self.table.dropout > 0,
            frozen=frozen,
        )

    def _parts(self, seed: int) -> Partition:
        table, data = self.table, self._data
        most = len(data.train) - self.workers
        if table.new_workers > most >= 0:
            raise UserError(
                f"problem.new_workers = {table.new_workers}: with run.workers = {self.workers} and "
                f"{len(data.train)} training rows at most {most}"
            )
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
