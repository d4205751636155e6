"""What a run has measured in order to choose, and where: on other hardware it is measured again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from mpi4py import MPI


class Chosen:
    """Choices by name and place, as checkpoints carry them from job to job.

    Args:
        place: where this job is, see `place_of`.
        earlier: `everywhere` of the job before; or what older versions kept, which did not say where they had
            measured: a word by name, which is believed, and costs by numbers of ranks, taken for elsewhere's.

    Attributes:
        everywhere: name -> place -> what was chosen there; plain numbers, strings and dictionaries of such.
    """

    def __init__(self, place: str, earlier: Mapping[str, Any]) -> None:
        self._place = place
        self.everywhere: dict[str, dict[str, Any]] = {
            name: dict(found) if isinstance(found, Mapping) else {place: found}
            for name, found in earlier.items()
        }

    @property
    def here(self) -> dict[str, Any]:
        """What holds in this job, by name."""
        found = self.everywhere.items()
        return {name: places[self._place] for name, places in found if self._place in places}

    def get(self, name: str) -> Any:
        """What was chosen here; None if nothing was."""
        return self.everywhere.get(name, {}).get(self._place)

    def first(self, name: str) -> Any:
        """What was chosen where the run began."""
        return next(iter(self.everywhere[name].values()))

    def keep(self, name: str, what: Any) -> Any:
        """Remembers what is chosen here, and gives it back."""
        self.everywhere.setdefault(name, {})[self._place] = what
        return what


def place_of(comm: MPI.Comm, device: torch.device, size: int) -> str:
    """The device, how many ranks hosts have, and the length of the vector, in words. Collective.

    >>> place_of(MPI.COMM_SELF, torch.device("cpu"), 10)
    'cpu, hosts × ranks 1 × 1, 10 numbers'
    """
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found = comm.allgather((MPI.Get_processor_name(), kind))
    ranks = Counter(Counter(host for host, _ in found).values())
    hosts = " + ".join(f"{hosts} × {each}" for each, hosts in sorted(ranks.items()))
    kinds = " and ".join(sorted({kind for _, kind in found}))
    return f"{kinds}, hosts × ranks {hosts}, {size} numbers"
