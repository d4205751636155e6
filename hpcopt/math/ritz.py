"""The Rayleigh-Ritz method over a growing orthonormal basis of which every process has a slice.

symbol   shape           meaning
H        (d, d)          symmetric; known by its products alone
V        (f, d here)     orthonormal rows; the first m have been multiplied with H, the other q wait for it
C        (f, m)          VᵀH v_j, as far as it was computed: for rows i up to the f of that time
T        (m, m)          V_mᵀ H V_m: the upper triangle of C, mirrored
B        (q, m)          the rest of C: H V_m = V_m T + V_q B, up to what was given up
θ, S     (m,), (m, m)    eigenvalues and eigenvectors of T; θ_i and V_m s_i are the Ritz pairs
ρ        (m,)            ‖H V s_i − θ_i V s_i‖, from B and from what was given up: |β_m s_mi| where q = 1

Where one vector waits this is Lanczos' method with full orthogonalisation, where b do it is Ruhe's band
Lanczos (Math. Comp. 33, 1979). A restart keeps Ritz vectors and what waits (thick restart: Wu & Simon, SIAM
J. Matrix Anal. Appl. 22, 2000); since T is made of dot products, it needs no formulas of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NOTHING = 100
"""roundings of the largest ‖H v‖: a new direction that is no longer than that is none"""
COLUMNS = {"cpu": 1 << 12, "cuda": 1 << 18}
"""at a time, so that copies in float64 stay small"""


@dataclass(frozen=True)
class Ritz:
    """θ ascending, S, ρ: (m,), (m, m), (m,), all float64 on the CPU, the same bits on every rank."""

    values: Tensor
    vectors: Tensor
    residuals: Tensor


class Basis:
    """V, growing, and what is known of H in it. Calls that say so are collective.

    Args:
        matvec: slice (d here,) of v -> slice of H v. Collective.
        sums: (j,) float64 partial dot products -> their sums over all slices. Collective.
        room: how many rows there may be.
        like: a vector (d here,).

    Attributes:
        expanded: m.
        filled: f.
        products: with H, so far.
        finite: whether everything was.
    """

    def __init__(
        self,
        matvec: Callable[[Tensor], Tensor],
        sums: Callable[[Tensor], Tensor],
        room: int,
        like: Tensor,
    ) -> None:
        self._matvec, self._sums = matvec, sums
        self._V = like.new_empty(room, len(like))
        self._C = torch.zeros(room, room, dtype=torch.float64)
        self._lost = torch.zeros(room, dtype=torch.float64)  # squared lengths of what was given up
        self._longest = 0.0
        self.expanded = self.filled = self.products = 0
        self.finite = True

    def append(self, w: Tensor) -> bool:
        """Adds the direction of w (d here,), if there is something new in it. Collective."""
        return self._append(w, 0.0)[2]

    def expand(self, fresh: Iterator[Tensor]) -> None:
        """Multiplies the first row that waits with H; what is new joins those that wait. Collective.

        Args:
            fresh: random vectors (d here,), of which one is taken where none waits.
        """
        while self.finite and self.filled == self.expanded:
            self.append(next(fresh))
        j, before = self.expanded, self.filled
        h, norm, added = self._append(self._matvec(self._V[j]), self._longest)
        self._C[:before, j] = h
        if added:
            self._C[before, j] = norm
        else:
            self._lost[j] = norm * norm
        self.expanded += 1
        self.products += 1
        # the length of H v is at most the largest |λ|
        self._longest = max(self._longest, float(self._C[: self.filled, j].norm()))

    def ritz(self) -> Ritz:
        """The Ritz pairs. Local."""
        m = self.expanded
        T = self._C[:m, :m].triu()
        values, S = torch.linalg.eigh(T + T.triu(1).T)
        # where a sum of Ritz vectors is used, their signs must not depend on a rounding
        S *= S.gather(0, S.abs().argmax(0, keepdim=True)).sign()
        squares = (self._waiting() @ S).square().sum(0) + S.square().T @ self._lost[:m]
        return Ritz(values, S, squares.sqrt())

    def restart(self, pairs: Ritz, kept: list[int], waiting: bool = True) -> None:
        """Some Ritz vectors become the rows that were multiplied; those that wait stay, or not. Local."""
        S, m, p = pairs.vectors[:, kept], self.expanded, len(kept)
        B, lost = self._waiting() @ S, S.square().T @ self._lost[:m]
        q = self.filled - m if waiting else 0
        self._rotate(S)
        self._V[p : p + q] = self._V[m : m + q].clone()
        self._C.zero_()
        self._lost.zero_()
        self._C[:p, :p] = torch.diag(pairs.values[kept])
        self._C[p : p + q, :p] = B[:q]
        self._lost[:p] = lost + B[q:].square().sum(0)
        self.expanded, self.filled = p, p + q

    def vectors(self, pairs: Ritz, which: list[int]) -> Tensor:
        """Some Ritz vectors, (d here, len(which)); ends the basis. Local."""
        self._rotate(pairs.vectors[:, which])
        return self._V[: len(which)].clone().T

    def _waiting(self) -> Tensor:
        """B."""
        return self._C[self.expanded : self.filled, : self.expanded]

    def _append(self, w: Tensor, longest: float) -> tuple[Tensor, float, bool]:
        """V w, the length of what is orthogonal to V, and whether that was added. Collective.

        Classical Gram-Schmidt, twice: two sums, each of f + 1 numbers. A third pass follows where the second
        took away more than half of ‖w‖², after which Pythagoras would not tell what is left.
        """
        f = self.filled
        V, w_f = self._V[:f], self._V[f]
        w_f.copy_(w)
        h, passes = torch.zeros(f, dtype=torch.float64), 0
        while True:
            # [Vᵀw, wᵀw]
            dots = self._sums(self._dots(f + 1)).cpu()
            along, square = dots[:f], float(dots[f])
            if passes == 0:
                limit = NOTHING * torch.finfo(V.dtype).eps * max(square**0.5, longest)
            # w ← w − V Vᵀw, ‖w‖² ← ‖w‖² − ‖Vᵀw‖²
            w_f.addmv_(V.T, along.to(V), alpha=-1)
            h += along
            left = square - float(along @ along)
            passes += 1
            if not torch.isfinite(dots).all():
                self.finite = False
                return h, left, False
            if passes > 1 and left <= limit * limit:
                return h, max(left, 0.0) ** 0.5, False
            if passes > 1 and left > square / 2:
                w_f /= left**0.5
                self.filled += 1
                return h, left**0.5, True

    def _dots(self, rows: int) -> Tensor:
        """The dot products of the first rows with the last of them, (rows,), over what is here."""
        V = self._V[:rows]
        if V.dtype == torch.float64:
            return V @ V[-1]
        total = V.new_zeros(rows, dtype=torch.float64)
        for piece in self._pieces():
            part = V[:, piece].double()
            total += part @ part[-1]
        return total

    def _rotate(self, S: Tensor) -> None:
        """The first rows become S.T times the first m."""
        m, p = S.shape
        turn = S.T.contiguous().to(self._V.device)
        for piece in self._pieces():
            self._V[:p, piece] = (turn @ self._V[:m, piece].double()).to(self._V)

    def _pieces(self) -> Iterator[slice]:
        step = COLUMNS[self._V.device.type]
        return (slice(start, start + step) for start in range(0, self._V.shape[1], step))
