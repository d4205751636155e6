"""A task's requests and answers by mail, as the ranks that make the rounds see it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from hpcopt.comm.beside.route import COSTS, LOOK_SECONDS, STOP, Route
from hpcopt.comm.ports import Answer, Counter


class ByMail:
    """`Beside` where ranks without workers compute.

    Args:
        route: to them.
        beat: is told for whom this rank waits.

    Attributes:
        counter: ``bytes`` and ``passes`` of those beside, too; ``seconds`` of this rank alone, and
            ``elsewhere`` those that the slowest rank beside has computed.
    """

    def __init__(self, route: Route, beat: Callable[[str], None]) -> None:
        self._route, self._beat = route, beat
        self._number = STOP
        self._answers: dict[int, tuple[Tensor, Tensor]] = {}
        self.counter, self._sent = Counter(), 0.0

    def ask(self, request: Tensor, number: int) -> None:
        """See `Beside`."""
        with self._counted():
            self._number = number
            self._answers.clear()
            for rank, part in self._route.meets.items():
                self._route.put(rank, request[:, part], number)
            self.counter.payload += request.nbytes

    def arrived(self) -> bool:
        """See `Beside`."""
        with self._counted():
            return self._arrived()

    def take(self) -> Answer:
        """See `Beside`. Waits for this rank's part of the answer."""
        with self._counted():
            if not self._arrived():
                missing = [name for rank, name in enumerate(self._route.names) if self._waits_for(rank)]
                self._beat(f"the wait for what {', '.join(missing)} computes beside the rounds")
                while not self._arrived():
                    time.sleep(LOOK_SECONDS)
            return self._answer()

    def free(self) -> None:
        """Tells those beside to stop; frees the mailbox. Collective, with `Service.serve`."""
        self._route.stop()
        self._route.mailbox.free()

    def _waits_for(self, rank: int) -> bool:
        return rank in self._route.meets and rank not in self._answers

    def _arrived(self) -> bool:
        for mail in self._route.mailbox.collect():
            assert mail.stamp == self._number, "an answer to another request"
            self._answers[mail.origin] = self._route.taken(mail.vector, self._route.task.columns, True)
        return len(self._answers) == len(self._route.meets)

    def _answer(self) -> Answer:
        route, task = self._route, self._route.task
        first, numbers = next(iter(self._answers.values()))
        columns = first.new_empty(task.columns, sum(block.shape[1] for block, _ in self._answers.values()))
        for rank, (block, _) in self._answers.items():
            columns[:, route.meets[rank]] = block
        # samples, bytes, bytes of workers, payload, passes, seconds
        costs = torch.stack([values[-COSTS:] for _, values in self._answers.values()])
        samples, sent, workers, payload, _, _ = costs.sum(0).tolist()
        counter = self.counter
        counter.calls += 1
        counter.bytes += sent
        counter.bytes_workers += workers
        counter.payload += payload
        counter.passes += float(costs[:, 4].max())
        counter.elsewhere += float(costs[:, 5].max())
        return Answer(columns.T, numbers[:-COSTS], int(samples))

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Counts seconds and the mailbox's own bytes."""
        start = time.perf_counter()
        yield
        sent = self._route.mailbox.counter.bytes
        self.counter.bytes += sent - self._sent
        self._sent = sent
        self.counter.seconds += time.perf_counter() - start
