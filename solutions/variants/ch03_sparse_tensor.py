"""Other ways of writing chapter 03: right ones that must pass, wrong ones that must be caught."""

import itertools

import torch

from solutions.ch03_sparse_tensor import SparseTensor as Reference
from utils.checks.variants import right, wrong


@right("SparseTensor")
class FlatPositions:
    """Keeps positions in the flattened tensor and works the indices out when asked."""

    @classmethod
    def from_dense(cls, dense):
        made = cls()
        made.shape = dense.shape
        made.flat = torch.arange(dense.numel(), device=dense.device)[dense.reshape(-1) > 0]
        made.values = dense.reshape(-1)[made.flat]
        return made

    @classmethod
    def from_sparse(cls, sparse):
        made = cls()
        made.values, indices, made.shape = sparse
        made.flat = torch.zeros_like(indices[:, 0], dtype=torch.int64)
        for axis, size in enumerate(made.shape):
            made.flat = made.flat * size + indices[:, axis].to(torch.int64)
        return made

    @property
    def indices(self):
        rest, columns = self.flat, []
        for size in reversed(self.shape):
            columns.insert(0, rest % size)
            rest = rest // size
        return torch.stack(columns, dim=-1)

    @property
    def sparse(self):
        return self.values, self.indices, self.shape

    @property
    def dense(self):
        zeros = self.values.new_zeros(self.shape).reshape(-1)
        return zeros.scatter(0, self.flat, self.values).reshape(self.shape)


@right("SparseTensor")
class TwoForms:
    """Builds both forms at once and keeps them."""

    def __init__(self, sparse, dense):
        self.sparse, self.dense = sparse, dense

    @classmethod
    def from_dense(cls, dense):
        return cls((dense[dense != 0], torch.argwhere(dense), tuple(dense.shape)), dense)

    @classmethod
    def from_sparse(cls, sparse):
        values, indices, shape = sparse
        indices = indices.long()
        dense = torch.zeros(shape, dtype=values.dtype, device=values.device)
        dense[indices.unbind(dim=-1)] = values
        return cls((values, indices, tuple(shape)), dense)

    @property
    def values(self):
        return self.sparse[0]

    @property
    def indices(self):
        return self.sparse[1]

    @property
    def shape(self):
        return self.sparse[2]


@right("SparseTensor")
class OneEntryAtATime(Reference):
    """Slow and plain: a Python loop over positions, and a sum of one-hot tensors."""

    @classmethod
    def from_dense(cls, dense):
        everywhere = itertools.product(*(range(size) for size in dense.shape))
        found = [position for position in everywhere if dense[position].item() > 0]
        values = [dense[position] for position in found]
        indices = torch.tensor(found, dtype=torch.int64).reshape(len(found), dense.ndim)
        return cls(torch.stack(values) if values else dense.new_zeros(0), indices, tuple(dense.shape))

    @property
    def dense(self):
        total = self.values.new_zeros(self.shape)
        for value, position in zip(self.values, self.indices.tolist(), strict=True):
            one_hot = torch.zeros_like(total)
            one_hot[tuple(position)] = 1
            total = total + value * one_hot
        return total


@right("SparseTensor")
class ThroughTorchSparse(Reference):
    """Lets torch's own sparse tensors do the work."""

    @classmethod
    def from_dense(cls, dense):
        coo = dense.to_sparse(layout=torch.sparse_coo)
        return cls(coo.values(), coo.indices().T, tuple(dense.shape))

    @property
    def dense(self):
        coo = torch.sparse_coo_tensor(self.indices.T, self.values, self.shape, check_invariants=True)
        return coo.to_dense()


@wrong("SparseTensor", mistake="a bare squeeze in from_dense", hint="squeeze")
class BareSqueeze(Reference):
    @classmethod
    def from_dense(cls, dense):
        return cls(dense[dense > 0].squeeze(), dense.nonzero().squeeze(), tuple(dense.shape))


@wrong("SparseTensor", mistake="a bare squeeze in from_sparse", hint="squeeze")
class SqueezedOnTheWayIn(Reference):
    @classmethod
    def from_sparse(cls, sparse):
        values, indices, shape = sparse
        return cls(values.squeeze(), indices.long(), tuple(shape))


