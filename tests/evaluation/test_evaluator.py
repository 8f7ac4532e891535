"""Seeds through an engine, chunk by chunk, into blocks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchjac
from torchjac.evaluation.engines import Engine
from torchjac.evaluation.evaluator import assemble, run
from torchjac.foundations.layout import Layout
from torchjac.foundations.seeds import IdentitySeeds
from torchjac.testing import strategies

SHAPES = st.lists(strategies.shapes(), min_size=1, max_size=3)


class Matrix(Engine):
    """An engine whose Jacobian is given: ``blocks[output][input]``, or None where nothing connects."""

    def __init__(self, direction, outputs, inputs, connected, keeps_graph):
        self.direction, self.keeps_graph, self.carried = direction, keeps_graph, ()
        self.values = [torch.zeros(shape) for shape in outputs]
        self.primals = [torch.zeros(shape) for shape in inputs]
        self.blocks = [
            [
                torch.randn(y.numel(), x.numel()) if connected(o, i) else None
                for i, x in enumerate(self.primals)
            ]
            for o, y in enumerate(self.values)
        ]
        self.chunks = []

    def multiply(self, seeds, *, last):
        self.chunks.append((1, last))
        stacks = self.multiply_all({leaf: seed[None] for leaf, seed in seeds.items()}, last=last)
        self.chunks.pop()
        return [None if stack is None else stack[0] for stack in stacks]

    def multiply_all(self, seeds, *, last):
        self.chunks.append((len(next(iter(seeds.values()))), last))
        reverse = self.direction == "reverse"
        products = []
        for index, like in enumerate(self.primals if reverse else self.values):
            total = None
            for leaf, stack in seeds.items():
                block = self.blocks[leaf][index] if reverse else self.blocks[index][leaf]
                if block is not None:
                    rows = stack.reshape(len(stack), -1) @ (block if reverse else block.T)
                    total = rows if total is None else total + rows
            products.append(None if total is None else total.reshape(len(rows), *like.shape))
        return products

    def jacobian(self):
        return [
            [
                torch.zeros(y.shape + x.shape)
                if block is None
                else block.reshape(y.shape + x.shape)
                for block, x in zip(row, self.primals, strict=True)
            ]
            for row, y in zip(self.blocks, self.values, strict=True)
        ]

    def seeds(self):
        return IdentitySeeds(Layout(self.values if self.direction == "reverse" else self.primals))


@st.composite
def matrices(draw):
    outputs, inputs = draw(SHAPES), draw(SHAPES)
    holes = draw(st.sets(st.tuples(st.integers(0, 2), st.integers(0, 2))))
    return Matrix(
        draw(st.sampled_from(["forward", "reverse"])),
        outputs,
        inputs,
        lambda o, i: (o, i) not in holes,
        draw(st.booleans()),
    )


@given(matrices(), st.none() | st.integers(1, 10))
def test_any_chunks_of_any_leaves_make_up_the_jacobian(engine, chunk_size):
    leaves = assemble(
        run(engine, engine.seeds(), chunk_size), engine, engine.primals, batched=False
    )
    torch.testing.assert_close(leaves, engine.jacobian())


@given(matrices(), st.integers(1, 10))
def test_only_the_last_of_several_chunks_is_called_the_last(engine, chunk_size):
    run(engine, engine.seeds(), chunk_size)
    lasts = [last for _, last in engine.chunks]
    assert not any(lasts[:-1])
    assert lasts[-1:] in ([], [len(lasts) > 1])


@given(matrices(), st.integers(1, 10))
def test_every_chunk_but_the_last_is_full(engine, chunk_size):
    total = engine.seeds().total
    run(engine, engine.seeds(), chunk_size)
    sizes = [size for size, _ in engine.chunks]
    assert sum(sizes) == total
    assert all(size == min(chunk_size, total) for size in sizes[:-1])


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 7])
def test_every_chunk_of_a_forward_engine_finds_the_random_state_of_the_first(chunk_size):
    class Drawing(Matrix):
        def multiply_all(self, seeds, *, last):
            draws.append(float(torch.rand(())))
            return super().multiply_all(seeds, last=last)

    draws = []
    engine = Drawing("forward", [(2,)], [(3,), (4,)], lambda o, i: True, False)
    state = torch.get_rng_state()
    run(engine, engine.seeds(), chunk_size)
    torch.set_rng_state(state)
    assert set(draws) == {float(torch.rand(()))}


def test_zeros_reach_across_the_borders_of_chunks():
    # The first output depends on no input, and the border of a chunk is within it.
    engine = Matrix("reverse", [(5,), (3,)], [(2,), (2,)], lambda o, i: o == 1 and i == 0, False)
    leaves = assemble(run(engine, engine.seeds(), 3), engine, engine.primals, batched=False)
    torch.testing.assert_close(leaves, engine.jacobian())


# Through the public transforms


def outputs(x, y):
    """Leaves of several sizes; some depend on one input only, one on none."""
    return {
        "both": x[:, None] * y,
        "none": torch.ones(3),
        "one": y.sin(),
        "integer": torch.arange(2),
    }


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 4, 7])
def test_leaves_that_are_not_connected_are_zeros_whatever_the_chunks(mode, grad, chunk_size):
    x, y = torch.randn(2), torch.randn(3)
    transform = torchjac.jac(outputs, argnums=(0, 1), mode=mode, chunk_size=chunk_size)
    with torch.set_grad_enabled(grad):
        got = transform(x, y)
    both = torch.einsum("ik,j->ijk", torch.eye(2), y), torch.einsum("i,jk->ijk", x, torch.eye(3))
    expected = {
        "both": both,
        "none": (torch.zeros(3, 2), torch.zeros(3, 3)),
        "one": (torch.zeros(3, 2), y.cos().diag()),
        "integer": None,
    }
    assert got.keys() == expected.keys()
    assert got.pop("integer") is expected.pop("integer")
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 5])
def test_recorded_leaves_that_are_not_connected_are_zeros_too(chunk_size):
    x, y = torch.randn(2, requires_grad=True), torch.randn(3, requires_grad=True)
    got = torchjac.jac_of((x.sin(), y.sin(), torch.ones(3)), (x, y), chunk_size=chunk_size)
    expected = (
        (x.cos().diag(), torch.zeros(2, 3)),
        (torch.zeros(3, 2), y.cos().diag()),
        (torch.zeros(3, 2), torch.zeros(3, 3)),
    )
    torch.testing.assert_close(got, expected, check_stride=False)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("chunk_size", [1, 2])
def test_chunks_are_written_into_their_place_and_not_concatenated(monkeypatch, mode, chunk_size):
    def refuse(*args, **kwargs):
        raise AssertionError("a copy of the whole result")

    x = torch.randn(5)
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(torch, "cat", refuse)
        patch.setattr(torch, "stack", refuse)
        got = torchjac.jac(lambda x: x.sin(), mode=mode, chunk_size=chunk_size)(x)
    torch.testing.assert_close(got, x.cos().diag())


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_a_result_made_of_chunks_can_be_differentiated(mode, chunk_size):
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    jacobian = torchjac.jac(torch.sin, mode=mode, chunk_size=chunk_size)(x)
    (gradient,) = torch.autograd.grad(jacobian.square().sum(), x)
    torch.testing.assert_close(gradient, -2 * x.cos() * x.sin())


# The graph


def recorded():
    x = torch.randn(4, requires_grad=True)
    return x, x.sin()


def freed(y):
    try:
        torch.autograd.grad(y.sum(), y.grad_fn.next_functions[0][0].variable, retain_graph=True)
    except RuntimeError as error:
        return "second time" in str(error)
    return False


@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_the_last_chunk_frees_the_graph(chunk_size):
    for _ in range(2):  # the first time the check needs the graph
        x, y = recorded()
        torchjac.jac_of(y, x, chunk_size=chunk_size)
    assert freed(y)


@pytest.mark.parametrize("chunk_size", [None, 1, 2])
@pytest.mark.parametrize("option", ["retain_graph", "create_graph"])
def test_a_graph_that_is_still_needed_is_kept(chunk_size, option):
    for _ in range(2):
        x, y = recorded()
        torchjac.jac_of(y, x, chunk_size=chunk_size, **{option: True})
        assert not freed(y)


# Results belong to the caller


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("chunk_size", ["auto", None, 1, 2])
@pytest.mark.parametrize(
    "func",
    [lambda x: x, lambda x: x.reshape(3, 2), lambda x: x[None], lambda x: (x, x)],
    ids=["identity", "reshape", "unsqueeze", "pair"],
)
def test_what_is_done_to_a_result_in_place_touches_no_later_result(mode, chunk_size, func):
    transform, x = torchjac.jac(func, mode=mode, chunk_size=chunk_size), torch.randn(2, 3)
    first = transform(x)
    kept = [leaf.clone() for leaf in first] if isinstance(first, tuple) else [first.clone()]
    for leaf in first if isinstance(first, tuple) else (first,):
        leaf.mul_(7)
    again = transform(x)
    torch.testing.assert_close(list(again) if isinstance(again, tuple) else [again], kept)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_two_results_share_no_memory(mode):
    transform, x = torchjac.jac(lambda x: x, mode=mode), torch.randn(3)
    one, other = transform(x), transform(x)
    one.mul_(7)
    torch.testing.assert_close(other, torch.eye(3))


def test_a_backward_formula_that_works_in_place_touches_no_later_result():
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, cotangent):
            return cotangent.mul_(2)

    x = torch.randn(3)
    for _ in range(3):
        got = torchjac.jac(Doubled.apply, mode="reverse", check="never")(x)
        torch.testing.assert_close(got, 2 * torch.eye(3))
