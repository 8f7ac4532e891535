"""What ``torch._C._functorch`` does, on which torchjac/evaluation/batching.py builds its own vmap."""

import contextlib

import pytest
import torch

functorch = torch._C._functorch


@contextlib.contextmanager
def vmap_level(size, randomness="same"):
    level = functorch._vmap_increment_nesting(size, randomness)
    try:
        yield level
    finally:
        functorch._vmap_decrement_nesting()


def test_a_level_hides_the_batch_dimension_and_gives_it_back():
    stack = torch.arange(6.0).reshape(3, 2)
    with vmap_level(3) as level:
        one = functorch._add_batch_dim(stack, 0, level)
        assert one.shape == (2,)
        total = functorch._remove_batch_dim(one.sum(), level, 3, 0)
    torch.testing.assert_close(total, stack.sum(1))


def test_removal_from_an_unbatched_tensor_expands_it():
    with vmap_level(3) as level:
        expanded = functorch._remove_batch_dim(torch.ones(2), level, 3, 0)
    assert expanded.shape == (3, 2)
    assert expanded.stride(0) == 0


def test_a_level_by_hand_agrees_with_the_public_vmap():
    rows, matrix = torch.randn(4, 3), torch.randn(3, 3)
    with vmap_level(4) as level:
        one = functorch._add_batch_dim(rows, 0, level)
        product = functorch._remove_batch_dim((matrix @ one).tanh(), level, 4, 0)
    torch.testing.assert_close(product, torch.func.vmap(lambda row: (matrix @ row).tanh())(rows))


def test_randomness_same_draws_once_for_all_slices_and_as_plain_code_does():
    with vmap_level(3) as level:
        one = functorch._add_batch_dim(torch.ones(3, 5), 0, level)
        torch.manual_seed(1)
        drawn = functorch._remove_batch_dim(one * torch.rand(5), level, 3, 0)
    torch.manual_seed(1)
    torch.testing.assert_close(drawn, torch.rand(5).expand(3, 5))


def test_randomness_same_drops_out_as_plain_code_does_if_the_input_is_not_batched():
    x = torch.ones(50)
    torch.manual_seed(1)
    plain = torch.nn.functional.dropout(x)
    with vmap_level(3) as level:
        torch.manual_seed(1)
        inside = functorch._remove_batch_dim(torch.nn.functional.dropout(x), level, 3, 0)
    torch.testing.assert_close(inside, plain.expand(3, 50))


def test_levels_nest_within_each_other_and_within_the_public_vmap():
    def outer_product(x):
        with vmap_level(3) as level:
            one = functorch._add_batch_dim(torch.arange(3.0), 0, level)
            return functorch._remove_batch_dim(one * x, level, 3, 0)

    x = torch.randn(2)
    torch.testing.assert_close(torch.func.vmap(outer_product)(x), x[:, None] * torch.arange(3.0))


# torchjac/evaluation/surroundings.py: inside_transform


def test_the_interpreter_stack_is_empty_outside_transforms_and_within_no_grad():
    assert functorch.peek_interpreter_stack() is None
    with torch.no_grad(), torch.inference_mode():
        assert functorch.peek_interpreter_stack() is None


@pytest.mark.parametrize(
    "transform",
    [
        torch.func.vmap,
        torch.func.grad,
        lambda f: lambda x: torch.func.jvp(f, (x.sum(),), (torch.ones(()),)),
        lambda f: lambda x: torch.func.vjp(f, x.sum()),
    ],
    ids=["vmap", "grad", "jvp", "vjp"],
)
def test_the_interpreter_stack_is_not_empty_within_a_transform(transform):
    seen = []

    def spy(x):
        seen.append(functorch.peek_interpreter_stack() is not None)
        return x.sum()

    transform(spy)(torch.ones(1) if transform is torch.func.vmap else torch.ones(()))
    assert seen == [True]
    assert functorch.peek_interpreter_stack() is None


def test_the_interpreter_stack_belongs_to_the_thread():
    import threading

    seen = []
    with vmap_level(2):
        thread = threading.Thread(target=lambda: seen.append(functorch.peek_interpreter_stack()))
        thread.start()
        thread.join()
    assert seen == [None]
