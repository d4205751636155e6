"""The workers of a network: their rows, and what they are made of."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hpcopt.math.fingerprint import digest, fingerprint
from hpcopt.problems.batches import Batches
from hpcopt.problems.flat_module import FlatModule
from hpcopt.problems.labels import classes, ignored_label, log_priors
from hpcopt.problems.network_evaluation import NetworkEvaluation
from hpcopt.problems.network_passes import PIECE
from hpcopt.problems.network_trial import NetworkTrial
from hpcopt.problems.rows import Joined, read_rows, read_worker
from hpcopt.problems.seeds import Seeds
from hpcopt.problems.stack import Stack
from hpcopt.problems.trial import rows_to_try

if TYPE_CHECKING:
    from hpcopt.problems.base import Draw, Place, Share
    from hpcopt.problems.data import Partition
    from hpcopt.problems.network import Network
    from hpcopt.problems.rows import WorkerRows


class NetworkProblem(NetworkEvaluation):
    """The workers here."""

    def __init__(self, share: Share, network: Network, parts: Partition, frozen: bool = False) -> None:
        """Reads the workers' rows and tries the model out on the first of them.

        Args:
            share: the workers here.
            network: what they compute; its module is copied.
            parts: which rows each of the N workers has, and more workers perhaps.
            frozen: see `FlatModule`; gradients, too, are those of the network in evaluation mode.

        Raises:
            UserError: model, loss and data do not fit together.
        """
        table, moments = network.table, (network.data.mean, network.data.std)
        all_rows = [len(rows) for rows in parts.train[: share.total]]
        # a rank without workers, too, has to know what an evaluation tells: it looks at somebody's rows
        numbers = share.workers or range(1)
        self._joined = Joined([len(parts.train[n]) for n in numbers])
        data = [self._read(i, read_worker(network.data, parts, n, share)) for i, n in enumerate(numbers)]
        self._module = FlatModule(network.model, table.private, share.dtype, share.device, frozen)
        super().__init__(share, self._module.layout, all_rows, table.weights)
        self.buffers = self._module.buffers.expand(share.n, -1).clone()
        self._start = self._module.initial
        self._objective = network.loss
        self._data = data[: share.n]
        self._decay = table.regularisation
        self._moments = moments
        self._augment = None if frozen else network.augment
        self._seeds = Seeds(share)
        self._batches = Batches(share, self.rows.tolist(), table.batch_size)
        self._adjustments = None
        self._known_losses = None
        self._ignored = ignored_label(network.loss)
        self._network = network
        self._spread = [digest([fingerprint(rows) for rows in of]) for of in (parts.train, parts.test or [])]
        self._some = read_rows(network.data.train, rows_to_try(network.data.train.labels), share)
        self._trial = NetworkTrial(
            self._module, self._seeds, partial(self._batch_loss, i=None), self._objective, self._input
        )
        size = min(all_rows) if table.batch_size == "full" else min(*all_rows, table.batch_size)
        others = {"problem.loss": self._objective, "problem.augment": self._augment}
        first = data[0].train.at(slice(0, min(size, PIECE)))
        output, self._whole = self._trial.training(first.copy(), self._some.copy(), others)
        self._spoils = self._trial.spoils
        self._parts = isinstance(output, Tensor)
        count = classes(output, [worker.train.targets for worker in data], self._ignored)
        self._stack = Stack(self._module, self._loss_of)
        self._tests, self._classifies = data[0].even_test is not None, count is not None
        self._test_rows = 0 if network.data.test is None else len(network.data.test)
        tests = [len(rows) for rows in (parts.test or [])[: share.total]]
        self._uneven_tests = bool(tests) and max(tests) > min(tests) + 1
        if tests:
            self.test_rows = torch.tensor(tests)[share.workers.start : share.workers.stop]
        self._most_rows = max(*all_rows, *tests, -(-self._test_rows // share.total), 0)
        if table.logit_adjustment:
            priors = log_priors(
                [worker.train.targets for worker in self._data], count, share.dtype, self._ignored
            )
            self._adjustments = table.logit_adjustment * priors

    def initial(self) -> Tensor:
        """The module's values, (d,)."""
        return self._start.clone()

    def batch_rows(self, i: int, draw: Draw | None) -> int:
        """How many rows worker i (from 0 here) uses in a draw."""
        return self._batches.count(i, draw)

    @property
    def fixed(self) -> dict[str, Tensor]:
        """See `Problem`."""
        return self._module.constants

    @property
    def named(self) -> list[Place]:
        """See `Problem`."""
        return self._module.named

    @cached_property
    def made_of(self) -> dict[str, Any]:
        """See `Problem`."""
        fixed = {
            f"problem.model: {name}, which is not trained,": fingerprint(value)
            for name, value in self._module.fixed().items()
        }
        return (
            super().made_of
            | self._network.table.made_of()
            | fixed
            | {
                "the data set": self._network.data.told(),
                "which rows each worker has": self._spread[0],
                "which test rows each worker has": self._spread[1],
                "loss and output of some rows at some point": self._trial.at_some_point(self._some.copy()),
            }
        )

    def _read(self, i: int, rows: WorkerRows) -> WorkerRows:
        """The rows of worker i (from 0 here), its training rows beside those of the others."""
        return replace(rows, train=self._joined.put(i, rows.train))
