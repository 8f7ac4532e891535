"""What detection promises: on which graph, which values count, what it refuses, what it does not touch."""

import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import torchjac
from tests.structure.detection import maps
from torchjac.errors import StructureError, TorchjacError
from torchjac.structure.detection import linear_pattern

D = torch.float64
X = torch.zeros(4, dtype=D)
VERSION = tuple(int(part) for part in torch.__version__.split(".")[:2])
EYE = np.eye(4, dtype=bool)


def pattern(func, way="forward", x=X):
    return linear_pattern(maps.JACOBIANS[way](func), [x], [x]).matrix.toarray()


# ---- the derivative's own graph ------------------------------------------------------------------


class StraightThrough(torch.autograd.Function):
    """Rounds, and lets the gradient through; written before `setup_context`."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, grad):
        return grad


class Neighbours(torch.autograd.Function):
    """Forwards every element by itself, and says that its derivative reaches the next as well."""

    @staticmethod
    def forward(x):
        return x * 1

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return grad + grad.roll(-1)

    @staticmethod
    def jvp(ctx, tangent):
        return tangent + tangent.roll(1)


def test_a_straight_through_estimator_is_diagonal_and_rounding_is_empty():
    assert (pattern(StraightThrough.apply, "plain") == EYE).all()
    assert not pattern(torch.round, "plain").any()


@pytest.mark.parametrize("way", maps.JACOBIANS)
def test_a_custom_derivative_counts_as_it_is_written(way):
    expected = EYE | np.roll(EYE, 1, axis=0)
    found = pattern(Neighbours.apply, way)
    assert (found == (expected if way == "forward" else expected.T)).all()


@pytest.mark.skipif(VERSION < (2, 6), reason="compiled functions run as written since torch 2.6")
@pytest.mark.parametrize("way", ["forward", "plain"])
def test_a_compiled_function_is_looked_into(way):
    compiled = torch.compile(lambda x: x.sin() * x.flip(0), backend="eager")
    assert (pattern(compiled, way) == (EYE | EYE[::-1])).all()


# ---- Hessians ------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", maps.HESSIANS)
def test_hessians(way):
    def of(func):
        return linear_pattern(maps.HESSIANS[way](func), [X], [X]).matrix.toarray()

    def rosenbrock(x):
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    assert (of(lambda x: (x**4).sum()) == EYE).all()
    tridiagonal = EYE | np.eye(4, k=1, dtype=bool) | np.eye(4, k=-1, dtype=bool)
    assert (of(rosenbrock) == tridiagonal).all()
    corners = np.zeros((4, 4), bool)
    corners[0, 3] = corners[3, 0] = True
    assert (of(lambda x: (3 * x[::2]).sum() + x[0] * x[3]) == corners).all()


@pytest.mark.parametrize("way", maps.HESSIANS)
@pytest.mark.parametrize("func", [lambda x: x.prod(-1), lambda x: x.cumprod(-1), torch.linalg.det])
def test_second_derivatives_have_rules_where_the_first_have_none(way, func):
    x = torch.zeros(2, 3, 3, dtype=D)
    detected = linear_pattern(maps.HESSIANS[way](lambda x: func(x).sum()), [x], [x])
    assert not detected.unknown
    assert not detected.matrix.toarray()[:9, 9:].any()


# ---- what has values ------------------------------------------------------------------------------


def test_a_constant_counts_with_its_zeros_and_is_named():
    matrix = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=D)
    unused = torch.ones(2, dtype=D)
    x = torch.zeros(2, dtype=D)
    detected = linear_pattern(maps.forward(lambda x: matrix @ x * unused), [x], [x])
    assert detected.matrix.toarray().tolist() == [[True, False], [True, True]]
    assert [tensor is matrix for tensor in detected.constants] == [True]


def test_what_is_made_inside_of_constants_is_known():
    def func(x):
        mask = torch.ones(4, 4, dtype=D).tril()
        mask[2] = 0.0
        return mask @ x

    expected = np.tril(np.ones((4, 4), bool))
    expected[2] = False
    assert (pattern(func) == expected).all()


def test_a_parameter_is_there_to_be_changed():
    layer = nn.Linear(4, 3).double()
    nn.init.zeros_(layer.weight)
    assert pattern(layer).all()


def test_a_primal_is_not_known_even_if_captured():
    x = torch.zeros(4, dtype=D)
    assert (pattern(lambda primal: primal * primal, x=x) == EYE).all()


def test_branches_on_constants_are_taken():
    def func(x):
        threshold = torch.tensor(3.0)
        return x * 2 if threshold > 2 and torch.arange(3).sum().item() == 3 else x.sum()

    assert (pattern(func) == EYE).all()


# ---- refusals -------------------------------------------------------------------------------------

BRANCHES = {
    "if": lambda x: x if x.sum() > 0 else -x,
    "item": lambda x: x * x.sum().item(),
    "mask": lambda x: x[x > 0],
    "masked_select": lambda x: x.masked_select(x > 0),
    "nonzero": lambda x: x[(x > 0).nonzero()],
    "numpy": lambda x: x * torch.from_numpy(x.detach().numpy()),
    "tolist": lambda x: x * x.detach().tolist()[0],
}


@pytest.mark.parametrize("way", ["forward", "plain"])
@pytest.mark.parametrize("func", BRANCHES.values(), ids=BRANCHES)
def test_a_function_that_looks_at_values_is_refused(way, func):
    if func is BRANCHES["tolist"] and VERSION < (2, 6):
        pytest.skip("an error of PyTorch's own, which callers get in a StructureError")
    with pytest.raises(StructureError, match="looks at values that depend on its input") as caught:
        pattern(func, way)
    assert isinstance(caught.value, (TorchjacError, ValueError))


def test_the_whole_message():
    with pytest.raises(StructureError) as caught:
        pattern(BRANCHES["if"])
    assert str(caught.value) == (
        "func looks at values that depend on its input (aten._local_scalar_dense.default), so that its "
        "structure may be another at another input: a branch such as `if x.sum() > 0`, `.item()`, or a "
        "boolean mask as an index; use torch.where, or pass sparsity=None to compute without a pattern, "
        "or give the pattern by hand: sparsity=SparsityPattern(...)"
    )


def test_a_dense_jacobian_is_refused_before_it_fills_the_memory():
    x = torch.zeros(20_000)
    with pytest.raises(StructureError, match=r"effectively dense.*sparsity=None"):
        pattern(lambda x: x.softmax(0), x=x)


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
def test_a_matrix_of_blocks_is_refused():
    matrix = torch.eye(4, dtype=D).to_sparse_bsr((2, 2))
    with pytest.raises(StructureError, match=re.escape("a captured tensor is torch.sparse_bsr")):
        pattern(lambda x: matrix @ x, "plain")


def test_an_error_of_the_function_comes_out_as_it_is():
    def func(x):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        pattern(func)
    assert (pattern(torch.sin) == EYE).all()


# ---- unknown ops ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library():
    made = torch.library.Library("torchjac_test", "DEF")
    made.define("mystery(Tensor x, Tensor y) -> Tensor")
    made.define("nudge_(Tensor(a!) x, Tensor y) -> ()")
    for key in ("CPU", "Meta"):
        made.impl("mystery", lambda x, y: x + y, key)
        made.impl("nudge_", lambda x, y: None, key)
    return made


def test_an_op_without_a_rule_is_dense_and_named(library):
    def function(primals, seeds):
        return [torch.ops.torchjac_test.mystery(seeds[0][:2], primals[0][:2])]

    detected = linear_pattern(function, [X], [X])
    assert detected.matrix.toarray().tolist() == [[True, True, False, False]] * 2
    assert detected.unknown == ("torchjac_test.mystery.default",)


def test_an_op_on_what_depends_on_nothing_is_no_unknown_one():
    # A mask at the ends, as of a boundary condition: the first cotangent is zero.
    mask = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=D)

    def function(primals, seeds):
        return [torch.cat([(seeds[0] * mask)[:1].roll(1), seeds[0] * mask])]

    detected = linear_pattern(function, [X], [X])
    assert detected.matrix.toarray().nonzero()[1].tolist() == [1, 2]
    assert not detected.unknown

    def laplacian(x):
        inner = x[2:] - 2 * x[1:-1] ** 2 + x[:-2]
        return torch.cat([x[:1], inner, 2 * x[-1:]]) * mask

    assert torchjac.jac_sparsity(laplacian)(X).nnz == 6  # and nothing is warned of


def test_what_an_op_without_a_rule_changes_is_dense_too(library):
    def function(primals, seeds):
        changed = torch.zeros(2, dtype=D)
        torch.ops.torchjac_test.nudge_(changed, seeds[0][1:3])
        return [changed]

    detected = linear_pattern(function, [X], [X])
    assert detected.matrix.toarray().tolist() == [[False, True, True, False]] * 2
    assert detected.unknown == ("torchjac_test.nudge_.default",)


# ---- nothing is touched ---------------------------------------------------------------------------


def test_buffers_random_state_and_gradients_are_left_alone():
    norm = nn.BatchNorm1d(3).double()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    x = torch.zeros(4, 3, dtype=D)
    state = torch.get_rng_state()
    linear_pattern(maps.plain(lambda x: nn.functional.dropout(norm(x), 0.5)), [x], [x])
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(parameter.grad is None for parameter in norm.parameters())
    assert not x.requires_grad


def test_a_captured_tensor_that_is_written_to_keeps_its_values():
    captured = torch.zeros(4, dtype=D)

    def func(x):
        captured.add_(1.0)
        return x * captured

    assert (pattern(func, "plain") == EYE).all()
    assert not captured.any()


def test_only_ops_that_hand_on_a_dependence_are_counted():
    detected = linear_pattern(lambda p, s: [p[0].sin().cos() * s[0]], [X], [X])
    assert detected.nodes == 1


@pytest.mark.parametrize("count", [10, 1000])
def test_the_work_is_the_same_for_every_size(count):
    x = torch.zeros(count)
    detected = linear_pattern(maps.forward(lambda x: x.roll(1) * x), [x], [x])
    assert detected.nodes == linear_pattern(maps.forward(lambda x: x.roll(1) * x), [X], [X]).nodes
    assert detected.matrix.nnz == 2 * count


@pytest.mark.parametrize("driver", [None, "gels", "gelsy", "gelsd"])
@pytest.mark.parametrize(
    ("matrix", "right"),
    [((2, 5, 3), (2, 5, 4)), ((2, 3, 5), (2, 3)), ((3, 5), (3,)), ((4, 4), (4,))],
    ids=str,
)
def test_least_squares_have_their_shapes_without_values(driver, matrix, right):
    shapes = []

    def function(primals, seeds):
        found = torch.linalg.lstsq(*primals, driver=driver)
        shapes.append([(part.shape, part.dtype) for part in found])
        return seeds

    primals = [torch.randn(matrix), torch.randn(right)]
    if driver == "gelsd" and matrix[-2] > matrix[-1]:
        # Where a matrix has not full rank, there are no residuals.
        with pytest.raises(StructureError, match="on values alone"):
            linear_pattern(function, primals, primals)
        return
    linear_pattern(function, primals, primals)
    function(primals, [])
    assert shapes[0] == shapes[1]


def test_the_lengths_of_targets_may_be_unknown():
    log_probs, targets = torch.randn(6, 2, 4), torch.ones(2, 3, dtype=torch.int64)

    def function(primals, seeds):
        x = primals[0].requires_grad_()
        lengths = primals[1].long()
        losses = F.ctc_loss(x.log_softmax(-1), targets, lengths + 3, lengths, reduction="none")
        return torch.autograd.grad(losses, x, seeds)

    detected = linear_pattern(function, [log_probs, torch.ones(2)], [torch.ones(2)])
    expected = torch.eye(2).repeat_interleave(4, 0).repeat(6, 1).bool()
    assert (detected.matrix.toarray() == expected.numpy()).all()
