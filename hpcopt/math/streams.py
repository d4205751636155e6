"""Random streams as pure functions of (seed, purpose, indices): the same on any number of ranks."""

from __future__ import annotations

import zlib

import numpy as np


def stream(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """A generator that depends on its arguments alone.

    Args:
        seed: the run's seed.
        purpose: what the numbers are for; different purposes give independent streams.
        indices: for example worker, round and step, each at least 0.
    """
    key = (zlib.crc32(purpose.encode()), *indices)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=key)))


def torch_seed(seed: int, purpose: str, *indices: int) -> int:
    """A 63-bit seed for torch's own generators (dropout), from the same family of streams."""
    return int(stream(seed, purpose, *indices).integers(2**63))
