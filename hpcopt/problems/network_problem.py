"""The workers of a network: their rows, what they are made of, and their evaluation."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from hpcopt.math.fingerprint import digest, fingerprint
from hpcopt.problems.base import Evaluation, row
from hpcopt.problems.batches import Batches
from hpcopt.problems.flat_module import FlatModule
from hpcopt.problems.groups import in_groups, most_together
from hpcopt.problems.labels import classes, ignored_label, log_priors
from hpcopt.problems.network_passes import PIECE, NetworkPasses
from hpcopt.problems.network_trial import NetworkTrial
from hpcopt.problems.rows import Joined, Rows, pieces, read_rows, read_worker, standardised
from hpcopt.problems.seeds import Seeds
from hpcopt.problems.stack import Stack
from hpcopt.problems.trial import rows_to_try

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hpcopt.problems.base import Draw, Measures, Place, Share
    from hpcopt.problems.data import Partition
    from hpcopt.problems.flat_module import Forward
    from hpcopt.problems.groups import Group
    from hpcopt.problems.network import Network
    from hpcopt.problems.rows import WorkerRows


class NetworkProblem(NetworkPasses):
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
        self._input = partial(standardised, moments=moments, dtype=share.dtype)
        self._augment = None if frozen else network.augment
        self._seeds = Seeds(share)
        self._batches = Batches(share, self.rows.tolist(), table.batch_size)
        self._adjustments = None
        self._known_losses: tuple[Measures, Tensor, Tensor] | None = None
        self._ignored = ignored_label(network.loss)
        self._network = network
        self._spread = [digest([fingerprint(rows) for rows in of]) for of in (parts.train, parts.test or [])]
        self._some = read_rows(network.data.train, rows_to_try(network.data.train.labels), share)
        self._trial = NetworkTrial(
            self._module, self._seeds, partial(self._batch_loss, i=None), self._objective, self._input
        )
        size = min(all_rows) if table.batch_size == "full" else min(*all_rows, table.batch_size)
        others = {"problem.loss": self._objective, "problem.augment": self._augment}
        output, self._whole = self._trial.training(
            data[0].train.at(slice(0, min(size, PIECE))), self._some, others
        )
        self._parts = isinstance(output, Tensor)
        count = classes(output, [worker.train.targets for worker in data], self._ignored)
        self._stack = Stack(self._module, self._loss_of)
        self._tests, self._classifies = data[0].even_test is not None, count is not None
        self._test_rows = 0 if network.data.test is None else len(network.data.test)
        tests = [len(rows) for rows in (parts.test or [])[: share.total]]
        self._uneven_tests = bool(tests) and max(tests) > min(tests) + 1
        if tests:
            self.test_rows = torch.tensor(tests)[share.workers.start : share.workers.stop]
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
                "loss and output of some rows at some point": self._trial.at_some_point(self._some),
            }
        )

    @torch.no_grad()
    def evaluate(self, X: Tensor, buffers: Tensor | None = None) -> Evaluation:
        """Evaluation-mode loss on the workers' training rows; loss and accuracy on test rows.

        ``loss``: with regularisation, weight ω_n. ``test_loss`` (without) and, for class targets,
        ``accuracy`` in [0, 1]: of one model for all on the worker's even slice of all test rows, weight its
        number of rows; of the workers' own models on their own test rows, weight 1 where there are any.
        ``generalisation_gap``: test_loss minus the training loss without regularisation. Means by rows, too,
        where workers have different numbers of them.

        Args:
            X: (d,), one model for all workers, or (n, d), a model of each worker here.
            buffers: (b,) to use in place of the workers' own.
        """
        common, wanted = X.ndim == 1, self.measures
        tested = self._tests and wanted.test
        self._module.train(False)
        penalties, test_losses, accuracies = torch.zeros(3, self.share.n, dtype=torch.float64)
        counts, labelled = torch.zeros(2, self.share.n, dtype=torch.int64)
        if wanted.train:
            data_losses = self._data_losses(X, buffers)
            for i in range(self.share.n if self._decay else 0):
                penalties[i] = self._penalty(row(X, i))
        if tested:
            tests = [data.even_test if common else data.own_test for data in self._data]
            lengths = [0 if test is None else len(test) for test in tests]
            test_losses, accuracies = self._assess(
                X, buffers, lambda i: cast(Rows, tests[i]), lengths, adjusted=not common
            )
            counts = torch.tensor(lengths, dtype=torch.int64)
        if tested and self._classifies:
            each = [0 if test is None else int(self._labelled(test.targets).sum()) for test in tests]
            labelled = torch.tensor(each, dtype=torch.int64)
        result = Evaluation()
        if wanted.train:
            result.add("loss", data_losses + penalties, self.weights, self.by_rows())
        by_rows = None if common or not self._uneven_tests else counts
        if tested:
            result.add("test_loss", test_losses, counts if common else counts > 0, by_rows)
        if tested and wanted.train:
            gaps = test_losses - data_losses
            if common:  # so that Σ gap_n / N is the difference of the two means, which have other weights
                weights = self.weights.cpu().double()
                gaps = self.share.total * (test_losses * counts / self._test_rows - data_losses * weights)
            result.add("generalisation_gap", gaps, torch.ones(self.share.n) if common else counts > 0)
        if tested and self._classifies:
            by_rows = None if by_rows is None else labelled
            result.add("accuracy", accuracies, labelled if common else labelled > 0, by_rows)
        return result

    def _data_losses(self, X: Tensor, buffers: Tensor | None) -> Tensor:
        """Mean losses on the training rows to evaluate, (n,); of one model for all only once."""
        known, self._known_losses = self._known_losses, None
        shared = X.ndim > 1 and len(X) > 1 and X.stride(0) == 0 and not self.buffers.shape[1]
        if X.ndim == 1 or shared:
            X = X if X.ndim == 1 else X[0]
            if known is not None and known[0] == self.measures and torch.equal(known[1], X):
                return known[2]
        draw = self.measures.draw

        def rows(i: int) -> Rows:
            chosen = self._batches.select(i, draw)
            return self._data[i].train if chosen is None else self._data[i].train.at(chosen)

        counts = [self._batches.count(i, draw) for i in range(self.share.n)]
        losses, _ = self._assess(X, buffers, rows, counts, adjusted=True)
        if shared:  # methods whose workers share a model have it evaluated as theirs, and then as that of all
            self._known_losses = self.measures, X.clone(), losses
        return losses

    def _assess(
        self,
        X: Tensor,
        buffers: Tensor | None,
        rows: Callable[[int], Rows],
        counts: Sequence[int],
        adjusted: bool,
    ) -> tuple[Tensor, Tensor]:
        """Mean loss and accuracy of every worker, (n,) float64 on the CPU each; 0 where it has no rows.

        Args:
            X, buffers: see `evaluate`.
            rows, counts: of a worker, and how many of each.
            adjusted: whether logits are as the workers see them.
        """
        found = torch.zeros(2, self.share.n, dtype=torch.float64, device=self.share.device)

        def together(group: Group) -> Tensor:
            return self._measure_of(group, X, buffers, [rows(i) for i in group.workers], adjusted)

        groups = self._singles
        if "losses" in self._together:
            groups = in_groups(counts, lambda i: most_together(min(counts[i], PIECE), self.dim))
        for group in groups:
            if not counts[group.workers[0]]:
                continue
            measured = self._try("losses", group, together)
            if measured is not None:
                found[:, group.at] = measured
                continue
            for i in group.workers:
                self._module.point(row(X, i))
                with self._module.with_buffers(self.buffers[i] if buffers is None else buffers):
                    found[:, i] = self._measure(rows(i), i if adjusted else None)
        losses, accuracies = found.cpu()
        return losses, accuracies

    def _measure(self, rows: Rows, i: int | None) -> Tensor:
        """Mean loss and accuracy over rows of worker i (None: of all), (2,) float64."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.share.device)
        for output, targets in self._outputs(rows, i):
            sums += self._sums(output, targets)
        return _means(sums, len(rows))

    def _measure_of(
        self, group: Group, X: Tensor, buffers: Tensor | None, rows: Sequence[Rows], adjusted: bool
    ) -> Tensor:
        """The same of a group whose workers have equally many rows, (2, g)."""

        def sums_of(forward: Forward, features: Tensor, targets: Tensor, *adjustment: Tensor) -> Tensor:
            return self._sums(sum(adjustment, forward(features)), targets)

        named = self.layout.views(group.of(X) if X.ndim > 1 else X)
        kept = (self.buffers if buffers is None else buffers.expand(self.share.n, -1))[group.at].clone()
        sums = torch.zeros(len(rows), 3, dtype=torch.float64, device=self.share.device)
        for start in range(0, len(rows[0]), PIECE):
            some = [of.at(slice(start, start + PIECE)).tensors for of in rows]
            together = Rows(*(torch.stack(columns) for columns in zip(*some, strict=True)))
            batch = self._batch_of(group if adjusted else None, together)
            sums += self._stack.run(sums_of, named, X.ndim > 1, kept, batch)
        return _means(sums.T, len(rows[0]))

    def _sums(self, output: Any, targets: Tensor) -> Tensor:
        """Over rows: the loss, how many have the right class, and how many have one, (3,) float64."""
        loss = self._objective(output, targets).reshape(()) * len(targets)
        right = labelled = torch.zeros_like(loss)
        if self._classifies:
            known = self._labelled(targets)
            right, labelled = ((output.argmax(1) == targets) & known).sum(), known.sum()
        return torch.stack([loss.double(), right.double(), labelled.double()])

    def _outputs(self, rows: Rows, i: int | None) -> Iterator[tuple[Any, Tensor]]:
        """Outputs for rows, with their targets; piece by piece, unless the loss has to see all at once."""

        def output(piece: Rows) -> Any:
            return self._adjusted(self._module.module(self._input(piece.features)), i)

        if not self._whole:
            yield from ((output(piece), piece.targets) for piece in pieces(rows, PIECE))
        elif self._parts and len(rows):
            yield torch.cat([output(piece) for piece in pieces(rows, PIECE)]), rows.targets
        elif len(rows):
            yield output(rows), rows.targets

    def _labelled(self, targets: Tensor) -> Tensor:
        """Which rows have a class, (r,) bool: others are ignored by the loss, and so they are here."""
        return targets >= 0 if self._ignored is None else (targets >= 0) & (targets != self._ignored)

    def _read(self, i: int, rows: WorkerRows) -> WorkerRows:
        """The rows of worker i (from 0 here), its training rows beside those of the others."""
        return replace(rows, train=self._joined.put(i, rows.train))


def _means(sums: Tensor, rows: int) -> Tensor:
    """Mean loss and accuracy, (2, …), from sums over rows, (3, …)."""
    return torch.stack([sums[0] / max(1, rows), sums[1] / sums[2].clamp(min=1)])
