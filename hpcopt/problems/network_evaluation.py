"""What a network tells of the workers' models: losses and accuracies on training and on test rows."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from hpcopt.problems.base import Evaluation, row
from hpcopt.problems.choice import IN_TURN, TOGETHER, only_in_turn, seconds, ways_of
from hpcopt.problems.groups import enough, in_groups, most_together
from hpcopt.problems.network_passes import PIECE, NetworkPasses
from hpcopt.problems.rows import Rows, pieces, side_by_side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from hpcopt.problems.base import Measures, Way
    from hpcopt.problems.flat_module import Forward
    from hpcopt.problems.groups import Group

EVALUATION, PIECES = "evaluation", "evaluation_piece"
SIZES = (PIECE, 128, 64)
"""rows that pass through the network at a time in an evaluation: which of them is fastest is measured"""
FEW = 16
LONG = 0.2
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
        if self._most_rows > SIZES[-1]:
            ways[PIECES] = self._sizes()
        if enough(self.share.total):
            ways[EVALUATION] = self._together_or_not()
        return ways

    def take(self, kind: str, way: str) -> None:
        """See `Problem`."""
        if kind == PIECES:
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
        penalties = torch.zeros(self.share.n, dtype=torch.float64)
        if wanted.train:
            data_losses = self._data_losses(X, buffers)
            for i in range(self.share.n if self._decay else 0):
                penalties[i] = self._penalty(row(X, i))
        if tested:
            tests = [data.even_test if common else data.own_test for data in self._data]
            lengths = [0 if test is None else len(test) for test in tests]
            test_losses, accuracies, labelled = self._assess(
                X, buffers, lambda i: cast(Rows, tests[i]), lengths, adjusted=not common, tests=True
            )
            counts = torch.tensor(lengths, dtype=torch.int64)
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
            labelled = labelled.long()
            by_rows = None if by_rows is None else labelled
            result.add("accuracy", accuracies, labelled if common else labelled > 0, by_rows)
        return result

    def _together_or_not(self) -> dict[str, Way | None]:
        """Evaluations of workers in turn and together, to be timed."""
        ways = (IN_TURN, TOGETHER)
        if not self._able():
            return only_in_turn(ways)
        kinds = [[of for of in kind if of is not None] for kind in self._kinds_of_rows()]
        groups = [(group, kind) for kind in kinds for group in self._of_equal([*map(len, kind)], SIZES[-1])]
        groups = [(group, kind) for group, kind in groups if len(kind[group.workers[0]])]
        largest = self._largest([group for group, _ in groups], EVALUATION)
        rows = next((kind for group, kind in groups if group is largest), [])
        some, X = [of.at(slice(0, PIECE)) for of in rows], self._points(largest)

        @torch.no_grad()
        def in_turn(group: Group) -> Tensor:
            self._module.train(False)
            each = enumerate(group.workers)
            found = [self._measure(row(X, k), self.buffers[i], some[i], i, False)[0] for k, i in each]
            return torch.stack(found).to(self.share.dtype)

        @torch.no_grad()
        def together(group: Group) -> Tensor:
            self._module.train(False)
            here, kept = [some[i] for i in group.workers], group.of(self.buffers).clone()
            return self._measure_of(group, X[: len(here)], kept, here, True, False)[0].to(self.share.dtype)

        return ways_of(largest, {IN_TURN: in_turn, TOGETHER: together}, self.buffers)

    def _kinds_of_rows(self) -> list[list[Rows | None]]:
        """Of each worker here: what it trains on, and both kinds of what it is tested on."""
        return [
            [worker.train for worker in self._data],
            [worker.even_test for worker in self._data],
            [worker.own_test for worker in self._data],
        ]

    def _sizes(self) -> dict[str, Way | None]:
        """Pieces of an evaluation in turn, to be timed."""
        candidates = (of for kind in self._kinds_of_rows() for of in kind if of is not None)
        rows = max(candidates, key=len, default=None)
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
        x, kept = self.initial(), self._module.buffers.clone()
        float(self._measure(x, kept, rows, None, False, size)[0])  # a number waits for the device

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
        losses = self._assess(X, buffers, rows, counts, adjusted=True, tests=False)[0]
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
        tests: bool,
    ) -> Tensor:
        """Mean loss, accuracy and labelled rows of every worker, (3, n) float64 on the CPU; 0 where no rows.

        Args:
            X, buffers: see `evaluate`.
            rows, counts: of a worker, and how many of each.
            adjusted: whether logits are as the workers see them.
            tests: whether accuracies are asked for, where there are any.
        """
        found = torch.zeros(3, self.share.n, dtype=torch.float64, device=self.share.device)

        def together(group: Group, _: str) -> Tensor:
            kept = self.buffers if buffers is None else buffers.expand(self.share.n, -1)
            at, of = (group.of(X) if X.ndim > 1 else X), [rows(i) for i in group.workers]
            return self._measure_of(group, at, group.of(kept).clone(), of, adjusted, tests)

        for group in self._of_equal(counts, self._piece) if EVALUATION in self._together else self._singles:
            if not counts[group.workers[0]]:
                continue
            measured = self._try(EVALUATION, group, together)
            if measured is not None:
                found[:, group.at] = measured
                continue
            for i in group.workers:
                kept = self.buffers[i] if buffers is None else buffers
                found[:, i] = self._measure(row(X, i), kept, rows(i), i if adjusted else None, tests)
        return found.cpu()

    def _of_equal(self, counts: Sequence[int], size: int) -> list[Group]:
        """Workers that can be evaluated together: of as many rows, in pieces of a size."""
        return in_groups(counts, lambda i: most_together(min(counts[i], size), self.dim))

    def _measure(
        self, x: Tensor, kept: Tensor, rows: Rows, i: int | None, tests: bool, size: int | None = None
    ) -> Tensor:
        """Mean loss, accuracy and labelled rows of a model on rows of worker i (None: of all), (3,) float64.

        Args:
            x: the model, (d,).
            kept: its buffers, (b,), which may be changed.
            rows, i, tests: see `_assess`.
            size: of the pieces, if not as they were taken.
        """
        sums = torch.zeros(3, dtype=torch.float64, device=self.share.device)
        self._module.point(x)
        with self._module.with_buffers(kept):
            for output, targets in self._outputs(rows, i, size or self._piece):
                sums += self._sums(output, targets, tests)
        return _means(sums, len(rows))

    def _measure_of(
        self, group: Group, X: Tensor, kept: Tensor, rows: Sequence[Rows], adjusted: bool, tests: bool
    ) -> Tensor:
        """The same of a group whose workers have equally many rows, (3, g).

        Args:
            group: these workers.
            X: their models, (g, d), or that of all, (d,).
            kept: their buffers, (g, b), which may be changed.
            rows: of each of them.
            adjusted, tests: see `_assess`.
        """

        def sums_of(forward: Forward, features: Tensor, targets: Tensor, *adjustment: Tensor) -> Tensor:
            return self._sums(sum(adjustment, forward(features)), targets, tests)

        named = self.layout.views(X)
        sums = torch.zeros(len(rows), 3, dtype=torch.float64, device=self.share.device)
        for some in zip(*(pieces(of, self._piece) for of in rows), strict=True):
            batch = self._batch_of(group if adjusted else None, side_by_side(some))
            sums += self._stack.run(sums_of, named, X.ndim > 1, kept, batch)
        return _means(sums.T, len(rows[0]))

    def _sums(self, output: Any, targets: Tensor, tests: bool) -> Tensor:
        """Over rows: the loss, how many have the right class, and how many have one, (3,) float64."""
        loss = self._objective(output, targets).reshape(()) * len(targets)
        right = labelled = torch.zeros_like(loss)
        if tests and self._classifies:
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
    """Mean loss, accuracy and labelled rows, from sums over rows, (3, …)."""
    return torch.stack([sums[0] / max(1, rows), sums[1] / sums[2].clamp(min=1), sums[2]])
