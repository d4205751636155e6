"""Matrices of data, dense or sparse: products with them and with their transposes.

A sparse one on the CPU is SciPy's, whose arrays are shared with every view of it; on a GPU torch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from hpcopt.math.flat import aligned

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix


class Matrix(Protocol):
    """X, (r, d). Results are new tensors, of X's dtype and on its device.

    Attributes:
        shape: (r, d).
        nbytes: memory for the numbers and their places.
    """

    shape: tuple[int, int]
    nbytes: int

    def times(self, w: Tensor) -> Tensor:
        """X w, (r,); or X W, (r, m), of W (d, m)."""

    def transposed_times(self, c: Tensor) -> Tensor:
        """Xᵀ c, (d,)."""

    def squared_transposed_times(self, c: Tensor) -> Tensor:
        """(X∘X)ᵀ c, (d,)."""

    def rows(self, start: int, stop: int) -> Matrix:
        """Some of the rows, one after the other; a view."""

    def pick(self, rows: Tensor) -> Matrix:
        """Some of the rows, (k,) int64; a copy."""

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The numbers themselves, on the CPU: (X,) if dense, else data, indices and indptr of CSR."""

    def compressed(self) -> tuple[Tensor, Matrix] | None:
        """Which columns have an entry, (s,) int64, ascending, and the matrix (r, s) of those alone.

        None where that is not worth while. Entries are shared with this matrix.
        """


class DenseMatrix:
    """`Matrix` of a tensor (r, d) whose memory is `aligned`, so that its products depend on nothing else."""

    def __init__(self, X: Tensor) -> None:
        self._X = aligned(X)
        self.shape = (X.shape[0], X.shape[1])
        self.nbytes = X.numel() * X.element_size()

    def times(self, w: Tensor) -> Tensor:
        """See `Matrix`."""
        return self._X @ aligned(w)

    def transposed_times(self, c: Tensor) -> Tensor:
        """See `Matrix`."""
        return self._X.T @ aligned(c)

    def squared_transposed_times(self, c: Tensor) -> Tensor:
        """See `Matrix`; in pieces, for the squares are not kept."""
        total = self._X.new_zeros(self.shape[1])
        for piece, factors in zip(self._X.split(PIECE), c.split(PIECE), strict=True):
            total += piece.square().T @ aligned(factors)
        return total

    def rows(self, start: int, stop: int) -> DenseMatrix:
        """See `Matrix`."""
        return DenseMatrix(self._X[start:stop])

    def pick(self, rows: Tensor) -> DenseMatrix:
        """See `Matrix`."""
        return DenseMatrix(self._X.index_select(0, rows))

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """See `Matrix`."""
        return (self._X.cpu().numpy(),)

    def compressed(self) -> None:
        """See `Matrix`."""
        return


PIECE = 1024
"""rows of a dense matrix that are squared at a time"""


class SparseMatrix:
    """`Matrix` of SciPy's CSR format. Sums over a row, and over a column, are in the order of entries."""

    def __init__(self, csr: csr_matrix) -> None:
        self._csr = csr
        self.shape = csr.shape
        self.nbytes = csr.data.nbytes + csr.indices.nbytes + csr.indptr.nbytes

    def times(self, w: Tensor) -> Tensor:
        """See `Matrix`."""
        return torch.from_numpy(self._csr @ w.numpy())

    def transposed_times(self, c: Tensor) -> Tensor:
        """See `Matrix`."""
        return torch.from_numpy(self._csr.T @ c.numpy())

    def squared_transposed_times(self, c: Tensor) -> Tensor:
        """See `Matrix`."""
        csr = self._csr
        squares = _csr(csr.data * csr.data, csr.indices, csr.indptr, csr.shape[1])
        return torch.from_numpy(squares.T @ c.numpy())

    def rows(self, start: int, stop: int) -> SparseMatrix:
        """See `Matrix`."""
        csr = self._csr
        first, last = csr.indptr[start], csr.indptr[stop]
        part = _csr(
            csr.data[first:last], csr.indices[first:last], csr.indptr[start : stop + 1] - first, csr.shape[1]
        )
        return SparseMatrix(part)

    def pick(self, rows: Tensor) -> SparseMatrix:
        """See `Matrix`."""
        return SparseMatrix(self._csr[rows.numpy()])

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """See `Matrix`."""
        return self._csr.data, self._csr.indices, self._csr.indptr

    def compressed(self) -> tuple[Tensor, SparseMatrix] | None:
        """See `Matrix`."""
        csr = self._csr
        present = np.zeros(csr.shape[1], np.bool_)
        present[csr.indices] = True
        columns = np.flatnonzero(present)
        places = np.cumsum(present, dtype=csr.indices.dtype)
        places -= 1
        part = _csr(csr.data, places[csr.indices], csr.indptr, len(columns))
        return torch.from_numpy(columns), SparseMatrix(part)


