"""What asks for more memory than there is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from hpcopt.errors import UserError

TOLD = (
    "allocate memory",
    "out of memory",
    "array is too big",
    "Maximum allowed dimension",
    "exceeds the max",
)
"""how torch and NumPy say so where they raise no MemoryError"""


@contextmanager
def enough(what: str) -> Iterator[None]:
    """Raises a `UserError` where there is not enough memory within.

    Args:
        what: is made: "the problem".
    """
    try:
        yield
    except (MemoryError, RuntimeError, ValueError, OverflowError) as error:
        if not isinstance(error, MemoryError) and not any(words in str(error) for words in TOLD):
            raise
        reason = (str(error).splitlines() or ["MemoryError"])[0]
        raise UserError(f"there is not enough memory for {what}: {reason}") from None
