"""Narrow waists: found where everything runs through few numbers, and nowhere else; multiplied out right."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchjac
from tests.sparse import DETECTS
from torchjac.foundations.pytree import flatten

pytestmark = pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1")

BOTH = "forward and reverse"


def numbers(*shape, dtype=torch.float64):
    count = torch.Size(shape).numel()
    return torch.linspace(-1, 1, count, dtype=dtype).reshape(shape).sin()


def mlp(*sizes, dtype=torch.float64):
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.Tanh())]
    return nn.Sequential(*layers[:-1]).to(dtype).requires_grad_(False)


class AutoEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
        )
        self.decode = nn.Sequential(
            nn.Linear(10, 256), nn.Unflatten(1, (4, 8, 8)), nn.ConvTranspose2d(4, 1, 4, 2, 1)
        )

    def forward(self, x):
        return self.decode(self.encode(x))


TALL, MIXED, ROW = numbers(600, 8), numbers(1000, 2), numbers(2000)
IN, OUT, ASIDE = numbers(2, 300), numbers(400, 2), numbers(200, 2)
ENTRY, EXIT = numbers(2, 800), numbers(900, 2)


def pooled(x):
    return (TALL @ nn.functional.adaptive_avg_pool1d(x[None], 8)[0]).tanh()


def max_pooled(x):
    return (TALL @ nn.functional.adaptive_max_pool1d(x[None], 8)[0]).tanh()


def attention(x):
    """Every row of the output is a combination of two rows of the input, mixed beforehand."""
    return MIXED @ (MIXED.T @ x).tanh()


def of_the_mean(x):
    return x.mean().sin() * ROW


def two_paths(x):
    """What is cut are two tensors, of two elements each."""
    one, other = (ENTRY @ x).sin(), (ENTRY @ x.cos()).exp()
    return (EXIT @ one) * (EXIT @ other)


ENCODER = AutoEncoder().double().requires_grad_(False)
FUNCTIONS = {
    # The function, its argument's shape, and the most passes.
    "autoencoder": (mlp(600, 300, 12, 300, 600), (600,), 30),
    "convolutions": (ENCODER, (1, 1, 16, 16), 20),
    "average pooling": (pooled, (600,), 16),
    "max pooling": (max_pooled, (600,), 16),
    "attention": (attention, (1000, 1), 4),
    "mean": (of_the_mean, (2000,), 2),
    "two tensors": (two_paths, (800,), 8),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_waist_takes_few_passes_and_is_right(name):
    func, shape, most = FUNCTIONS[name]
    plan = torchjac.jac(func).plan(numbers(*shape))
    assert plan.mode == BOTH
    assert plan.passes <= most
    x = 0.9 - numbers(*shape)
    torch.testing.assert_close(plan(x), torch.func.jacrev(func)(x))
    assert plan.verify(x)


def test_the_example_of_the_docs_takes_32_passes():
    func, x = mlp(1024, 512, 16, 512, 1024, dtype=torch.float32), numbers(1024, dtype=torch.float32)
    plan = torchjac.jac(func).plan(x)
    assert plan.passes == 32
    assert "16 elements (1,024 → 512 → 16 → 512 → 1,024)" in str(plan)
    assert "J[1024×16] against · J[16×1024] along" in str(plan)
    torch.testing.assert_close(plan(x), torch.func.jacrev(func)(x))


@pytest.mark.parametrize(
    ("chunk_size", "size", "said"),
    [
        (1, 1, "10 passes (5 + 5), in 10 chunks of 1"),
        (3, 3, "10 passes (5 + 5), in 4 chunks of 3"),
        (7, 5, "10 passes (5 + 5), each at once"),
        ("auto", 5, "10 passes (5 + 5), each at once"),
    ],
)
def test_chunks_of_a_waist(chunk_size, size, said):
    func, x = mlp(400, 200, 5, 200, 300), numbers(400)
    plan = torchjac.jac(func, chunk_size=chunk_size).plan(x)
    assert (plan.mode, plan.passes, plan.chunk_size) == (BOTH, 10, size)
    assert said in str(plan)
    products = [n for n in plan._program.graph.graph.nodes if n.target is torch.ops.aten.mm.default]
    assert max(len(node.meta["val"]) for node in products[:-1]) == size  # the last joins the two
    torch.testing.assert_close(plan(x), torch.func.jacrev(func)(x))


THREE = numbers(3, 400)


@pytest.mark.parametrize(
    ("func", "size", "rank"),
    [(lambda x: x.mean().sin(), 2000, 1), (lambda x: (THREE @ x).sin().prod(), 400, 3)],
    ids=["mean", "three directions"],
)
def test_hessians_of_low_rank_take_twice_the_rank_in_passes(func, size, rank):
    plan = torchjac.hessian(func).plan(numbers(size))
    assert plan.mode == BOTH
    assert plan.passes <= 2 * rank
    x = 1 + numbers(size)
    torch.testing.assert_close(plan(x), torch.func.hessian(func)(x))


@pytest.mark.parametrize("per_sample", [True, False])
def test_waists_of_samples(per_sample):
    net = mlp(600, 100, 4, 100, 600)
    x = numbers(3, 600)
    plan = torchjac.batched_jac(net, per_sample=per_sample).plan(x)
    assert plan.mode == BOTH
    assert plan.passes == 8
    expected = torch.func.vmap(torch.func.jacrev(net))(2 * x)
    torch.testing.assert_close(plan(2 * x), expected)


def skipping(x):
    return FUNCTIONS["autoencoder"][0](x) + x


def around(x):
    """Half of the output runs past the waist."""
    return torch.cat([FUNCTIONS["autoencoder"][0](x), x.cumsum(0).sin()])


@pytest.mark.parametrize("func", [skipping, around])
def test_what_runs_past_is_no_waist(func):
    plan = torchjac.jac(func).plan(numbers(600))
    assert plan.mode != BOTH
    torch.testing.assert_close(plan(numbers(600)), torch.func.jacrev(func)(numbers(600)))


def test_no_waist_where_the_cut_is_as_wide_as_an_end():
    plan = torchjac.jac(mlp(20, 40, 20, 40)).plan(numbers(20))
    assert plan.mode == "forward"
    assert plan.passes == 20


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_a_mode_that_is_asked_for_is_kept(mode):
    func, shape, _ = FUNCTIONS["mean"]
    plan = torchjac.jac(lambda x: func(x)[:50], mode=mode).plan(numbers(*shape)[:50])
    assert plan.mode == mode
    assert plan.passes == 50


# Several leaves, and what is beside the waist


def two_in_two_out(x, y):
    z = (IN @ x).sin() + IN @ y.cos()
    return {"a": OUT @ z.tanh(), "b": (ASIDE @ z) ** 2}


def unused_and_constant(x, y):
    return torch.ones(3).double(), OUT @ (IN @ x).sin()


def with_an_integer(x, y):
    z = (IN @ x).sin()
    return z.argmax(), None, OUT @ (z + y.sum())


LEAVES = {"leaves": two_in_two_out, "unused": unused_and_constant, "integer": with_an_integer}


@pytest.mark.parametrize("argnums", [0, 1, (0, 1), (1, 0)])
@pytest.mark.parametrize("name", LEAVES)
def test_several_leaves_around_a_waist(name, argnums):
    func, args = LEAVES[name], (numbers(300), 1 + numbers(300))
    plan = torchjac.jac(func, argnums, return_value=True).plan(*args)
    if argnums != 1 and name == "leaves":
        assert plan.mode == BOTH
        assert plan.passes == 4
    others = (args[1], -args[0])
    value, got = plan(*others)
    expected = torchjac.jac(func, argnums, mode="reverse")(*others)
    assert flatten(got)[1] == flatten(expected)[1]
    for one, other in zip(
        flatten((got, value))[0], flatten((expected, func(*others)))[0], strict=True
    ):
        assert (one is None) == (other is None)
        if other is not None:
            torch.testing.assert_close(one, other)


def test_a_draw_at_the_waist_is_one_draw():
    func = lambda x: OUT @ nn.functional.dropout(IN @ x.sin())  # noqa: E731
    transform, found = torchjac.jac(func), []
    plan = transform.plan(numbers(300))
    for derivative in (transform, plan):
        torch.manual_seed(1)
        found.append((derivative(numbers(300)), torch.get_rng_state()))
    torch.testing.assert_close(*found)


def test_gradients_through_a_waist():
    func, shape, _ = FUNCTIONS["two tensors"]
    found = []
    for derivative in (torchjac.jac(func).plan(numbers(*shape)), torch.func.jacrev(func)):
        x = numbers(*shape).requires_grad_()
        found.append(torch.autograd.grad(derivative(x).square().sum(), x))
    torch.testing.assert_close(*found)


small = settings(max_examples=max(settings.default.max_examples * 2 // 5, 1))


@small
@given(st.lists(st.integers(1, 12), min_size=2, max_size=6), st.data())
def test_every_chain_of_layers_is_right(sizes, data):
    """Whatever is chosen, with whatever widths; residual connections where they fit."""
    matrices = [numbers(b, a) for a, b in itertools.pairwise(sizes)]
    skips = [data.draw(st.booleans()) and a == b for a, b in itertools.pairwise(sizes)]

    def func(x):
        for matrix, skip in zip(matrices, skips, strict=True):
            x = (matrix @ x).sin() + (x if skip else 0)
        return x

    x = numbers(sizes[0])
    plan = torchjac.jac(func).plan(x)
    assert plan.passes <= 2 * max(sizes)
    torch.testing.assert_close(plan(x), torch.func.jacrev(func)(x))


@small
@given(
    st.integers(1, 4),
    st.integers(60, 90),
    st.integers(60, 90),
    st.sampled_from(["auto", None, 1, 7]),
)
def test_a_product_of_a_tall_and_a_wide_matrix(inner, rows, columns, chunk_size):
    """The Jacobian of x ↦ U·sin(V·x), in closed form."""
    tall, wide = numbers(rows, inner), numbers(inner, columns)
    plan = torchjac.jac(lambda x: tall @ (wide @ x).sin(), chunk_size=chunk_size).plan(
        numbers(columns)
    )
    x = numbers(columns) * 2
    torch.testing.assert_close(plan(x), tall @ ((wide @ x).cos()[:, None] * wide))