@wrong("SparseTensor", mistake="indices squeezed at rank 1", hint="(nnz, 1)")
class FlatAtRankOne(Reference):
    @property
    def indices(self):
        return self._indices[:, 0] if len(self._shape) == 1 else self._indices


@wrong("SparseTensor", mistake="column-major order", hint="row-major")
class ColumnMajor(Reference):
    @classmethod
    def from_dense(cls, dense):
        indices = dense.permute(*reversed(range(dense.ndim))).nonzero().flip(-1)
        return cls(dense[indices.unbind(-1)], indices, tuple(dense.shape))


@wrong("SparseTensor", mistake="entries sorted by value", hint="row-major")
class SortedByValue(Reference):
    @classmethod
    def from_dense(cls, dense):
        indices = dense.nonzero()
        values, order = dense[indices.unbind(-1)].sort(descending=True)
        return cls(values, indices[order], tuple(dense.shape))


@wrong("SparseTensor", mistake="indices of shape (rank, nnz)", hint="transposed")
class Transposed(Reference):
    @property
    def indices(self):
        return self._indices.T


@wrong("SparseTensor", mistake="values cut from the graph", hint="graph")
class Detached(Reference):
    @classmethod
    def from_sparse(cls, sparse):
        values, indices, shape = sparse
        return cls(values.detach().clone(), indices.long(), tuple(shape))


@wrong("SparseTensor", mistake="a fresh leaf instead of the values given", hint="graph")
class FreshLeaf(Reference):
    @classmethod
    def from_sparse(cls, sparse):
        values, indices, shape = sparse
        return cls(values.detach().clone().requires_grad_(), indices.long(), tuple(shape))


@wrong("SparseTensor", mistake="dense is always float32", hint="dtype=values.dtype")
class AlwaysFloat32(Reference):
    @property
    def dense(self):
        zeros = torch.zeros(self._shape, device=self._values.device)
        return zeros.index_put(self._indices.unbind(-1), self._values.float())


@wrong("SparseTensor", mistake="dense is always on the CPU", hint="device=values.device")
class AlwaysOnTheCpu(Reference):
    @property
    def dense(self):
        zeros = torch.zeros(self._shape, dtype=self._values.dtype)
        return zeros.index_put(self._indices.unbind(-1), self._values)


@wrong("SparseTensor", mistake="the shape guessed from the largest index", hint="largest index")
class GuessedShape(Reference):
    @classmethod
    def from_sparse(cls, sparse):
        values, indices, shape = sparse
        guess = tuple((indices.max(dim=0).values + 1).tolist()) if len(indices) else tuple(shape)
        return cls(values, indices.long(), guess)


@wrong("SparseTensor", mistake="int32 indices refused", hint="int32")
class OnlyInt64(Reference):
    @classmethod
    def from_sparse(cls, sparse):
        if sparse[1].dtype != torch.int64:
            raise TypeError("indices must be int64")
        return super().from_sparse(sparse)


@wrong("SparseTensor", mistake="from_sparse goes through the dense form and loses the order", hint="order")
class ThroughDense(Reference):
    @classmethod
    def from_sparse(cls, sparse):
        return cls.from_dense(super().from_sparse(sparse).dense)


@wrong("SparseTensor", mistake="an axis lost when nothing is active", hint="(0, rank)")
class NothingLeft(Reference):
    @classmethod
    def from_dense(cls, dense):
        found = list(dense.nonzero())
        indices = torch.stack(found) if found else torch.zeros(0, dtype=torch.int64)
        return cls(dense[dense > 0], indices, tuple(dense.shape))


@wrong("SparseTensor", mistake="methods instead of properties", hint="@property")
class Methods(Reference):
    def values(self):
        return self._values

    def indices(self):
        return self._indices


@wrong("SparseTensor", mistake="whole rows written instead of single entries", hint="one vector per axis")
class RowsInsteadOfEntries(Reference):
    @property
    def dense(self):
        zeros = torch.zeros(self._shape, dtype=self._values.dtype, device=self._values.device)
        for value, position in zip(self._values, self._indices, strict=True):
            zeros[position] = value
        return zeros


@wrong("SparseTensor", mistake="flat positions instead of one index per axis", hint="(nnz, rank)")
class OneNumberPerEntry(Reference):
    @property
    def indices(self):
        flat = self._indices[:, 0]
        for axis, size in enumerate(self._shape[1:], start=1):
            flat = flat * size + self._indices[:, axis]
        return flat
