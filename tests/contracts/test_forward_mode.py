"""Forward mode under vmap: torchjac/evaluation/engines.py, `Push`, relies on this."""

import threading

import pytest
import torch
from torch._functorch import eager_transforms
from torch.autograd import forward_ad

from torchjac.evaluation.duals import pushed as pushed_by_hand


def pushed(function, x, **options):
    """All columns of the Jacobian, and the value as every column saw it."""

    def push(v):
        value, column = torch.func.jvp(function, (x,), (v,))
        return column, value

    return torch.func.vmap(push, **options)(torch.eye(len(x), dtype=x.dtype))


def test_a_level_by_hand_agrees_with_jvp_and_holds_others():
    """`torchjac.evaluation.duals` opens a level as `torch.func.jvp` does, and tells the others of it."""

    def nested(x):
        inner = torch.func.jvp(torch.sin, (x,), (torch.ones_like(x),))[1]
        return inner * x

    x, v = torch.randn(3), torch.randn(3)
    expected, tangent = torch.func.jvp(nested, (x,), (v,))
    values, tangents, carried = pushed_by_hand(lambda x: ((nested(x),), (x,)), [x], [v])
    torch.testing.assert_close(values[0], expected)
    torch.testing.assert_close(tangents[0], tangent)
    torch.testing.assert_close(carried[0], x)
    assert eager_transforms.JVP_NESTING == 0
    with torch.autograd.forward_ad.dual_level():
        pass


def test_a_level_by_hand_is_closed_after_an_error():
    with pytest.raises(ZeroDivisionError):
        pushed_by_hand(lambda x: 1 / 0, [torch.ones(2)], [torch.ones(2)])
    torch.func.jvp(torch.sin, (torch.zeros(2),), (torch.ones(2),))


def test_the_value_is_not_batched_so_it_is_the_same_in_every_slice():
    x = torch.randn(3)
    _, values = pushed(torch.sin, x)
    torch.testing.assert_close(values, x.sin().expand(3, 3))


def test_control_flow_may_depend_on_values_that_the_tangent_does_not_touch():
    def branching(x):
        return x * 2 if bool(x.sum() > 0) else x * 3

    columns, _ = pushed(branching, torch.ones(2))
    torch.testing.assert_close(columns, 2 * torch.eye(2))


def test_randomness_same_draws_the_mask_that_the_plain_function_draws():
    x = torch.ones(50)
    torch.manual_seed(1)
    plain = torch.nn.functional.dropout(x)
    torch.manual_seed(1)
    columns, values = pushed(torch.nn.functional.dropout, x, randomness="same")
    torch.testing.assert_close(values, plain.expand(50, 50))
    torch.testing.assert_close(columns, plain.diag())


def test_randomness_same_leaves_the_generator_where_the_plain_function_leaves_it():
    x = torch.ones(50)
    torch.manual_seed(1)
    torch.nn.functional.dropout(x)
    plain = torch.get_rng_state()
    torch.manual_seed(1)
    pushed(torch.nn.functional.dropout, x, randomness="same")
    assert torch.equal(torch.get_rng_state(), plain)


def test_a_function_that_does_not_depend_on_its_input_has_a_zero_tangent():
    _, tangent = torch.func.jvp(lambda x: torch.ones(3), (torch.ones(2),), (torch.ones(2),))
    torch.testing.assert_close(tangent, torch.zeros(3))


def test_jvp_answers_within_no_grad():
    with torch.no_grad():
        _, tangent = torch.func.jvp(torch.sin, (torch.zeros(2),), (torch.ones(2),))
    torch.testing.assert_close(tangent, torch.ones(2))


# torchjac/evaluation/surroundings.py: exclusively


def elsewhere(question):
    """The answer to a question that is asked in another thread."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(question()))
    thread.start()
    thread.join()
    return answers[0]


def test_the_forward_level_is_shared_by_all_threads():
    with forward_ad.dual_level():
        assert elsewhere(lambda: forward_ad._current_level) == 0
    assert elsewhere(lambda: forward_ad._current_level) == -1


def test_functional_call_swaps_parameters_for_all_threads():
    class Spied(torch.nn.Linear):
        def forward(self, x):
            seen.append(elsewhere(lambda: self.weight))
            return super().forward(x)

    seen = []
    swapped = torch.zeros(2, 2)
    torch.func.functional_call(Spied(2, 2), {"weight": swapped}, (torch.ones(2),))
    assert seen == [swapped]


# What torchjac/evaluation/operands.py knows of the overloads for numbers.


def tangent_of(make):
    x, t = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, t)
        return forward_ad.unpack_dual(dual).tangent, forward_ad.unpack_dual(make(dual)).tangent


def test_a_difference_with_a_number_hands_on_the_tangent_itself_and_a_sum_does_not():
    own, of_difference = tangent_of(lambda x: torch.ops.aten.sub.Scalar(x, 1))
    assert of_difference.data_ptr() == own.data_ptr()
    own, of_sum = tangent_of(lambda x: torch.ops.aten.add.Scalar(x, 1))
    assert of_sum.data_ptr() != own.data_ptr()


@pytest.mark.skipif(not hasattr(torch, "compiler"), reason="before torch 2.1 both overloads do")
def test_a_product_in_place_rounds_the_number_first_where_precision_is_half():
    x = torch.tensor([1e-4], dtype=torch.half)
    assert torch.isinf(torch.ops.aten.mul_.Scalar(x.clone(), 1e5)).all()
    assert torch.isfinite(x.clone().mul_(1e5)).all()
