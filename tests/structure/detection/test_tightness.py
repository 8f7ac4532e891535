"""Each family of ops: nothing is missing, and where the pattern says more than the values, by how much."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.structure.detection import maps
from torchjac.errors import StructureError
from torchjac.structure.detection import linear_pattern

D = torch.float64


def _fixed(*shape):
    return torch.randn(*shape, dtype=D, generator=torch.Generator().manual_seed(7))


EYE = torch.eye(5, dtype=D)
STENCIL = torch.tensor([[0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=D)[None, None]
BLOCKS = torch.block_diag(*[_fixed(2, 2)] * 3)
INDEX = torch.tensor([2, 0, 2])
MASK = torch.tensor([True, False, True])


def _layer(make):
    torch.manual_seed(0)
    return make().double().eval()


def add_to_a_slice(x):
    y = x.clone()
    y[1:] += x[:-1]
    return y


def write_through_views(x):
    y = x * 1
    view = y.view(2, 3).t()
    view[0].mul_(x[3:5])
    return y


def fill_a_buffer(x):
    buffer = torch.zeros(2, 3, dtype=D)
    buffer[0] = x
    buffer[1, 1:] = x[:2] * 2
    buffer.t()[0] += 5.0
    buffer.mul_(torch.tensor([[1.0], [0.0]], dtype=D))
    return buffer.t().reshape(-1)


def overlapping_copies(x):
    y = x * 1
    view = y[1:3]
    y[0:2].copy_(x[2:4])
    return view * 1


def forget_a_value(x):
    y = x * 1
    y[1] = 2.0
    return y


def rearranged_memory(x):
    # A reshape that has to copy, of a tensor whose elements do not lie in row-major order.
    image = x.reshape(1, 2, 2, 2).contiguous(memory_format=torch.channels_last)
    return image.sin().reshape(2, 4)


def complex_numbers(x):
    return torch.view_as_real(torch.view_as_complex(x.reshape(3, 2)) ** 2)


def _resize_aa(x, mode):
    return F.interpolate(x, (3, 2), mode=mode, antialias=True)


def several_at_once(x):
    return torch.stack(torch._foreach_mul([x[:2], x[1:]], 2.0))


# Name, function, shapes of its arguments.
EXACT = [
    # views
    ("roll", lambda x: x.sin().roll(1), [(4,)]),
    ("flip", lambda x: x.sin().flip(0), [(4,)]),
    ("permute", lambda x: x.sin().permute(2, 0, 1).reshape(-1), [(2, 3, 2)]),
    ("expand", lambda x: x.expand(3, 2, 2).permute(2, 0, 1).reshape(-1)[::2], [(2, 2)]),
    ("diff", lambda x: (x**2).diff(), [(5,)]),
    ("unfold", lambda x: x.sin().unfold(0, 3, 2), [(7,)]),
    ("as_strided", lambda x: x.sin().as_strided((2, 2), (1, 2), 1), [(5,)]),
    ("diagonal", lambda x: x.sin().diagonal(1), [(3, 3)]),
    ("cat", lambda x, y: torch.cat([x.sin(), y, x], 1), [(2, 1), (2, 2)]),
    ("stack", lambda x, y: torch.stack([x, y * x], 1), [(2,), (2,)]),
    ("empty part", lambda x: torch.cat([x[:0], x]), [(3,)]),
    ("tril", lambda x: x.tril().sin(), [(3, 3)]),
    ("diag_embed", lambda x: torch.diag_embed(x), [(3,)]),
    ("trace", lambda x: torch.trace(x * x), [(3, 3)]),
    ("repeat", lambda x: x.repeat(2, 1), [(2, 2)]),
    ("repeat_interleave", lambda x: x.repeat_interleave(2, 0), [(2, 2)]),
    ("pixel_shuffle", lambda x: F.pixel_shuffle(x.sin(), 2), [(1, 4, 2, 2)]),
    ("pad zeros", lambda x: F.pad(x.sin(), (1, 2)), [(3,)]),
    ("pad reflect", lambda x: F.pad(x.sin(), (2, 1), mode="reflect"), [(1, 5)]),
    ("pad replicate", lambda x: F.pad(x.sin(), (2, 1, 0, 1), mode="replicate"), [(1, 3, 3)]),
    ("pad circular", lambda x: F.pad(x.sin(), (2, 1), mode="circular"), [(1, 5)]),
    ("slice_scatter", lambda x, y: x.slice_scatter(y, 0, 1, 3), [(4,), (2,)]),
    ("select_scatter", lambda x, y: x.select_scatter(y, 0, 1), [(3, 2), (2,)]),
    ("diagonal_scatter", lambda x, y: x.diagonal_scatter(y), [(3, 3), (3,)]),
    ("rearranged memory", rearranged_memory, [(8,)]),
    # writing in place
    ("in place", add_to_a_slice, [(6,)]),
    ("in place through views", write_through_views, [(6,)]),
    ("into a buffer", fill_a_buffer, [(3,)]),
    ("overlapping copies", overlapping_copies, [(5,)]),
    ("overwritten", forget_a_value, [(3,)]),
    # elementwise
    ("unary", lambda x: torch.tanh(x).exp(), [(3,)]),
    ("gelu", lambda x: F.gelu(x), [(3,)]),
    ("glu", lambda x: F.glu(x), [(2, 4)]),
    ("broadcast", lambda x, y: x * y + x, [(2, 1), (3,)]),
    ("times known zeros", lambda x: x * torch.tensor([1.0, 0.0, 2.0], dtype=D), [(3,)]),
    ("times zero", lambda x: 0 * x + x.sum(), [(3,)]),
    ("where known", lambda x: torch.where(MASK, x, x.flip(0)), [(3,)]),
    ("masked_fill", lambda x: x.sin().masked_fill(MASK, 0.0), [(3,)]),
    ("detach", lambda x: x.detach() * x.flip(0), [(3,)]),
    ("dtype", lambda x: x.float().double().sin(), [(3,)]),
    ("addcmul", lambda x, y, z: torch.addcmul(x, y, z), [(2,), (2,), (2,)]),
    ("foreach", several_at_once, [(3,)]),
    ("complex", complex_numbers, [(6,)]),
    # reductions and scans
    ("sum", lambda x: x.sin().sum((0, 2)), [(2, 2, 2)]),
    ("mean", lambda x: x.sin().mean(1, keepdim=True), [(2, 3)]),
    ("prod", lambda x: x.prod(1), [(2, 3)]),
    ("var", lambda x: x.var(0), [(3, 2)]),
    ("norm", lambda x: torch.linalg.norm(x, dim=1), [(2, 3)]),
    ("logsumexp", lambda x: x.logsumexp(1), [(2, 3)]),
    ("softmax", lambda x: x.softmax(1), [(2, 3)]),
    ("cumsum", lambda x: x.sin().cumsum(0), [(5,)]),
    ("flipped cumsum", lambda x: x.sin().flip(1).cumsum(1).flip(1), [(2, 3)]),
    ("layer_norm", lambda x: F.layer_norm(x, (4,)), [(2, 4)]),
    ("group_norm", lambda x: F.group_norm(x, 2), [(2, 4, 3)]),
    ("batch_norm", _layer(lambda: nn.BatchNorm1d(3)), [(4, 3)]),
    # indexing
    ("index", lambda x: x[INDEX].sin(), [(3,)]),
    ("index by two", lambda x: x[INDEX, torch.tensor([1, 0, 1])].sin(), [(3, 2)]),
    ("boolean mask", lambda x: x[MASK].sin(), [(3,)]),
    ("masked_select", lambda x: torch.masked_select(x, MASK).sin(), [(2, 3)]),
    ("index of an index", lambda x: x[(torch.arange(3)[:, None] + 1) % 3].sin(), [(3,)]),
    ("gather", lambda x: x.gather(1, torch.tensor([[0, 0], [2, 1]])).sin(), [(2, 3)]),
    ("take", lambda x: x.sin().take(torch.tensor([5, 0])), [(2, 3)]),
    ("index_select", lambda x: x.sin().index_select(1, INDEX), [(2, 3)]),
    ("index_add", lambda x: torch.zeros(3, dtype=D).index_add(0, INDEX, x.sin()), [(3,)]),
    ("index_copy", lambda x, y: x.index_copy(0, torch.tensor([2, 0]), y), [(3, 2), (2, 2)]),
    ("index_put", lambda x, y: x.index_put((torch.tensor([1, 1]),), y, True), [(3,), (2,)]),
    ("index_fill", lambda x: x.sin().index_fill(0, torch.tensor([1]), 2.0), [(3,)]),
    ("scatter", lambda x, y: x.scatter(0, torch.tensor([2, 0]), y), [(3,), (2,)]),
    ("scatter_add", lambda x, y: x.scatter_add(0, INDEX, y), [(3,), (3,)]),
    ("masked_scatter", lambda x, y: x.masked_scatter(MASK, y.sin()), [(3,), (2,)]),
    ("put", lambda x, y: x.put(torch.tensor([1]), y), [(3,), (1,)]),
    ("embedding", lambda w: F.embedding(torch.tensor([[1, 0], [3, 3]]), w).sin(), [(5, 2)]),
    # products
    ("matmul", lambda x, y: x @ y, [(2, 3), (3, 2)]),
    ("batched matmul", lambda x, y: torch.einsum("bij,bjk->bik", x, y), [(2, 2, 3), (2, 3, 2)]),
    ("blocks from the left", lambda x: (BLOCKS @ x).tanh(), [(6, 2)]),
    ("blocks from the right", lambda x: (x @ BLOCKS).tanh(), [(2, 6)]),
    ("blocks times a vector", lambda x: (BLOCKS @ x).tanh(), [(6,)]),
    ("a view of a matrix", lambda x: x @ EYE.t()[:, 1:3], [(2, 5)]),
    ("dot", lambda x, y: x @ y + x[:2] @ EYE[0, :2], [(3,), (3,)]),
    ("outer", lambda x, y: torch.outer(x, y), [(2,), (3,)]),
    ("kron", lambda x, y: torch.kron(x, y), [(2, 2), (2, 1)]),
    ("bilinear", lambda x, y, w: F.bilinear(x, y, w), [(2, 2), (2, 3), (2, 2, 3)]),
    ("linear", _layer(lambda: nn.Linear(3, 2)), [(2, 3)]),
    ("attention", lambda q: (q @ q.mT).softmax(-1) @ q, [(2, 3, 2)]),
    # convolutions
    ("conv1d", lambda x, w: F.conv1d(x, w, None, 2, 1, 2), [(2, 4, 9), (6, 4, 3)]),
    ("grouped", lambda x, w, b: F.conv1d(x, w, b, groups=2), [(2, 4, 5), (6, 2, 3), (6,)]),
    ("conv2d", lambda x, w: F.conv2d(x, w, padding=1), [(1, 2, 4, 3), (3, 2, 3, 3)]),
    (
        "depthwise",
        _layer(lambda: nn.Conv2d(3, 6, 3, groups=3, dilation=2, padding=2)),
        [(1, 3, 5, 5)],
    ),
    ("conv3d", _layer(lambda: nn.Conv3d(2, 2, 2)), [(1, 2, 3, 3, 3)]),
    (
        "transposed",
        lambda x, w, b: F.conv_transpose1d(x, w, b, 2, 1, 1, 2),
        [(2, 4, 4), (4, 3, 3), (6,)],
    ),
    ("transposed 2d", _layer(lambda: nn.ConvTranspose2d(2, 4, 3, 2, 1, 1, 2)), [(1, 2, 3, 3)]),
    ("stencil", lambda x: F.conv2d(x[None, None], STENCIL, padding=1)[0, 0] + x**2, [(5, 4)]),
    ("stencil back", lambda x: F.conv_transpose2d(x[None, None], STENCIL)[0, 0].sin(), [(3, 4)]),
    # windows
    ("F.unfold", lambda x: F.unfold(x.sin(), (2, 2)), [(1, 2, 3, 3)]),
    ("F.fold", lambda x: F.fold(x.sin(), (3, 3), (2, 2)), [(1, 4, 4)]),
    ("avg_pool1d", lambda x: F.avg_pool1d(x.sin(), 3, 2, 1), [(1, 2, 7)]),
    ("avg_pool2d", lambda x: F.avg_pool2d(x.sin(), 2), [(1, 2, 4, 4)]),
    ("adaptive_avg_pool", lambda x: F.adaptive_avg_pool2d(x.sin(), (2, 3)), [(1, 2, 5, 4)]),
    ("nearest", lambda x: F.interpolate(x.sin(), scale_factor=2), [(1, 1, 3)]),
    ("bilinear resize", lambda x: F.interpolate(x.sin(), (5, 7), mode="bilinear"), [(1, 1, 3, 3)]),
    ("bicubic resize", lambda x: F.interpolate(x.sin(), (9, 9), mode="bicubic"), [(1, 1, 6, 6)]),
    ("antialiased", lambda x: _resize_aa(x.sin(), "bilinear"), [(1, 1, 5, 4)]),
    ("antialiased cubic", lambda x: _resize_aa(x.sin(), "bicubic"), [(1, 1, 5, 4)]),
    ("pad reflect 3d", lambda x: F.pad(x.sin(), (1,) * 6, mode="reflect"), [(1, 1, 2, 2, 3)]),
    ("pad replicate 3d", lambda x: F.pad(x.sin(), (1,) * 6, mode="replicate"), [(1, 1, 2, 1, 2)]),
    ("avg_pool3d", lambda x: F.avg_pool3d(x.sin(), 2, 1), [(1, 1, 3, 2, 3)]),
    ("adaptive_avg_pool3d", lambda x: F.adaptive_avg_pool3d(x.sin(), 2), [(1, 1, 3, 2, 3)]),
    # linear algebra
    ("solve", lambda x: torch.linalg.solve(_fixed(5, 5), x), [(5, 2)]),
    ("solve from the right", lambda x: torch.linalg.solve(_fixed(5, 5), x, left=False), [(2, 5)]),
    ("the matrix of a solve", lambda x: torch.linalg.solve(x + 9 * EYE, _fixed(5, 2)), [(5, 5)]),
    ("lower", lambda x: torch.linalg.solve_triangular(_fixed(4, 4), x, upper=False), [(4, 2)]),
    ("upper", lambda x: torch.linalg.solve_triangular(_fixed(4, 4), x, upper=True), [(4, 2)]),
    (
        "lower from the right",
        lambda x: torch.linalg.solve_triangular(_fixed(4, 4), x, upper=False, left=False),
        [(2, 4)],
    ),
    ("det", lambda x: torch.linalg.det(x), [(2, 3, 3)]),
    ("inv", lambda x: torch.linalg.inv(x + 9 * EYE[:3, :3]), [(2, 3, 3)]),
    (
        "least squares",
        lambda x, y: torch.linalg.lstsq(x + 9 * EYE[:, :3], y).solution,
        [(2, 5, 3), (2, 5, 2)],
    ),
    (
        "residuals",
        lambda x: torch.linalg.lstsq(x, _fixed(2, 5, 2), driver="gels").residuals,
        [(2, 5, 3)],
    ),
    # networks
    ("MLP", _layer(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))), [(2, 3)]),
    ("GRU cell", _layer(lambda: nn.GRUCell(3, 4)), [(2, 3), (2, 4)]),
    ("vmap", lambda x: torch.func.vmap(lambda row: row.sin().sum() * row)(x), [(3, 2)]),
]

# The same, with a bound on detected / true nonzeros where a value decides what is used.
WITHIN = [
    ("max_pool1d", lambda x: F.max_pool1d(x, 2), [(1, 2, 6)], 2.0),
    ("max_pool2d", lambda x: F.max_pool2d(x, 2), [(1, 2, 4, 4)], 4.0),
    ("padded max_pool2d", lambda x: F.max_pool2d(x, 3, 2, 1, 1, True), [(1, 2, 4, 4)], 4.0),
    ("adaptive_max_pool2d", lambda x: F.adaptive_max_pool2d(x, (2, 3)), [(1, 2, 5, 4)], 6.0),
    ("sort", lambda x: x.sort(1).values, [(2, 4)], 4.0),
    ("topk", lambda x: x.topk(2, 1).values, [(2, 4)], 4.0),
    ("max", lambda x: x.max(1).values, [(2, 3)], 3.0),
    ("max_pool3d", lambda x: F.max_pool3d(x, 2, 1), [(1, 1, 3, 2, 2)], 8.0),
    ("adaptive_max_pool3d", lambda x: F.adaptive_max_pool3d(x, 2), [(1, 1, 3, 2, 2)], 8.0),
    ("median", lambda x: x.median(1).values, [(2, 3)], 3.0),
    ("cummax", lambda x: x.cummax(1).values, [(2, 4)], 4.0),
    ("where unknown", lambda x: torch.where(x > 0, x, x.flip(0)), [(4,)], 2.0),
    ("maximum", lambda x, y: torch.maximum(x, y), [(4,), (4,)], 2.0),
    (
        "scatter_reduce",
        lambda x: torch.zeros(3, dtype=D).scatter_reduce(0, INDEX, x, "amax", include_self=False),
        [(3,)],
        2.0,
    ),
    ("unknown index", lambda x: x[x.argsort()], [(4,)], 4.0),
    ("unknown row", lambda x: x[x[:, 0].argmax()[None]], [(3, 2)], 3.0),
    ("fft", lambda x: torch.view_as_real(torch.fft.fft(x, dim=1)), [(2, 3)], 1.5),
    ("rfft", lambda x: torch.fft.irfft(torch.fft.rfft(x.sin()), n=5), [(2, 5)], 5.0),
    ("cholesky", lambda x: torch.linalg.cholesky(x @ x.mT + EYE[:3, :3]), [(2, 3, 3)], 2.0),
    ("part of a complex", lambda x: torch.view_as_real(torch.complex(x, x.flip(0))), [(3,)], 2.0),
    ("PReLU", lambda x, w: F.prelu(x, w), [(2, 3), (3,)], 2.0),
]

LENGTHS = torch.tensor([2, 3])


def ctc_loss(x):
    targets = torch.tensor([[1, 2, 0], [3, 1, 2]])
    return F.ctc_loss(x.log_softmax(-1), targets, LENGTHS + 4, LENGTHS, reduction="none")


REVERSE_ONLY = [
    ("ctc_loss", ctc_loss, [(7, 2, 4)], 7 / 6.5),  # the first sample has six steps of seven
    ("cdist", lambda x, y: torch.cdist(x, y), [(3, 2), (4, 2)], 1.0),
    ("pdist", lambda x: F.pdist(x), [(3, 2)], 1.0),
    ("fused attention", lambda q: F.scaled_dot_product_attention(q, q, q), [(2, 2, 3, 4)], 1.0),
    (
        "grid_sample",
        lambda x: F.grid_sample(x, _fixed(1, 2, 2, 2).tanh(), align_corners=True),
        [(1, 2, 3, 3)],
        9.0,
    ),
    (
        "transformer",
        _layer(lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)),
        [(2, 3, 4)],
        1.0,
    ),
]


def _compare(way, func, shapes, within):
    primals = [torch.zeros(shape, dtype=D) for shape in shapes]
    found, nonzeros, detected = maps.jacobian(func, primals, way)
    assert not (nonzeros & ~found).any(), "entries are missing"
    assert not detected.unknown
    assert found.sum() <= within * nonzeros.sum()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("way", maps.JACOBIANS)
@pytest.mark.parametrize(("func", "shapes"), [c[1:] for c in EXACT], ids=[c[0] for c in EXACT])
def test_is_exact(way, func, shapes):
    _compare(way, func, shapes, 1.0)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("way", maps.JACOBIANS)
@pytest.mark.parametrize(
    ("func", "shapes", "within"), [c[1:] for c in WITHIN], ids=[c[0] for c in WITHIN]
)
def test_is_no_wider_than_what_values_can_choose(way, func, shapes, within):
    _compare(way, func, shapes, within)


@pytest.mark.parametrize("way", ["reverse", "plain"])
@pytest.mark.parametrize(
    ("func", "shapes", "within"), [c[1:] for c in REVERSE_ONLY], ids=[c[0] for c in REVERSE_ONLY]
)
def test_where_there_is_no_forward_mode(way, func, shapes, within):
    _compare(way, func, shapes, within)


@pytest.mark.parametrize("way", ["plain", "reverse"])
@pytest.mark.parametrize("include_self", [True, False])
def test_the_factors_of_one_product_have_second_derivatives_together(way, include_self):
    """Its backward pass asks how many zeros there are, which is no matter to what depends on what."""

    def func(x):
        products = torch.ones(2, dtype=D).scatter_reduce(
            0, torch.tensor([0, 1, 1, 0, 0]), x, "prod", include_self=include_self
        )
        return products.sum()

    x = torch.ones(5, dtype=D)
    found = maps.dense(linear_pattern(maps.HESSIANS[way](func), [x], [x]), [5])
    together = torch.block_diag(torch.ones(3, 3), torch.ones(2, 2)) - torch.eye(5)
    order = torch.tensor([0, 3, 4, 1, 2]).argsort()
    expected = together[order][:, order].bool().numpy()
    assert (expected <= found).all()
    assert found.sum() <= expected.sum() + 5  # the diagonal, which cancels


def test_a_question_of_func_itself_is_no_question_of_a_backward_pass():
    def func(x):
        products = torch.ones(2, dtype=D).scatter_reduce(0, INDEX.clamp(max=1), x, "prod")
        return products.sum() if (x == 0).any() else products.sin().sum()

    x = torch.ones(3, dtype=D)
    with pytest.raises(StructureError, match="looks at values"):
        linear_pattern(maps.HESSIANS["plain"](func), [x], [x])
