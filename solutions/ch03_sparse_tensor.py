"""Chapter 03: a tensor kept as its non-zero entries."""

from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor


class SparseTensor:
    """A non-negative tensor of rank 1 or more, kept as its non-zero entries.

    The sparse form has three parts:

    - `values`, shape `(nnz,)`: the entries that are not zero;
    - `indices`, int64, shape `(nnz, rank)`: row `n` is the position of `values[n]`;
    - `shape`, a tuple of `rank` ints: the shape of the dense tensor.

    `nnz` may be 0 or 1, and the axes stay: a single entry has `values` of shape `(1,)` and `indices`
    of shape `(1, rank)`. Negative entries and positions listed twice are outside the contract.
    """

    def __init__(self, values: Float[Tensor, " nnz"], indices: Int[Tensor, "nnz rank"], shape: tuple[int, ...]) -> None:
        """Keep what the properties need. Only your own class methods call this: change it as you like."""
        # BEGIN SOLUTION
        self._values = values
        self._indices = indices
        self._shape = shape
        # END SOLUTION

    @classmethod
    def from_dense(cls, dense: Float[Tensor, "..."]) -> Self:
        """List the non-zero entries of `dense` in row-major order (the last index moves fastest).

        Args:
            dense: a tensor of rank 1 or more, of any float dtype and on any device.

        Returns:
            Its sparse form; `values` keep the dtype and the device.
        """
        # BEGIN SOLUTION
        if dense.ndim == 0:
            raise ValueError("a SparseTensor needs rank 1 or more: a single number has no position to list")
        indices = dense.nonzero()
        return cls(dense[indices.unbind(dim=-1)], indices, tuple(dense.shape))
        # END SOLUTION

    @classmethod
    def from_sparse(cls, sparse: tuple[Float[Tensor, " nnz"], Int[Tensor, "nnz rank"], tuple[int, ...]]) -> Self:
        """Take the three parts as they are: nothing squeezed, nothing sorted.

        What is computed from `dense` can be differentiated with respect to `values`.

        Args:
            sparse: (values, indices, shape), as `sparse` gives them. Indices may come as int32 and are kept as int64.

        Returns:
            The same tensor in the sparse form.
        """
        # BEGIN SOLUTION
        values, indices, shape = sparse
        shape = tuple(int(size) for size in shape)
        if values.ndim != 1 or indices.shape != (len(values), len(shape)) or not shape:
            raise ValueError(
                f"values {tuple(values.shape)}, indices {tuple(indices.shape)} and shape {shape} do not fit "
                "together: they must be (nnz,), (nnz, rank) and one size per axis, with rank 1 or more"
            )
        return cls(values, indices.to(torch.int64), shape)
        # END SOLUTION

    @property
    def values(self) -> Float[Tensor, " nnz"]:
        """The non-zero entries, in the dtype and on the device of the data."""
        # BEGIN SOLUTION
        return self._values
        # END SOLUTION

    @property
    def indices(self) -> Int[Tensor, "nnz rank"]:
        """The position of each value, int64."""
        # BEGIN SOLUTION
        return self._indices
        # END SOLUTION

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the dense tensor."""
        # BEGIN SOLUTION
        return self._shape
        # END SOLUTION

    @property
    def sparse(self) -> tuple[Float[Tensor, " nnz"], Int[Tensor, "nnz rank"], tuple[int, ...]]:
        """(values, indices, shape), ready for `from_sparse`."""
        # BEGIN SOLUTION
        return self._values, self._indices, self._shape
        # END SOLUTION

    @property
    def dense(self) -> Float[Tensor, "..."]:
        """The whole tensor, zeros included, in the dtype and on the device of `values`."""
        # BEGIN SOLUTION
        zeros = torch.zeros(self._shape, dtype=self._values.dtype, device=self._values.device)
        return zeros.index_put(self._indices.unbind(dim=-1), self._values)
        # END SOLUTION
