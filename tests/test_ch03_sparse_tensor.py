"""Checks of chapter 03. The oracles walk over every position of a small tensor with plain Python loops."""

import itertools

import torch

from utils.checks import expect
from utils.checks.exercises import Exercise

SPARSE_TENSOR = Exercise(
    "SparseTensor",
    number="3.1",
    title="A sparse tensor",
    difficulty=2,
    importance=4,
    minutes=20,
    hints=(
        """
        Three things describe the tensor completely: the values, where they go, and how big the whole is. Keep exactly
        those in `__init__`; every property is then one line, and only `dense` has any work to do.
        """,
        """
        `torch.nonzero(x)` returns int64 positions of shape `(nnz, rank)` in row-major order, and it does so for 0 or 1
        entries too. To *index* with positions, torch wants a tuple with one vector per axis: `positions.unbind(dim=-1)`
        gives it. So nothing needs squeezing anywhere.
        """,
        """
        For `dense`: start from `torch.zeros(shape, dtype=values.dtype, device=values.device)` and put the values in
        with `zeros.index_put(indices.unbind(dim=-1), values)`, which autograd follows. For `from_dense`: the values are
        `x[indices.unbind(dim=-1)]`. `from_sparse` only converts the indices with `.to(torch.int64)`.
        """,
    ),
)

