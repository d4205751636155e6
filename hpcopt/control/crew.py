"""The ranks of a job: those that make the rounds, and after them those that compute beside the rounds."""

from __future__ import annotations

from collections.abc import Callable

from mpi4py import MPI

from hpcopt.errors import HpcoptError

BUILD, OPEN = "build", "open"
"""what rank 0 tells those who compute beside: bind the problem, open the mailbox"""


class Crew:
    """Who is who. Making and freeing it is collective over all ranks.

    What the ranks beside do next, rank 0 tells them, word by word (`hear`); its last word is how the run
    ended.

    Args:
        everybody: all ranks of the job.
        beside: C, how many of them compute beside the rounds: the last ones.

    Attributes:
        everybody, beside: as given.
        comm: the ranks that do what this one does.
        makes_rounds: which that is.
    """

    def __init__(self, everybody: MPI.Comm, beside: int = 0) -> None:
        self.everybody, self.beside = everybody, beside
        self.makes_rounds = everybody.rank < everybody.size - beside
        self.comm = everybody.Split(int(self.makes_rounds), everybody.rank) if beside else everybody

    @property
    def rounders(self) -> int:
        """P - C, how many make the rounds."""
        return self.everybody.size - self.beside

    def say(self, word: str) -> None:
        """Rank 0's word to those who compute beside. Collective over those who make rounds, and `hear`."""
        if self.beside:
            self.everybody.bcast(word)

    def hear(self) -> str | HpcoptError | None:
        """The next word: `BUILD`, `OPEN`, or how the run ended. Collective over those beside."""
        assert not self.makes_rounds
        word: str | HpcoptError | None = self.everybody.bcast(None)
        return word

    def rounds(self, make: Callable[[], None]) -> None:
        """Has the rounds made, and tells everybody how that ended. Collective over those who make them.

        Raises:
            HpcoptError: that of rank 0, which is everybody's; also where these `hear` it.
        """
        if not self.beside:
            return make()
        error = None
        try:
            make()
        except HpcoptError as caught:
            error = caught
        error = self.everybody.bcast(error)
        if error is not None:
            raise error

    def free(self) -> None:
        """Frees the communicator. Collective."""
        if self.beside:
            self.comm.Free()
