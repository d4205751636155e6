"""What free workers have in common, whatever they put to each other: windows, and how late that is.

A window is over as soon as all ranks together have made so many gradients, which they agree on while they
compute. Of the workers of one rank the one steps that has made the fewest gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hpcopt.methods.base import StepInfo
from hpcopt.methods.parts.clock import DelayedSGDState
from hpcopt.methods.parts.staleness import Staleness
from hpcopt.problems.base import Share

if TYPE_CHECKING:
    from hpcopt.comm.ports import Mailbox
    from hpcopt.config.methods.delayed import DelayedSGDTable

BINS = 257
"""for the staleness of free workers: 0 to 255, and longer"""


class Free:
    """The workers of a rank. Local.

    Args:
        settings: the window.
        share: the workers here.
        mailbox: that agrees.

    Attributes:
        staleness: of what is put or applied here.
        info: on the last window.
    """

    def __init__(self, settings: DelayedSGDTable, share: Share, mailbox: Mailbox) -> None:
        self._window, self._mailbox = settings.window, mailbox
        self.staleness, self.info = Staleness(share, BINS), StepInfo()

    def turns(self, state: DelayedSGDState) -> Iterator[tuple[int, int]]:
        """Whose turn it is (from 0 here) and its mini-batch, until a window is over."""
        goal, made = (state.round + 1) * self._window, int(state.made.sum())
        while (agreed := self._mailbox.agree(made, goal)) is None:
            i = int(state.made.argmin())
            draw = int(state.made[i])
            state.made[i] += 1
            made += 1
            yield i, draw
        self.info = StepInfo(wish=agreed.wish)
