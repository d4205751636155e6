"""`hpcopt doctor`: tries what this machine really does, with a remedy per line.

One probe per line of the table (`finding.Probe`); a new port adds its own to `together.PORTS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI

    from hpcopt.doctor.finding import Probe

# whatever hangs: the table is out within two minutes, on a machine that is busy, too
SECONDS = 110.0


def examine(probes: Sequence[Probe] | None = None) -> bool:
    """Examines this machine and shows a table on rank 0. Collective over all ranks of the job; starts MPI.

    Where a probe hangs or kills a rank, the table so far is shown, the files of the probes are removed, and
    the whole job ends with exit code 1.

    Args:
        probes: what to try after starting MPI; everything if None.

    Returns:
        Whether nothing essential failed; the same on every rank.
    """
    from hpcopt.doctor.examination import Examination
    from hpcopt.doctor.table import as_table

    return Examination(as_table, SECONDS).examine(_everything if probes is None else lambda comm: probes)


def examine_together(ranks: int) -> bool:
    """The probes that need ranks, for the doctor that started this job: one line of JSON. Collective.

    Args:
        ranks: how many there should be; a mismatched mpirun starts as many jobs of one rank.
    """
    from hpcopt.doctor import together
    from hpcopt.doctor.examination import Examination
    from hpcopt.doctor.table import as_json
    from hpcopt.doctor.trial import CHILD_SECONDS

    launcher = replace(together.LAUNCHER, run=partial(together.launcher, wanted=ranks))
    probes = (launcher, together.MESSAGES, together.HDF5, *together.PORTS)
    return Examination(as_json, CHILD_SECONDS).examine(lambda comm: probes)


def _everything(comm: MPI.Comm | None) -> Sequence[Probe]:
    from hpcopt.control.launcher import expected_size
    from hpcopt.doctor import machine, together, trial

    alone = (trial.TRIAL,) if comm is not None and comm.size == expected_size() == 1 else ()
    return (
        together.LAUNCHER,
        *alone,
        machine.SOFTWARE,
        together.MESSAGES,
        together.HDF5,
        *together.PORTS,
        together.CORES,
        machine.GPU,
        machine.SLURM,
        *machine.DISKS,
        machine.DATA,
    )
