"""Entries come back from the products with the seeds of colours, block by block."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.sparse import DETECTS
from torchjac import SparsityPattern, color
from torchjac.foundations.layout import Layout
from torchjac.structure.blocks import BlockIndex, SparseBlock
from torchjac.structure.decompression import Recovery
from torchjac.structure.seeds import ColorSeeds

SHAPES = st.lists(st.lists(st.integers(0, 3), max_size=2).map(tuple), min_size=1, max_size=3)


@st.composite
def problems(draw: Any, *, symmetric: bool = False) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """A matrix, and the leaves that its rows and its columns run over."""
    outputs = [torch.zeros(shape, dtype=torch.float64) for shape in draw(SHAPES)]
    primals = outputs
    if not symmetric:
        primals = [torch.zeros(shape, dtype=torch.float64) for shape in draw(SHAPES)]
    m, n = (sum(leaf.numel() for leaf in leaves) for leaves in (outputs, primals))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    density = draw(st.sampled_from([0.0, 0.2, 0.5, 1.0]))
    matrix = torch.randn(m, n, generator=generator, dtype=torch.float64)
    matrix *= torch.rand(m, n, generator=generator) < density
    return (matrix + matrix.T if symmetric else matrix), outputs, primals


def flat(seeds: ColorSeeds) -> Tensor:
    """All seeds as a matrix ``(k, total)``."""
    chunk = seeds.chunk(0, seeds.total)
    counts = seeds.layout.counts
    return torch.cat([chunk[leaf].reshape(seeds.total, counts[leaf]) for leaf in sorted(chunk)], 1)


def products(matrix: Tensor, leaves: list[Tensor], seeds: Tensor) -> list[Tensor]:
    """(k, total) times the matrix, cut into leaves ``(k, *leaf)``."""
    parts = (seeds @ matrix).split([leaf.numel() for leaf in leaves], 1)
    return [part.reshape(len(seeds), *leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]


def recovered(
    matrix: Tensor, outputs: list[Tensor], primals: list[Tensor], by: Any
) -> list[list[SparseBlock]]:
    coloring = color(SparsityPattern.from_dense(matrix != 0), by)
    sides: dict[str, list[Tensor]] = {"columns": [], "rows": []}
    if coloring.column_colors is not None:
        layout = Layout(primals)
        seeds = ColorSeeds(layout, coloring.column_indices, coloring.num_column_colors)
        sides["columns"] = products(matrix.T, outputs, flat(seeds))
    if coloring.row_colors is not None:
        seeds = ColorSeeds(Layout(outputs), coloring.row_indices, coloring.num_row_colors)
        sides["rows"] = products(matrix, primals, flat(seeds))
    recovery = Recovery(coloring, Layout(outputs), Layout(primals))
    return recovery.blocks(sides["columns"], sides["rows"])


def expected_blocks(
    matrix: Tensor, outputs: list[Tensor], primals: list[Tensor]
) -> list[list[Tensor]]:
    rows = matrix.split([leaf.numel() for leaf in outputs])
    sizes = [leaf.numel() for leaf in primals]
    return [
        [
            block.reshape(output.shape + primal.shape)
            for block, primal in zip(row.split(sizes, 1), primals, strict=True)
        ]
        for row, output in zip(rows, outputs, strict=True)
    ]


@given(problems(), st.sampled_from(["columns", "rows", "bidirectional", "auto"]))
def test_every_entry_comes_back(problem: Any, by: str) -> None:
    matrix, outputs, primals = problem
    got = recovered(matrix, outputs, primals, by)
    for row, expected_row in zip(got, expected_blocks(*problem), strict=True):
        for block, expected in zip(row, expected_row, strict=True):
            torch.testing.assert_close(block.laid_out(torch.strided), expected)
            torch.testing.assert_close(block.laid_out(torch.sparse_coo).to_dense(), expected)


@given(problems(symmetric=True))
def test_a_symmetric_matrix_is_read_across_its_blocks(problem: Any) -> None:
    matrix, outputs, primals = problem
    got = recovered(matrix, outputs, primals, "symmetric")
    for row, expected_row in zip(got, expected_blocks(*problem), strict=True):
        for block, expected in zip(row, expected_row, strict=True):
            torch.testing.assert_close(block.laid_out(torch.strided), expected)


@given(problems())
def test_products_with_a_block(problem: Any) -> None:
    matrix, outputs, primals = problem
    for row, expected_row in zip(
        recovered(matrix, outputs, primals, "columns"), expected_blocks(*problem), strict=True
    ):
        for block, expected in zip(row, expected_row, strict=True):
            m, n = block.where.output.numel(), block.where.primal.numel()
            u, v = torch.randn(m).double(), torch.randn(n).double()
            dense = expected.reshape(m, n)
            torch.testing.assert_close(block.times(v), dense @ v)
            torch.testing.assert_close(block.transposed_times(u), u @ dense)


@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_tensor_keeps_the_rules_of_its_layout(layout: torch.layout) -> None:
    at = torch.tensor([[0, 1], [2, 0], [2, 3], [4, 4]]).numpy()
    index = BlockIndex(at[:, 0], at[:, 1], torch.Size([5]), torch.Size([6]), torch.device("cpu"))
    tensor = SparseBlock(index, torch.arange(1.0, 5.0)).laid_out(layout)
    if layout is torch.sparse_csr:
        torch.sparse_csr_tensor(
            tensor.crow_indices(),
            tensor.col_indices(),
            tensor.values(),
            tensor.shape,
            check_invariants=True,
        )
    else:
        assert tensor.is_coalesced() or not DETECTS
        torch.testing.assert_close(
            tensor.to_dense(),
            torch.zeros(5, 6).index_put(tuple(torch.from_numpy(at.T)), tensor.values()),
        )


def test_seeds_of_colours() -> None:
    leaves = [torch.empty(2, 2), torch.empty(()), torch.empty(3, dtype=torch.float64)]
    seeds = ColorSeeds(Layout(leaves), np.array([0, 1, -1, 0, 2, 1, 1, 0]), 3)
    first, second, third = (seeds.chunk(0, 3)[leaf] for leaf in range(3))
    assert first.tolist() == [[[1, 0], [0, 1]], [[0, 1], [0, 0]], [[0, 0], [0, 0]]]
    assert second.tolist() == [0, 0, 1]
    assert third.tolist() == [[0, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert third.dtype == torch.float64
    assert seeds.chunk(1, 2)[0].tolist() == [[[0, 1], [0, 0]]]
    assert [tuple(section) for section in seeds.sections(1, 3)] == [(0, 1, 0, 2)]


def test_products_that_are_the_entries_are_not_gathered() -> None:
    leaf = torch.arange(4.0)
    layout = Layout([leaf])
    recovery = Recovery(color(SparsityPattern.from_dense(torch.eye(4) > 0)), layout, layout)
    product = torch.randn(1, 4)
    ((block,),) = recovery.blocks([product], [])
    assert block.values.data_ptr() == product.data_ptr()
    # One number for all entries is written out: each of them can be written into.
    ((block,),) = recovery.blocks([torch.ones(1, 1).expand(1, 4)], [])
    assert block.values.stride() == (1,)
    torch.testing.assert_close(block.values, torch.ones(4))


def test_entries_that_are_all_products_in_another_order_are_gathered() -> None:
    swapped = torch.eye(4)[[1, 0, 3, 2]]
    layout = Layout([torch.arange(4.0)])
    recovery = Recovery(color(SparsityPattern.from_dense(swapped > 0), "rows"), layout, layout)
    # One product with the sum of the rows; row 0 has its entry in column 1.
    ((block,),) = recovery.blocks([], [torch.tensor([[10.0, 11.0, 12.0, 13.0]])])
    assert block.values.tolist() == [11.0, 10.0, 13.0, 12.0]


@pytest.fixture
def threads() -> Any:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("number", [1, 2, 7])
def test_many_entries_are_read_in_rows(threads: Any, number: int) -> None:
    # 131 072 entries and some: the last row is padded.
    threads(number)
    n = 2**16 + 2
    rows = np.arange(n).repeat(2)
    cols = (rows + np.tile([0, 1], n)) % n
    pattern = SparsityPattern.from_coo(rows, cols, (n, n))
    leaf = torch.empty(n)
    coloring = color(pattern, "columns")
    recovery = Recovery(coloring, Layout([leaf]), Layout([leaf]))
    product = torch.randn(coloring.num_colors, n)

    def entries(product: Tensor) -> Tensor:
        ((block,),) = recovery.blocks([product], [])
        return block.values

    rows, cols = pattern.coo
    colors = coloring.column_indices
    assert colors is not None
    expected = torch.from_numpy(product.numpy()[colors[cols], rows])
    torch.testing.assert_close(entries(product), expected)
    torch.testing.assert_close(torch.func.vmap(entries)(product[None])[0], expected)
    torch.testing.assert_close(torch.func.jvp(entries, (product,), (product,))[1], expected)
    (weights,) = torch.autograd.grad(entries(product.requires_grad_()).sum(), product)
    torch.testing.assert_close(weights, torch.ones_like(product))
