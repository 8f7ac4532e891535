import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import torchjac
from tests.sparse import DETECTS
from torchjac.planning import look as planning_look
from torchjac.planning.look import look
from torchjac.planning.modes import (
    FORWARD_COST,
    FORWARD_COST_OF_CONVOLUTIONS,
    FORWARD_COST_OF_SLICES,
    HESSIAN_MODES,
    MODES,
    Work,
    choose_hessian_mode,
    choose_mode,
)
from torchjac.planning.ways import Way, hessian_ways, jacobian_ways


@pytest.mark.parametrize(
    ("num_inputs", "num_outputs", "mode"),
    [
        (8192, 1, "reverse"),  # one output: a single backward pass
        (1, 1, "reverse"),
        (0, 1, "reverse"),
        (1, 8192, "forward"),  # one input: a single evaluation
        (1, 2, "forward"),
        (20, 20480, "forward"),
        (400, 2000, "forward"),
        (49, 100, "forward"),  # just under half
        (50, 100, "reverse"),  # half exactly
        (2, 3, "reverse"),
        (100, 100, "reverse"),
        (7, 3, "reverse"),
        (301, 2500, "forward"),
        (2, 4, "reverse"),
    ],
)
def test_the_mode_of_a_jacobian(num_inputs, num_outputs, mode):
    assert choose_mode(num_inputs, num_outputs) == mode


@given(st.integers(0, 10**6), st.integers(2, 10**6))
@example(60, 100)
@example(50, 100)
def test_the_mode_chosen_never_takes_over_twice_the_passes_of_the_other(n, m):
    passes = {"forward": n, "reverse": m}
    assert passes[choose_mode(n, m)] <= 2 * min(passes.values()) or n <= 1


@given(st.integers(2, 1000), st.integers(2, 1000))
def test_more_outputs_never_turn_forward_into_reverse(n, m):
    if choose_mode(n, m) == "forward":
        assert choose_mode(n, m + 1) == "forward"


@pytest.mark.parametrize(
    ("num_outputs", "modes"),
    [
        (0, ("reverse", "reverse")),
        (1, ("reverse", "reverse")),
        (2, ("forward", "reverse")),
        (100, ("forward", "reverse")),
    ],
)
def test_the_modes_of_a_hessian(num_outputs, modes):
    assert choose_hessian_mode(num_outputs) == modes


@pytest.mark.parametrize(
    ("num_outputs", "num_inputs", "largest", "outer"),
    [
        (3, 20, 256, "reverse"),
        (20, 3, 64, "reverse"),
        (20, 3, 256, "forward"),
        (20, 20, 16, "reverse"),
        (30, 30, 16, "forward"),
        (5, 5, 0, "forward"),  # nobody has looked
        (1, 1000, 10**6, "reverse"),
    ],
)
def test_few_outputs_of_small_functions_go_back_over_the_graph(
    num_outputs, num_inputs, largest, outer
):
    assert choose_hessian_mode(num_outputs, num_inputs, largest) == (outer, "reverse")


# The order in which ways are tried


def test_a_jacobian_tries_its_mode_vmapped_then_looped_then_the_other_mode():
    assert jacobian_ways("auto", 2, 100, vectorise=True) == (
        Way("forward", True),
        Way("forward", False),
        Way("reverse", True),
        Way("reverse", False),
    )


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_a_mode_that_was_asked_for_is_the_only_one(mode):
    ways = jacobian_ways(mode, 2, 100, vectorise=True)
    assert ways == (Way(mode, True), Way(mode, False))


@given(st.sampled_from(MODES), st.integers(0, 100), st.integers(0, 100))
def test_a_chunk_size_of_one_leaves_only_ways_without_vmap(mode, n, m):
    assert not any(way.vectorised for way in jacobian_ways(mode, n, m, vectorise=False))


@given(st.integers(0, 100))
def test_a_hessian_never_takes_forward_mode_inside_by_itself(m):
    assert {way.inner for way in hessian_ways("auto", m, vectorise=True)} == {"reverse"}


@pytest.mark.parametrize("mode", HESSIAN_MODES[1:])
def test_the_modes_of_a_hessian_that_were_asked_for_are_the_only_ones(mode):
    ways = hessian_ways(mode, 1, vectorise=True)
    assert {f"{way.direction}-over-{way.inner}" for way in ways} == {mode}
    assert [way.vectorised for way in ways] == [True, False]


@given(st.integers(0, 100), st.integers(0, 100), st.booleans())
def test_the_trusted_way_is_among_those_of_auto(n, m, vectorise):
    for ways in (
        jacobian_ways("auto", n, m, vectorise=vectorise),
        hessian_ways("auto", m, vectorise=vectorise),
    ):
        assert {way.trusted for way in ways} <= set(ways)


