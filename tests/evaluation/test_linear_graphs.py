"""One traced backward pass: multiplied with seeds along it and against it, whole and in stretches."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import torchjac
from tests.sparse import DETECTS
from torchjac.evaluation.engines import linearize
from torchjac.evaluation.programs.linear import linear_graph
from torchjac.evaluation.programs.tracing import UntraceableError, captured_tensors, trace
from torchjac.foundations.pytree import flatten, unflatten
from torchjac.testing import strategies

pytestmark = [
    pytest.mark.skipif(not DETECTS, reason="plans take torch 2.1"),
    pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning"),
]
CLOSE = {"rtol": 1e-7, "atol": 1e-9, "equal_nan": True}
fewer = settings(max_examples=max(settings.default.max_examples * 3 // 5, 1))


def flat(program, args):
    """A program as a function of its leaves, and these."""
    leaves, spec = flatten(args)

    def function(primals):
        return tuple(flatten(program(*unflatten(list(primals), spec)))[0]), ()

    return function, leaves


def of_one(func):
    return lambda primals: ((func(*primals),), ())


def linear_of(func, *primals):
    return linear_graph(lambda others: of_one(func), primals, ())


def filled(products, likes):
    """None is zero."""
    return [
        torch.zeros_like(like) if p is None else p for p, like in zip(products, likes, strict=True)
    ]


def seeds_like(tensors):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in tensors]


@fewer
@given(st.data(), strategies.programs_with_arguments())
def test_along_it_is_a_backward_pass_wherever_it_is_evaluated(data, drawn):
    program, args = drawn
    function, primals = flat(program, args)
    linear = linear_graph(lambda others: function, primals, ())
    others = flatten(data.draw(strategies.arguments(program, strided=True)))[0]
    for here in (primals, others):
        point = linear.at(here)
        seeds = dict(enumerate(seeds_like(point.values)))
        got = point.engine("reverse", here).multiply(seeds, last=True)
        expected = linearize(function, here, "reverse")
        torch.testing.assert_close(point.values, list(expected.values), **CLOSE)
        torch.testing.assert_close(
            filled(got, here), filled(expected.multiply(seeds, last=True), here), **CLOSE
        )


@fewer
@given(strategies.programs_with_arguments())
def test_against_it_is_the_transpose(drawn):
    """⟨u, J·v⟩ = ⟨Jᵀ·u, v⟩, the left by what was traced against it, the right by plain autograd."""
    program, args = drawn
    function, primals = flat(program, args)
    linear = linear_graph(lambda others: function, primals, ())
    assume(linear.nonlinear is None)
    point = linear.at(primals)
    vectors = seeds_like(primals)
    pushed = point.engine("forward", primals).multiply(dict(enumerate(vectors)), last=True)
    values, pull = torch.func.vjp(lambda *leaves: function(leaves)[0], *primals)
    seeds = seeds_like(values)
    pulled = pull(tuple(seeds))
    assume(all(p.isfinite().all() for p in pulled))
    left = sum((u * p).sum() for u, p in zip(seeds, filled(pushed, values), strict=True))
    right = sum((p * v).sum() for p, v in zip(pulled, vectors, strict=True))
    torch.testing.assert_close(left, right, **CLOSE)


@fewer
@given(strategies.programs_with_arguments())
def test_it_is_linear_in_its_seeds(drawn):
    program, args = drawn
    function, primals = flat(program, args)
    point = linear_graph(lambda others: function, primals, ()).at(primals)
    engine = point.engine("reverse", primals)
    one, other = seeds_like(point.values), [torch.ones_like(value) for value in point.values]
    both = [2 * a - b for a, b in zip(one, other, strict=True)]
    once, more, together = [
        filled(engine.multiply(dict(enumerate(seeds)), last=False), primals)
        for seeds in (one, other, both)
    ]
    assume(all(leaf.isfinite().all() for leaf in (*once, *more)))
    torch.testing.assert_close(
        together, [2 * a - b for a, b in zip(once, more, strict=True)], **CLOSE
    )


def chain(x):
    return ((x.sin().cumsum(0)) ** 2).tanh()


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_two_stretches_are_the_whole(direction):
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    linear = linear_of(chain, x)
    point, middle = linear.at([x]), linear.linear[len(linear.linear) // 2]
    parts = [
        point.stretch(direction, linear.seeds, [middle]),
        point.stretch(direction, [middle], linear.products),
    ]
    if direction == "forward":
        parts.reverse()
    seed = torch.linspace(0, 2, 5, dtype=torch.float64)
    (between,) = parts[0].multiply({0: seed}, last=True)
    (got,) = parts[1].multiply({0: between}, last=True)
    (expected,) = point.engine(direction, [x]).multiply({0: seed}, last=True)
    torch.testing.assert_close(got, expected)


def test_both_directions_in_closed_form():
    x = torch.tensor([0.3, -0.8, 1.2], dtype=torch.float64)
    matrix = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(2, 3)
    point = linear_of(lambda x: matrix @ x.sin(), x).at([x])
    jacobian = matrix * x.cos()
    u, v = torch.tensor([1.0, 2.0]).double(), torch.tensor([1.0, 2.0, 3.0]).double()
    for direction, seed, expected in [
        ("reverse", u, u @ jacobian),
        ("forward", v, jacobian @ v),
    ]:
        (got,) = point.engine(direction, [x]).multiply({0: seed}, last=True)
        torch.testing.assert_close(got, expected)


def test_what_no_seed_reaches_is_none():
    x, y = torch.ones(2).double(), torch.ones(3).double()
    point = linear_of(lambda x, y: x.sin(), x, y).at([x, y])
    by_x, by_y = point.engine("reverse", [x, y]).multiply({0: torch.ones(2).double()}, last=True)
    torch.testing.assert_close(by_x, x.cos())
    assert by_y is None or not by_y.any()


def test_a_constant_has_no_products():
    x = torch.ones(2).double()
    point = linear_of(lambda x: torch.ones(4).double(), x).at([x])
    for direction, seed in [("reverse", torch.ones(4)), ("forward", torch.ones(2))]:
        (got,) = point.engine(direction, [x]).multiply({0: seed.double()}, last=True)
        assert got is None or not got.any()


def test_an_identity_hands_its_seed_on():
    x = torch.ones(3).double()
    point = linear_of(lambda x: x, x).at([x])
    seed = torch.arange(3.0).double()
    for direction in ("forward", "reverse"):
        (got,) = point.engine(direction, [x]).multiply({0: seed}, last=True)
        torch.testing.assert_close(got, seed)


@pytest.mark.parametrize(
    ("hook", "linear"),
    [
        (lambda g: 2 * g, True),
        (lambda g: g - g.mean(), True),
        (lambda g: torch.where(torch.ones(3) > 0, g, -g), True),
        (lambda g: g.clamp(-1, 1), False),
        (lambda g: g * g, False),
        (lambda g: g.sign(), False),
        (lambda g: g / g.norm(), False),
        (lambda g: torch.where(g > 0, g, -g), False),
        (lambda g: g + 1, False),
        (lambda g: g.sort().values, False),
        (torch.relu, False),
    ],
)
def test_a_backward_that_is_not_written_as_a_linear_map_has_no_transpose(hook, linear):
    x = torch.tensor([0.3, -0.8, 1.2], dtype=torch.float64)

    class Hooked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, g):
            return hook(g)

    graph = linear_of(lambda x: Hooked.apply(x.sin()) * 2, x)
    assert (graph.nonlinear is None) == linear
    if not linear:
        with pytest.raises(UntraceableError):
            graph.at([x]).engine("forward", [x])


# The trace


def test_a_trace_holds_the_captured_tensors_themselves():
    weight = torch.ones(3)
    graph = trace(lambda x: x * weight, [torch.ones(3)])
    (held,) = captured_tensors(graph).values()
    assert held is weight or held.data_ptr() == weight.data_ptr()


def test_a_trace_holds_no_fake_tensors():
    graph = trace(lambda x: x * torch.arange(3.0) + x.new_tensor([1.0, 2.0, 3.0]), [torch.ones(3)])
    assert all(type(held) is torch.Tensor for held in captured_tensors(graph).values())


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x if x.sum() > 0 else -x, "looks at values"),
        (lambda x: x[x > 0], "looks at values"),
        (lambda x: torch.from_numpy(x.numpy()), "takes values out of PyTorch"),
    ],
)
def test_what_is_refused_is_said_as_a_clause(function, said):
    with pytest.raises(UntraceableError, match=said):
        trace(function, [torch.ones(3)])


def test_a_write_into_a_captured_tensor_is_refused():
    counter = torch.zeros(3)
    with pytest.raises(UntraceableError, match="changes a tensor that it captured"):
        trace(lambda x: x * counter.add_(1), [torch.ones(3)])


def test_a_trace_changes_neither_arguments_nor_generators():
    x, state = torch.ones(3), torch.get_rng_state()
    trace(lambda x: x.mul_(2) * torch.rand(3), [x])
    assert torch.equal(x, torch.ones(3))
    assert torch.equal(torch.get_rng_state(), state)


# Seeds


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"mode": "reverse"}, [4]),
        ({"mode": "forward"}, [6]),
        ({"mode": "reverse", "chunk_size": 3}, [3]),
        ({"mode": "forward", "chunk_size": 4}, [4, 2]),
        ({"mode": "reverse", "chunk_size": 1}, []),
    ],
    ids=str,
)
def test_the_seeds_that_are_sent_are_the_passes_of_the_plan(levels, options, sizes):
    """A vmap level for each chunk, while the plan is traced, and none while it runs."""
    matrix = torch.linspace(-1, 1, 24).double().reshape(4, 6)
    transform = torchjac.jac(lambda x: matrix @ x.sin(), check="never", **options)
    plan = transform.plan(torch.ones(6).double())
    assert levels.sizes == sizes
    assert plan.passes == (4 if options["mode"] == "reverse" else 6)
    levels.sizes.clear()
    plan(torch.ones(6).double())
    assert levels.sizes == []
