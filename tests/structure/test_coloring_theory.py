"""What the literature says about the number of colours, by its numbers."""

import numpy as np
import pytest
import torch

from tests.structure.patterns import arrow_head, band, block_diagonal, brusselator, grid
from torchjac import SparsityPattern, color
from torchjac.structure.greedy import first_fit
from torchjac.structure.orders import Lists
from torchjac.structure.star import star_colors
from torchjac.structure.validate import check_coloring

ONE_SIDED = pytest.mark.parametrize("by", ["columns", "rows", "auto"])


@ONE_SIDED
@pytest.mark.parametrize("half_width", [0, 1, 2, 5])
def test_a_band_takes_its_width(by, half_width):
    """Curtis, Powell & Reid (1974)."""
    assert color(band(40, half_width), by=by).num_colors == 2 * half_width + 1


@pytest.mark.parametrize("half_width", [0, 1, 2, 5])
def test_a_symmetric_band_takes_no_more_than_its_width(half_width):
    """Coleman & Moré (1984)."""
    assert color(band(40, half_width), by="symmetric").num_colors <= 2 * half_width + 1
    assert color(band(40, 1), by="symmetric").num_colors == 3


def test_an_arrow_head_hessian_takes_two():
    """Coleman & Moré (1984): the example for which symmetry is worth most."""
    assert color(arrow_head(100), by="symmetric").num_colors == 2


def test_an_arrow_head_jacobian_takes_three_in_both_directions():
    """Coleman & Verma (1998)."""
    pattern = arrow_head(100)
    assert color(pattern, by="columns").num_colors == 100
    assert color(pattern, by="rows").num_colors == 100
    assert color(pattern, by="bidirectional").num_colors == 3
    assert color(pattern).by == "bidirectional"


def test_dense_rows_above_and_dense_columns_beside_a_band_cost_one_pass_each():
    dense = band(60, 1).to_dense()
    dense[:2], dense[:, -2:] = True, True
    coloring = color(SparsityPattern.from_dense(dense))
    check_coloring(coloring)
    assert coloring.num_colors <= 3 + 2 + 2


@pytest.mark.parametrize("by", ["columns", "rows", "symmetric", "bidirectional", "auto"])
def test_dense_diagonal_and_empty(by):
    assert color(SparsityPattern.from_dense(torch.ones(7, 7)), by=by).num_colors == 7
    assert color(SparsityPattern.from_dense(torch.eye(7)), by=by).num_colors == 1
    assert color(SparsityPattern.from_dense(torch.zeros(7, 7)), by=by).num_colors == 0
    assert color(SparsityPattern.from_dense(torch.zeros(0, 0)), by=by).num_colors == 0


@pytest.mark.parametrize("by", ["columns", "rows", "symmetric", "auto"])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_block_diagonal_takes_one_block(by, size):
    assert color(block_diagonal(6, size), by=by).num_colors == size


@ONE_SIDED
@pytest.mark.parametrize("size", [10, 25, 50])
@pytest.mark.parametrize("periodic", [False, True])
def test_a_five_point_stencil_takes_five(by, size, periodic):
    """A tiling of the plane by crosses; on a torus if five divides the sides."""
    assert color(grid(size, size, periodic=periodic), by=by).num_colors == 5


def test_a_torus_that_crosses_do_not_tile_takes_few_more():
    assert color(grid(64, 64, periodic=True)).num_colors <= 7


def test_a_symmetric_grid_takes_six():
    """Grids of two dimensions have star colourings with five colours (Fertin, Raspaud & Reed, 2004)."""
    assert color(grid(20, 20, periodic=False), by="symmetric").num_colors <= 6


def test_a_hessian_without_a_diagonal_is_read_from_one_side():
    """A bilinear form xᵀAy with one x: the colours of y are not needed."""
    dense = torch.zeros(6, 6, dtype=torch.bool)
    dense[0, 1:], dense[1:, 0] = True, True
    coloring = color(SparsityPattern.from_dense(dense), by="symmetric")
    assert coloring.num_colors == 1
    assert coloring.colors.tolist() == [0, -1, -1, -1, -1, -1]


# Effort, as counts.


class Counted(list):
    """A list that counts its slices: one for every vertex whose neighbours are looked at."""

    def __init__(self, values):
        super().__init__(values)
        self.slices = 0
        self.read = 0

    def __getitem__(self, at):
        found = super().__getitem__(at)
        if isinstance(at, slice):
            self.slices += 1
            self.read += len(found)
        return found


def test_first_fit_reads_every_entry_once():
    pattern = brusselator(16)
    starts, indices = Lists.of(*pattern.csc[:2])
    counted = Counted(indices)
    first_fit(Lists(starts, counted), pattern.shape[0], range(pattern.shape[1]))
    assert counted.read == pattern.nnz


@pytest.mark.parametrize("pattern", [band(200, 1), grid(12, 12, periodic=True), arrow_head(200)])
def test_star_colors_read_every_edge_a_few_times(pattern):
    rows, cols = (index.numpy() for index in pattern.to_coo())
    graph = SparsityPattern(rows[rows != cols], cols[rows != cols], pattern.shape)
    starts, indices = Lists.of(*graph.csr)
    counted = Counted(indices)
    colors = star_colors(Lists(starts, counted), range(pattern.shape[0]), proper=True)
    # Once for every vertex, and once more for the first star of each colour at it.
    assert counted.read <= (1 + colors.max()) * graph.nnz
    assert np.unique(colors).tolist() == list(range(colors.max() + 1))
