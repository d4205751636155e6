"""Any torch module on any data set: the description of the problem for all workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from hpcopt.config.problems import NetworkTable
from hpcopt.errors import UserError
from hpcopt.problems import models
from hpcopt.problems.base import check_split, checked
from hpcopt.problems.data import array_dataset, open_dataset, partition
from hpcopt.problems.network_problem import NetworkProblem
from hpcopt.problems.newcomers import Newcomers
from hpcopt.problems.rows import read_worker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hpcopt.problems.base import Share
    from hpcopt.problems.data import Dataset, Partition

Loss = Callable[[Tensor, Tensor], Tensor]
Augment = Callable[[Tensor], Tensor]
Arrays = tuple[Any, Any]


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
        partition: Literal["iid", "dirichlet", "classes", "unequal"] = "iid",
        alpha: float = 0.5,
        classes_per_worker: int = 2,
        samples_per_worker: int | None = None,
        batch_size: int | Literal["full"] = 32,
        private: Sequence[str] = ("head.*",),
        regularisation: float = 0.0,
        logit_adjustment: float = 0.0,
        weights: Literal["uniform", "rows"] = "uniform",
        augment: Augment | None = None,
        new_workers: int = 0,
        new_worker_steps: int = 50,
        new_worker_lr: float = 0.1,
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
            partition: how rows are spread over workers, see `hpcopt.problems.data.partition`.
            alpha: for partition = "dirichlet" and "unequal".
            classes_per_worker: for partition = "classes".
            samples_per_worker: exactly so many training rows per worker.
            batch_size: rows per mini-batch and worker, or "full".
            private: name patterns of the parameters that methods with private parts keep on the worker.
            regularisation: λ.
            logit_adjustment: τ of τ log π_n, added to worker n's logits, see `hpcopt.problems.labels`.
            weights: ω_n, equal or in proportion to a worker's rows.
            augment: changes a batch of training x (B, …) on its way into the model; may draw from torch's
                global generator, which is seeded per worker and mini-batch.
            new_workers: workers beside these that do not train, but at each evaluation fit the private
                parameters to rows of their own, on the representation of the run's one model; see
                `hpcopt.problems.newcomers`. They see the network in evaluation mode, and no augmentation.
            new_worker_steps: SGD steps with which each of them does so.
            new_worker_lr: their learning rate.

        Raises:
            UserError: an argument is out of its range, or the arrays do not fit together.
        """
        table = checked(
            NetworkTable,
            kind="network",
            partition=partition,
            alpha=alpha,
            classes_per_worker=classes_per_worker,
            samples_per_worker=samples_per_worker,
            batch_size=batch_size,
            private=list(private),
            regularisation=regularisation,
            logit_adjustment=logit_adjustment,
            weights=weights,
            new_workers=new_workers,
            new_worker_steps=new_worker_steps,
            new_worker_lr=new_worker_lr,
        )
        data = array_dataset(train, test)
        self._describe(table, workers, data, model, loss, augment=augment, own_model=True)

    @classmethod
    def from_table(cls, table: NetworkTable, workers: int) -> Network:
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
        loss = nn.functional.cross_entropy
        network._describe(table, workers, data, model, loss, augment=None, own_model=False)
        return network

    def _describe(
        self,
        table: NetworkTable,
        workers: int,
        data: Dataset,
        model: nn.Module,
        loss: Loss,
        *,
        augment: Augment | None,
        own_model: bool,
    ) -> None:
        self.workers = workers
        self.table = table
        self._data = data
        self._model = model
        self._loss = loss
        self._augment = augment
        self._own_model = own_model

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
        return NetworkProblem(
            share,
            self._model,
            self._loss,
            [read_worker(self._data, parts, worker, share) for worker in share.workers],
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
