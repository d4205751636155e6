"""What `hpcopt.spectrum` and the command compute of a Hessian's spectrum."""

from __future__ import annotations

from pydantic import model_validator

from hpcopt.config.base import Count, Positive, Table, Whole

Pairs = Whole


class SpectrumTable(Table):
    """Eigenpairs at both ends, and the density of all eigenvalues."""

    largest: Pairs = 10
    """how many of the largest eigenvalues"""
    smallest: Pairs = 0
    """how many of the smallest ones (with their signs)"""
    tolerance: Positive = 1e-6
    """until residuals ‖H v − λ v‖ are at most so large, relative to the largest |λ|"""
    iterations: Count | None = None
    """products with the Hessian between restarts, and vectors in the basis, of d/P numbers on each rank; if
    not given, 40, or 10 more than twice the number of pairs"""
    probes: Pairs = 4
    """random vectors for the density; 0: none"""
    nodes: Count = 40
    """products with the Hessian for each of them"""
    batch: bool = False
    """the Hessian of the loss on the first mini-batch, in place of that on all rows"""

    @property
    def pairs(self) -> int:
        """How many there are."""
        return self.largest + self.smallest

    @model_validator(mode="after")
    def _enough(self) -> SpectrumTable:
        if not self.pairs:
            raise ValueError("largest = 0 and smallest = 0: at least one must be above 0")
        if self.iterations is not None and self.iterations < self.pairs + 4:
            raise ValueError(
                f"iterations = {self.iterations}: must be at least {self.pairs + 4}, four more than "
                f"largest + smallest = {self.pairs}"
            )
        return self
