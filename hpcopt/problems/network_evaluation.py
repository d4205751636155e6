"""What a network tells of the workers' models: losses and accuracies on training and on test rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from hpcopt.problems.base import Evaluation, row
from hpcopt.problems.choice import seconds
from hpcopt.problems.groups import in_groups, most_together
from hpcopt.problems.network_passes import PIECE, NetworkPasses
from hpcopt.problems.rows import Rows, pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hpcopt.problems.base import Measures, Way
    from hpcopt.problems.flat_module import Forward
    from hpcopt.problems.groups import Group

EVALUATION = "evaluation"
SIZES = (PIECE, 128, 64)
"""rows that pass through the network at a time in an evaluation: which of them is fastest is measured"""
FEW = 16
LONG = 0.5
"""seconds of the longest piece, as a few rows foretell them, from which on it is not even tried"""


class NetworkEvaluation(NetworkPasses):
    """Evaluations of the workers here."""

    _piece = PIECE
    _most_rows: int  # that a worker has to train or to test on, of all workers
    _tests: bool  # there are test rows
    _test_rows: int  # of all workers
    _uneven_tests: bool
    _classifies: bool  # targets are classes
    _ignored: int | None  # a label that the loss passes over
    _parts: bool  # outputs of pieces can be put together
    _known_losses: tuple[Measures, Tensor, Tensor] | None  # of an evaluation that comes again

    def ways(self) -> dict[str, dict[str, Way | None]]:
        """See `Problem`."""
        ways = super().ways()
        return ways | {EVALUATION: self._sizes()} if self._most_rows > SIZES[-1] else ways

    def take(self, kind: str, way: str) -> None:
        """See `Problem`."""
        if kind == EVALUATION:
            self._piece = int(way)
        else:
            super().take(kind, way)

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

    def _sizes(self) -> dict[str, Way | None]:
        """Pieces of an evaluation, to be timed."""
        candidates = (of for worker in self._data for of in (worker.train, worker.even_test, worker.own_test))
        rows = max((of for of in candidates if of is not None), key=len, default=None)
        if rows is None or len(rows) <= SIZES[-1]:
            return dict.fromkeys(map(str, SIZES), lambda: None)
        if SIZES[0] / FEW * seconds(partial(self._passes, rows.at(slice(0, FEW)), FEW)) > LONG:
            return dict.fromkeys(map(str, SIZES)) | {str(SIZES[-1]): lambda: None}
        most = rows.at(slice(0, SIZES[0]))
        return {str(size): partial(self._passes, most, size) for size in SIZES}

    @torch.no_grad()
    def _passes(self, rows: Rows, size: int) -> None:
        """What an evaluation of a model takes, in pieces of a size."""
        self._module.train(False)
        self._module.point(self.initial())
        with self._module.with_buffers(self._module.buffers.clone()):
            float(self._measure(rows, None, size)[0])  # a number waits for the device

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

        def together(group: Group, _: str) -> Tensor:
            return self._measure_of(group, X, buffers, [rows(i) for i in group.workers], adjusted)

        groups = self._singles
        if "losses" in self._together:
            groups = in_groups(counts, lambda i: most_together(min(counts[i], self._piece), self.dim))
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

    def _measure(self, rows: Rows, i: int | None, size: int | None = None) -> Tensor:
        """Mean loss and accuracy over rows of worker i (None: of all), (2,) float64, in pieces of a size."""
        sums = torch.zeros(3, dtype=torch.float64, device=self.share.device)
        for output, targets in self._outputs(rows, i, size or self._piece):
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
        for start in range(0, len(rows[0]), self._piece):
            some = [of.at(slice(start, start + self._piece)).tensors for of in rows]
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

    def _outputs(self, rows: Rows, i: int | None, size: int) -> Iterator[tuple[Any, Tensor]]:
        """Outputs for rows, with their targets; piece by piece, unless the loss has to see all at once."""

        def output(piece: Rows) -> Any:
            return self._adjusted(self._module.module(self._input(piece.features)), i)

        if not self._whole:
            yield from ((output(piece), piece.targets) for piece in pieces(rows, size))
        elif self._parts and len(rows):
            yield torch.cat([output(piece) for piece in pieces(rows, size)]), rows.targets
        elif len(rows):
            yield output(rows), rows.targets

    def _labelled(self, targets: Tensor) -> Tensor:
        """Which rows have a class, (r,) bool: others are ignored by the loss, and so they are here."""
        return targets >= 0 if self._ignored is None else (targets >= 0) & (targets != self._ignored)


def _means(sums: Tensor, rows: int) -> Tensor:
    """Mean loss and accuracy, (2, …), from sums over rows, (3, …)."""
    return torch.stack([sums[0] / max(1, rows), sums[1] / sums[2].clamp(min=1)])
