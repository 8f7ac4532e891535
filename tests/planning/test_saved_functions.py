"""A plan is loaded for the function that it was saved of, however that is written, and for no other."""

import pytest
import torch

from tests.sparse import DETECTS
from torchjac.errors import PlanError

if not DETECTS:
    pytest.skip("plans take torch 2.1", allow_module_level=True)

from tests.planning.saved_plans import Network, assert_same, branching, saved, stencil, x
from torchjac import jac, load_plan


def test_values_names_and_how_it_is_written_do_not_count(path):
    def written(x):
        later, earlier = x[1:], x[:-1]
        return (later - earlier) ** 2

    saved(path, jac, stencil, x(40))
    torch.testing.assert_close(load_plan(path, written)(x(40)), jac(stencil)(x(40)))
    saved(path, jac, Network(), x(3))
    other = Network()
    torch.testing.assert_close(load_plan(path, other)(x(3)), jac(other)(x(3)))


@pytest.mark.parametrize(
    "other",
    [
        lambda x: (x[1:] - x[:-1]) ** 3,
        lambda x: (x[1:] + x[:-1]) ** 2,
        lambda x: (x[2:] - x[:-2]) ** 2,
        lambda x: ((x[1:] - x[:-1]) ** 2).double(),
        lambda x: x,
    ],
)
def test_another_function_is_refused(other, path):
    saved(path, jac, stencil, x(40))
    with pytest.raises(PlanError, match="func is another function: its trace has other operations"):
        load_plan(path, other)


def test_a_function_that_takes_other_arguments_is_refused(path):
    saved(path, jac, stencil, x(40))
    with pytest.raises(PlanError, match="func cannot be planned as it was: TypeError"):
        load_plan(path, lambda: None)
    with pytest.raises(PlanError, match=r"does not fit the saved options .* expected a callable"):
        load_plan(path, 3)


def test_another_code_is_refused_where_there_is_no_trace(path):
    saved(path, jac, branching, x(4))
    with pytest.raises(PlanError, match=r"func has other code than it had. Make a new plan"):
        load_plan(path, lambda x: x.sin() if x.sum() > 1 else x.cos())


def test_a_function_that_cannot_be_traced_any_more_is_refused(path):
    saved(path, jac, torch.sin, x(4))
    with pytest.raises(PlanError, match="func cannot be planned as it was: it looks at values"):
        load_plan(path, branching)


def test_a_function_that_cannot_be_watched_is_refused(path):
    saved(path, jac, torch.sin, x(4))
    with pytest.raises(PlanError, match=r"func cannot be watched as it was: .* calls eval"):
        load_plan(path, lambda x: eval("x.sin()"))


def test_parameters_of_other_shapes_are_refused(path):
    saved(path, lambda f: jac(f, "params"), Network(5), x(3))
    with pytest.raises(PlanError, match=r"tensor 0 .* is \(6, 3\) .* the plan is for \(5, 3\)"):
        load_plan(path, Network(6))
    frozen = Network(5)
    frozen.layers[0].bias.requires_grad_(False)
    with pytest.raises(PlanError, match="differentiated by 3 tensors, and the plan is for 4"):
        load_plan(path, frozen)
    with pytest.raises(PlanError, match=r"does not fit the saved options .* must be an nn.Module"):
        load_plan(path, torch.sin)
    saved(path, jac, Network(5), x(3))
    with pytest.raises(PlanError, match="func is another function"):
        load_plan(path, Network(6))


def of_matrix(matrix):
    return lambda x: torch.tanh(matrix @ x) * torch.tensor([1.0, 2.0, 3.0])


def test_a_pattern_that_captured_values_shaped_needs_the_same_values(path):
    def detect(func):
        return jac(func, sparsity="detect")

    band = torch.eye(3) + torch.eye(3).roll(1, 0)
    plan = saved(path, detect, of_matrix(band), x(3))
    loaded = load_plan(path, of_matrix(band.clone()))
    assert_same(plan, loaded)
    assert loaded._design.compression.relies_on_constants
    loaded.save(path)
    load_plan(path, of_matrix(band.clone()))
    with pytest.raises(PlanError, match="captured, and that shaped the pattern, changed"):
        load_plan(path, of_matrix(torch.ones(3, 3)))
    band[0] = 1
    with pytest.raises(PlanError, match=r"save: a captured tensor, with whose values .* changed"):
        plan.save(path)
