"""A task that nobody computes beside the rounds: it is computed when its answer is due."""

from __future__ import annotations

from torch import Tensor

from hpcopt.comm.ports import Answer, Task


class InLine:
    """`Beside` where all ranks make the rounds.

    Args:
        task: computed by all of them, in `take`.
    """

    def __init__(self, task: Task) -> None:
        self._task = task
        self._asked: tuple[Tensor, int] | None = None

    def ask(self, request: Tensor, number: int) -> None:
        """See `Beside`."""
        assert self._asked is None, "one request at a time"
        self._asked = request.clone(), number

    def arrived(self) -> bool:
        """See `Beside`: it can be had at any time."""
        return True

    def take(self) -> Answer:
        """See `Beside`. Collective."""
        assert self._asked is not None, "nothing was asked"
        asked, self._asked = self._asked, None
        return self._task.compute(*asked, lambda: None)
