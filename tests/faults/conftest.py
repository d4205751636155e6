"""Faults: what a job does when its input, its files, its disk or its ranks fail.

These tests start real jobs and look at them from outside; the test process itself never imports MPI.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from examine import Examiner


@pytest.fixture(scope="session")
def examiner() -> Iterator[Examiner]:
    """Looks into runs' directories, in a process of its own."""
    with Examiner() as examiner:
        yield examiner