def test_the_trusted_way_is_plain_backward_passes():
    assert Way("forward", True).trusted == Way("reverse", False)
    assert Way("forward", True, "forward").trusted == Way("reverse", False, "reverse")
    assert Way("reverse", False).trusted == Way("reverse", False)


def test_a_way_says_what_it_is():
    assert str(Way("forward", True)) == "forward mode, vmapped passes"
    assert str(Way("reverse", False, "reverse")) == "reverse-over-reverse mode, one pass at a time"


@pytest.mark.parametrize(
    ("n", "m", "mode"),
    [(576, 576, "forward"), (3072, 10, "reverse"), (200, 101, "forward"), (200, 100, "reverse")],
)
def test_forward_passes_of_convolutions_are_cheap(n, m, mode):
    assert choose_mode(n, m, FORWARD_COST_OF_CONVOLUTIONS) == mode


def test_a_look_sees_convolutions_and_parameters():
    kernel = torch.randn(1, 1, 3, requires_grad=True)

    def cost(weight, side, func=torch.nn.functional.conv1d):
        x = (torch.randn(1, 1, side),)
        return look(lambda primals: (func(*primals, weight),), x).work.forward_cost(2**20)

    assert cost(kernel.detach(), 2**13) == FORWARD_COST_OF_CONVOLUTIONS
    # Behind as many forward passes as there are inputs is a graph of that many numbers squared.
    assert cost(kernel, 2**12) == FORWARD_COST_OF_CONVOLUTIONS
    assert cost(kernel, 2**13) == FORWARD_COST
    assert cost(kernel[..., :1].detach(), 8, torch.mul) == FORWARD_COST


@pytest.mark.parametrize(
    ("work", "entries", "cost"),
    [
        (Work(), 2**20, FORWARD_COST),
        (Work(convolves=True), 1, FORWARD_COST_OF_CONVOLUTIONS),
        (Work(slices=True), 2**14, FORWARD_COST_OF_SLICES),
        (Work(slices=True), 2**14 - 1, FORWARD_COST),
        (Work(convolves=True, slices=True), 2**20, FORWARD_COST_OF_CONVOLUTIONS),
    ],
)
def test_what_a_forward_pass_costs(work, entries, cost):
    assert work.forward_cost(entries) == cost


def set_inside(x):
    out = torch.zeros_like(x)
    out[1:-1] = x[2:] * x[:-2]
    return out


@pytest.mark.parametrize(
    ("func", "slices"),
    [
        (lambda x: torch.cos(x[1:] - x[:-1]), True),
        (set_inside, True),
        (lambda x: torch.stack(x.view(8, 8).unbind()), True),
        (lambda x: (x.roll(1) - 2 * x + x.roll(-1)) * x, False),
        (lambda x: x.view(8, 8).T.reshape(64).sin(), False),
        (lambda x: torch.cat([x[:1], x[1:].sin().exp().tanh().cos().sinh()]), False),
        (lambda x: torch.ones(64, 64) @ x + x[0], False),
    ],
)
def test_a_look_sees_slices(func, slices):
    x = (torch.randn(64),)
    work = look(lambda primals: (func(*primals),), x).work
    assert work._replace(largest=0) == Work(slices=slices)


@pytest.mark.parametrize("sparsity", [None, "detect"] if DETECTS else [None])
def test_many_entries_of_a_function_of_slices_go_forward(sparsity):
    forward = []

    def func(x):
        forward.append(torch._C._functorch.peek_interpreter_stack() is not None)
        return torch.cos(x[1:] - x[:-1])

    sizes = (100, 140) if sparsity is None else (8_000, 9_000)
    for size in sizes:
        torchjac.jac(
            func,
            sparsity=sparsity,
            layout=torch.strided if sparsity is None else torch.sparse_coo,
            check="never",
        )(torch.ones(size))
        forward.append(None)
    assert [forward[at - 1] for at, seen in enumerate(forward) if seen is None] == [False, True]


@pytest.mark.parametrize(
    ("requires_grad", "little", "forward"),
    [(False, 0, True), (True, 0, False), (True, 2**10, True)],
)
def test_a_convolution_goes_forward_unless_its_graph_is_large(
    monkeypatch, requires_grad, little, forward
):
    monkeypatch.setattr(planning_look, "_LITTLE", little)
    kernel = torch.randn(1, 1, 3)
    taken = []

    def func(x):
        taken.append(torch._C._functorch.peek_interpreter_stack() is not None)
        return torch.nn.functional.conv1d(x.reshape(1, 1, -1), kernel, padding=1).reshape(-1)

    kernel.requires_grad_(requires_grad)
    torchjac.jac(func, check="never")(torch.ones(9))
    assert taken[-1] is forward