class TorchSparseMatrix:
    """`Matrix` of torch's CSR format and of its transpose, for GPUs: twice the memory."""

    def __init__(self, csr: csr_matrix, device: torch.device) -> None:
        self._csr, self._device = csr, device
        self.shape = csr.shape
        self._X, self._XT = (_on(device, matrix) for matrix in (csr, csr.T.tocsr()))
        self.nbytes = 2 * (csr.data.nbytes + csr.indices.nbytes + csr.indptr.nbytes)

    def times(self, w: Tensor) -> Tensor:
        """See `Matrix`."""
        return self._X @ w

    def transposed_times(self, c: Tensor) -> Tensor:
        """See `Matrix`."""
        return self._XT @ c

    def squared_transposed_times(self, c: Tensor) -> Tensor:
        """See `Matrix`."""
        squares = torch.sparse_csr_tensor(
            self._XT.crow_indices(), self._XT.col_indices(), self._XT.values().square(), self._XT.shape
        )
        product: Tensor = squares @ c
        return product

    def rows(self, start: int, stop: int) -> TorchSparseMatrix:
        """See `Matrix`; a copy."""
        return TorchSparseMatrix(self._csr[start:stop], self._device)

    def pick(self, rows: Tensor) -> TorchSparseMatrix:
        """See `Matrix`."""
        return TorchSparseMatrix(self._csr[rows.cpu().numpy()], self._device)

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """See `Matrix`."""
        return self._csr.data, self._csr.indices, self._csr.indptr

    def compressed(self) -> tuple[Tensor, TorchSparseMatrix] | None:
        """See `Matrix`; a copy."""
        found = SparseMatrix(self._csr).compressed()
        assert found is not None
        columns, part = found
        return columns.to(self._device), TorchSparseMatrix(part._csr, self._device)


def matrix_of(rows: Any, dtype: torch.dtype, device: torch.device) -> Matrix:
    """The matrix of rows (r, d): a tensor or a NumPy array, or a SciPy CSR matrix."""
    if isinstance(rows, Tensor | np.ndarray):
        return DenseMatrix(torch.as_tensor(rows).to(device, dtype))
    rows = rows.astype(torch.empty(0, dtype=dtype).numpy().dtype, copy=False)
    return SparseMatrix(rows) if device.type == "cpu" else TorchSparseMatrix(rows, device)


def _csr(data: Any, indices: Any, indptr: Any, columns: int) -> csr_matrix:
    """A matrix of arrays, which are not copied: the constructor would copy small parts of large ones."""
    from scipy.sparse import csr_matrix

    matrix = csr_matrix((len(indptr) - 1, columns), dtype=data.dtype)
    matrix.data, matrix.indices, matrix.indptr = data, indices, indptr
    return matrix


def _on(device: torch.device, csr: csr_matrix) -> Tensor:
    starts, columns, values = (
        torch.from_numpy(part).to(device) for part in (csr.indptr, csr.indices, csr.data)
    )
    return torch.sparse_csr_tensor(starts, columns, values, csr.shape)
