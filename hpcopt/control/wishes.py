"""What a rank may wish of its run. No MPI."""

from enum import IntEnum


class Stop(IntEnum):
    """Why a run stops early; the larger one wins."""

    NO = 0
    TIME = 1
    SIGNAL = 2