SMALL = torch.tensor([[0.0, 2.5, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [4.0, 0.0, 0.5, 0.0]])
PROPERTY = "Write `@property` on the line above `def`, so that the attribute is read without brackets."
ROW_MAJOR = """
    The entries are right, their order is not. Row-major means that the last index moves fastest: (0, 0, 1), (0, 0, 3),
    (0, 1, 0), ... That is the order in which `torch.nonzero` walks.
    """
TRANSPOSED = """
    `indices` is transposed: one *row* per entry, so the shape is `(nnz, rank)`. `torch.where` gives one vector per
    axis; stack them along the last axis, or use `torch.nonzero`.
    """


def positions_of(dense):
    """Positions of the non-zero entries, the last index moving fastest."""
    everywhere = itertools.product(*(range(size) for size in dense.shape))
    return [position for position in everywhere if dense[position] != 0]


def parts_of(dense):
    """(values, indices, shape) of a dense tensor, one entry at a time."""
    positions = positions_of(dense)
    values = torch.tensor([dense[position].item() for position in positions], dtype=dense.dtype)
    return values, torch.tensor(positions, dtype=torch.int64).reshape(-1, dense.ndim), tuple(dense.shape)


def filled(values, indices, shape):
    """The dense tensor, one entry at a time."""
    dense = torch.zeros(shape, dtype=values.dtype)
    for value, position in zip(values.detach(), indices.tolist(), strict=True):
        dense[tuple(position)] = value
    return dense


def some_tensor(shape, seed, share=0.4):
    """Multiples of 1/4 (exact in every dtype), about `share` of them not zero."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randint(1, 40, shape, generator=generator) / 4
    return numbers * (torch.rand(shape, generator=generator) < share)


def read(sparse_tensor, name):
    """A tensor-valued property."""
    why = f"`{name}` is a property that gives a tensor"
    return expect.tensor(getattr(sparse_tensor, name), name=f"`{name}`", why=why, hint=PROPERTY)


def same_shape(got, wanted, why, hint=None):
    """`shape` must be a tuple of ints; torch.Size is one."""
    is_tuple = isinstance(got, tuple) and all(isinstance(size, int) for size in got)
    expected = f"`shape` = {tuple(wanted)}, a tuple of ints"
    expect.that(
        is_tuple and tuple(got) == tuple(wanted),
        expected=expected,
        returned=got,
        why=why,
        hint=PROPERTY if callable(got) else hint,
    )


def same_values(sparse_tensor, want, why, hint=None):
    expect.close(read(sparse_tensor, "values"), want, name="`values`", why=why, hint=hint)


def same_indices(sparse_tensor, want, why, hint=None):
    """Shape, numbers and dtype of `indices`, in that order; a transposed or reordered answer is told so."""
    got = read(sparse_tensor, "indices")
    nnz, rank = want.shape
    if got.ndim == 2 and tuple(got.shape) == (rank, nnz) and rank != nnz:
        hint = TRANSPOSED
    expect.shape(got, want.shape, name="`indices`", dims=("nnz", "rank"), why=why, hint=hint)
    if hint is None and sorted(got.tolist()) == sorted(want.tolist()):
        hint = ROW_MAJOR
    expect.equal(got, want, name="`indices`", why=why, hint=hint)
    expect.dtype(
        got,
        torch.int64,
        name="`indices`",
        why="positions are whole numbers, kept as int64",
        hint="`indices` must be int64: `indices.to(torch.int64)` costs nothing if they already are.",
    )


def same_parts(sparse_tensor, want, why, hint=None):
    values, indices, shape = want
    same_indices(sparse_tensor, indices, why, hint)
    same_values(sparse_tensor, values, why, hint)
    same_shape(sparse_tensor.shape, shape, why, hint)


@SPARSE_TENSOR.check(
    "a small matrix: values, indices, shape",
    points=2,
    hint="""
        List the entries that are not zero. `values` has shape `(nnz,)`, `indices` has shape `(nnz, rank)`, int64, and
        `shape` is the shape of the whole matrix, empty rows included. `sparse` is the tuple of the three.
        """,
)
def test_small_matrix(impl):
    made = impl.SparseTensor.from_dense(SMALL)
    want = parts_of(SMALL)
    same_parts(made, want, why="the matrix has four non-zero entries: 2.5 and 1 in row 0, 4 and 0.5 in row 2")
    values, indices, shape = expect.unpack(made.sparse, ("values", "indices", "shape"))
    why = "`sparse` is the same three things in one tuple"
    expect.equal(indices, want[1], name="`sparse[1]`", why=why)
    expect.close(values, want[0], name="`sparse[0]`", why=why)
    same_shape(shape, want[2], why)


@SPARSE_TENSOR.check(
    "row-major order at rank 3",
    hint="""
        Walk through the tensor as it is printed: last index fastest, first index slowest. Transposing, sorting by value
        or walking axis by axis gives another order; `torch.nonzero` gives this one.
        """,
)
def test_row_major(impl):
    dense = some_tensor((2, 3, 4), seed=3, share=0.3)
    want = parts_of(dense)
    made = impl.SparseTensor.from_dense(dense)
    why = "entries are listed as the tensor is read: last index fastest, first index slowest"
    same_indices(made, want[1], why)
    same_values(made, want[0], why="`values[n]` is the entry at position `indices[n]`")


@SPARSE_TENSOR.check(
    "one non-zero entry keeps its axis",
    hint="""
        A bare `squeeze()` removes *every* axis of length 1, so a list of one entry turns into a bare number.
        `torch.nonzero` and `unbind(dim=-1)` give the right axes without any squeeze.
        """,
)
def test_one_entry(impl):
    dense = torch.zeros(2, 3)
    dense[1, 2] = 7.0
    same_parts(
        impl.SparseTensor.from_dense(dense),
        parts_of(dense),
        why="one entry is still a list of entries, of length nnz = 1",
    )
    made = impl.SparseTensor.from_sparse((torch.tensor([7.0]), torch.tensor([[1, 2]]), (2, 3)))
    same_parts(made, parts_of(dense), why="`from_sparse` keeps its parts as they are: no squeezing")
    expect.close(made.dense, dense, name="`dense`", why="the 7 belongs in row 1, column 2")


@SPARSE_TENSOR.check(
    "no non-zero entry at all",
    hint="""
        With nothing to list, `values` has shape `(0,)` and `indices` has shape `(0, rank)`: the second axis stays.
        Stacking an empty Python list loses it; `torch.nonzero` does not.
        """,
)
def test_nothing(impl):
    dense = torch.zeros(2, 3)
    made = impl.SparseTensor.from_dense(dense)
    same_parts(
        made,
        (torch.zeros(0), torch.zeros(0, 2, dtype=torch.int64), (2, 3)),
        why="an all-zero matrix has nnz = 0, and its shape has to be remembered somewhere",
    )
    expect.close(made.dense, dense, name="`dense`", why="a tensor without entries is all zeros")
    made = impl.SparseTensor.from_sparse((torch.zeros(0), torch.zeros(0, 2, dtype=torch.int64), (2, 3)))
    expect.close(made.dense, dense, name="`dense`", why="no entries, so all zeros")


@SPARSE_TENSOR.check(
    "a vector: rank 1",
    hint="""
        At rank 1 each position is still a *row* with one number in it, so `indices` has shape `(nnz, 1)`. Nothing about
        rank 1 needs a special case if you never squeeze.
        """,
)
def test_rank_one(impl):
    dense = torch.tensor([0.0, 3.0, 0.0, 0.0, 1.5])
    made = impl.SparseTensor.from_dense(dense)
    same_parts(made, parts_of(dense), why="rank is 1, so the second axis of `indices` has length 1")
    expect.close(made.dense, dense, name="`dense`", why="the vector comes back as it was")
    dense = torch.tensor([0.0, 3.0, 0.0])
    made = impl.SparseTensor.from_dense(dense)
    same_parts(made, parts_of(dense), why="one entry at rank 1: both axes have length 1")


AS_GIVEN = """
    `from_sparse` keeps the order it is given. Here the entries are not in row-major order, so building the dense tensor
    and listing its entries again would reorder them.
    """


@SPARSE_TENSOR.check("`from_sparse` keeps the entries as they are", hint=AS_GIVEN)
def test_kept_as_given(impl):
    values = torch.tensor([5.0, 1.0, 3.0])
    indices = torch.tensor([[1, 1], [0, 2], [0, 0]])
    made = impl.SparseTensor.from_sparse((values, indices, (2, 3)))
    why = "these are the parts that went in, in the same order"
    same_parts(made, (values, indices, (2, 3)), why, hint=AS_GIVEN)
    values_back, indices_back, shape_back = expect.unpack(made.sparse, ("values", "indices", "shape"))
    expect.close(values_back, values, name="`sparse[0]`", why=why)
    expect.equal(indices_back, indices, name="`sparse[1]`", why=why)
    same_shape(shape_back, (2, 3), why)


@SPARSE_TENSOR.check(
    "`dense` puts every value in its place",
    points=2,
    hint="""
        Start from zeros of the stored shape (it cannot be guessed from the largest index: the last rows may be empty),
        then put `values[n]` at position `indices[n]`: all axes together, one vector per axis.
        """,
)
def test_in_place(impl):
    indices = torch.tensor([[1, 2, 0], [0, 0, 3], [1, 0, 0], [0, 2, 1]])
    values, shape = torch.tensor([5.0, 1.0, 3.0, 0.25]), (3, 4, 5)
    dense = expect.shape(
        impl.SparseTensor.from_sparse((values, indices, shape)).dense,
        shape,
        name="`dense`",
        why="the shape was given; trailing rows without entries are part of it",
    )
    for value, position in zip(values.tolist(), indices.tolist(), strict=True):
        expect.close(
            dense[tuple(position)],
            value,
            name=f"`dense` at {tuple(position)}",
            why="`values[n]` goes to position `indices[n]`",
        )
    count = int((dense != 0).sum())
    expect.that(
        count == 4,
        expected="4 non-zero entries in `dense`",
        returned=f"{count} non-zero entries",
        why="everything that is not listed is zero",
    )


@SPARSE_TENSOR.check(
    "there and back again, ranks 1 to 4",
    hint="""
        Try the shape that fails on its own: make it, print `values`, `indices` and `shape`, and see which of the three
        no longer describes the tensor.
        """,
)
def test_round_trips(impl):
    for seed, shape in enumerate([(6,), (1,), (5, 4), (1, 7), (2, 1, 6), (2, 3, 2, 3)]):
        dense = some_tensor(shape, seed)
        made = impl.SparseTensor.from_dense(dense)
        expect.close(made.dense, dense, name="`from_dense(x).dense`", why="nothing is lost on the way")
        again = impl.SparseTensor.from_sparse(made.sparse)
        expect.close(
            again.dense,
            dense,
            name="`from_sparse(from_dense(x).sparse).dense`",
            why="`sparse` is all that `from_sparse` needs",
        )
        same_parts(
            impl.SparseTensor.from_dense(again.dense),
            parts_of(dense),
            why="and back once more: the same parts in row-major order",
        )


@SPARSE_TENSOR.check(
    "int32 indices are welcome",
    hint="""
        Some libraries hand out int32 positions. Convert in `from_sparse` with `indices.to(torch.int64)`; it is free
        when the indices are int64 already.
        """,
)
def test_int32(impl):
    values, indices = torch.tensor([2.0, 9.0]), torch.tensor([[0, 1], [2, 0]], dtype=torch.int32)
    made = impl.SparseTensor.from_sparse((values, indices, (3, 2)))
    same_indices(made, indices.long(), why="the same positions, as int64")
    want = filled(values, indices, (3, 2))
    expect.close(made.dense, want, name="`dense`", why="2 at (0, 1) and 9 at (2, 0)")


@SPARSE_TENSOR.check(
    "the dtype of the data is kept",
    hint="""
        `torch.zeros(shape)` makes float32 whatever you put into it. Say `dtype=values.dtype` when you make the zeros,
        and never pass values through Python numbers.
        """,
)
def test_dtype(impl):
    for dtype in (torch.float64, torch.bfloat16):
        dense = SMALL.to(dtype)
        made = impl.SparseTensor.from_dense(dense)
        again = impl.SparseTensor.from_sparse((*parts_of(dense)[:2], (3, 4)))
        for which, got in (("from_dense(x)", made), ("from_sparse(parts)", again)):
            for name in ("values", "dense"):
                expect.dtype(read(got, name), dtype, name=f"`{which}.{name}`", why=f"the data are {dtype}")
            expect.close(got.dense, dense, name=f"`{which}.dense`", why="the numbers stay, too")


@SPARSE_TENSOR.check(
    "the device of the data is kept",
    hint="`torch.zeros(shape)` makes its tensor on the CPU, wherever the values live: say `device=values.device`.",
)
def test_device(impl):
    """On a machine without a GPU the second device is torch's `meta` (shapes without numbers)."""
    values, indices = torch.tensor([2.0, 9.0]), torch.tensor([[0, 1], [2, 0]])
    made = impl.SparseTensor.from_sparse((values, indices, (3, 2)))
    expect.close(made.dense, filled(values, indices, (3, 2)), name="`dense`", why="first on the CPU")
    device = "cuda" if torch.cuda.is_available() else "meta"
    try:
        made = impl.SparseTensor.from_sparse((values.to(device), indices.to(device), (3, 2)))
        devices = {name: getattr(made, name).device.type for name in ("values", "indices", "dense")}
    except expect.StudentError as error:
        if device == "meta" and "same device" not in error.text:
            return  # some right ways of building a tensor need numbers, which `meta` does not have
        raise
    expect.that(
        set(devices.values()) == {device},
        expected=f"values, indices and dense on {device!r}",
        returned=", ".join(f"{name} on {where!r}" for name, where in devices.items()),
        why="a tensor computed on one device must not wander to another",
    )


@SPARSE_TENSOR.check(
    "gradients reach the values",
    points=2,
    hint="""
        `dense` must be *computed from* `values` by torch operations: `zeros.index_put(...)` or `zeros[...] = values`.
        Anything that copies the numbers (`torch.tensor(values)`, `.detach()`, `.data`, `.item()`, `.tolist()`,
        `.numpy()`) cuts the graph.
        """,
)
def test_gradients(impl):
    values = torch.tensor([2.0, 5.0, 3.0], requires_grad=True)
    indices, shape = torch.tensor([[1, 2], [0, 1], [1, 0]]), (2, 3)
    weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])

    def loss(some_values):
        return (weights * impl.SparseTensor.from_sparse((some_values, indices, shape)).dense ** 2).sum()

    total = loss(values)
    expect.that(
        total.requires_grad,
        expected="a `dense` that autograd can follow back to `values`",
        returned="a `dense` that does not require grad",
        why="`values` require grad",
    )
    (gradient,) = torch.autograd.grad(total, values, allow_unused=True)
    expect.that(
        gradient is not None,
        expected="a gradient for each of `values`",
        returned="no gradient",
        why="`dense` requires grad, but not through the values that were given",
    )
    step = 0.5  # central differences are exact for a quadratic, so the step need not be small
    slopes = [
        (loss(values.detach() + step * unit) - loss(values.detach() - step * unit)) / (2 * step)
        for unit in torch.eye(3)
    ]
    expect.close(
        gradient,
        torch.stack(slopes),
        name="the gradient of sum(weights * dense**2) in values",
        why="nudging each value up and down gives these slopes",
    )
