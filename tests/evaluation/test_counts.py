"""What a call costs, in evaluations of the function, backward passes and vmap levels."""

import pytest
import torch

import torchjac

CHUNK_SIZES = ["auto", None, 1, 2, 3, 100]


def sizes_of_chunks(total, chunk_size):
    """The chunks that are vmapped: those of more than one seed."""
    size = total if chunk_size in ("auto", None) else chunk_size
    chunks = [min(size, total - start) for start in range(0, total, size)]
    return [chunk for chunk in chunks if chunk > 1], len(chunks)


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
@pytest.mark.parametrize("grad", [True, False])
def test_reverse_mode_evaluates_once_whatever_the_chunks(counted, levels, chunk_size, grad):
    func, x = counted(torch.sin), torch.randn(5)
    transform = torchjac.jac(func, mode="reverse", chunk_size=chunk_size)
    transform(x)
    func.reset()
    levels.sizes.clear()
    with torch.set_grad_enabled(grad):
        transform(x)
    vmapped, passes = sizes_of_chunks(5, chunk_size)
    assert (func.evaluations, func.passes, levels.sizes) == (1, passes, vmapped)


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_forward_mode_evaluates_once_per_chunk(counted, levels, chunk_size):
    func, x = counted(torch.sin), torch.randn(5)
    transform = torchjac.jac(func, mode="forward", chunk_size=chunk_size)
    transform(x)
    func.reset()
    levels.sizes.clear()
    transform(x)
    vmapped, passes = sizes_of_chunks(5, chunk_size)
    assert (func.evaluations, levels.sizes) == (passes, vmapped)


@pytest.mark.parametrize(("mode", "evaluations"), [("reverse", 2), ("forward", 3)])
def test_the_first_sight_costs_a_look_and_in_forward_mode_a_check(counted, mode, evaluations):
    func = counted(torch.sin)
    torchjac.jac(func, mode=mode)(torch.randn(5))
    assert func.evaluations == evaluations


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_without_a_check_the_first_sight_costs_a_look_alone(counted, mode):
    func = counted(torch.sin)
    torchjac.jac(func, mode=mode, check="never")(torch.randn(5))
    assert func.evaluations == 2


def test_in_reverse_mode_a_check_costs_a_backward_pass_and_no_evaluation(counted):
    func, x = counted(torch.sin), torch.randn(5)
    transform = torchjac.jac(func, mode="reverse", check="always")
    transform(x)
    func.reset()
    transform(x)
    assert (func.evaluations, func.passes) == (1, 2)


def test_another_shape_is_another_first_sight(counted):
    func = counted(torch.sin)
    transform = torchjac.jac(func, mode="reverse")
    transform(torch.randn(5))
    func.reset()
    transform(torch.randn(6))
    assert func.evaluations == 2


def test_a_transform_built_anew_around_a_lambda_written_anew_is_no_first_sight(counted):
    func, x = counted(torch.sin), torch.randn(5)
    for _ in range(2):
        func.reset()
        torchjac.jac(lambda x: func(x))(x)
    assert func.evaluations == 1


def test_one_output_is_one_plain_backward_pass(counted, levels):
    func, x = counted(lambda x: (x * x).sum()), torch.randn(50)
    torchjac.jac(func)(x)
    func.reset()
    torchjac.jac(func)(x)
    assert (func.evaluations, func.passes, levels.sizes) == (1, 1, [])


def test_one_input_is_one_plain_evaluation(counted, levels):
    func, x = counted(lambda x: x * torch.arange(50.0)), torch.tensor(2.0)
    torchjac.jac(func)(x)
    func.reset()
    torchjac.jac(func)(x)
    assert (func.evaluations, func.passes, levels.sizes) == (1, 0, [])


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torchjac.jac(torch.sin, mode="forward", chunk_size=1)(x),
        lambda x: torchjac.jac(torch.sin, mode="reverse", chunk_size=1)(x),
        lambda x: torchjac.hessian(lambda x: x.sin().sum(), chunk_size=1)(x),
        lambda x: torchjac.hessian(torch.sin, chunk_size=1)(x),
        lambda x: torchjac.batched_jac(torch.sin, per_sample=False, chunk_size=1)(x[None]),
        lambda x: torchjac.jac_of(x.requires_grad_().sin(), x, chunk_size=1),
    ],
    ids=["forward", "reverse", "hessian", "hessian of several", "batched", "jac_of"],
)
def test_a_chunk_size_of_one_never_uses_vmap(levels, call):
    call(torch.randn(4))
    assert levels.sizes == []


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_a_hessian_evaluates_once_and_takes_a_pass_per_input(counted, levels, chunk_size):
    func, x = counted(lambda x: x.sin().sum()), torch.randn(5)
    transform = torchjac.hessian(func, chunk_size=chunk_size)
    transform(x)
    func.reset()
    levels.sizes.clear()
    transform(x)
    vmapped, _ = sizes_of_chunks(5, chunk_size)
    assert (func.evaluations, levels.sizes) == (1, vmapped)


def test_a_batch_takes_the_passes_of_one_sample(counted, levels):
    func, x = counted(lambda x: x[:, :2].sin()), torch.randn(50, 3)
    transform = torchjac.batched_jac(func, per_sample=False)
    transform(x)
    func.reset()
    levels.sizes.clear()
    transform(x)
    assert (func.evaluations, func.passes, levels.sizes) == (1, 1, [2])


def test_a_batch_of_single_outputs_is_one_plain_backward_pass(counted, levels):
    func, x = counted(lambda x: x.sin().sum(1)), torch.randn(50, 3)
    transform = torchjac.batched_jac(func, per_sample=False)
    transform(x)
    func.reset()
    levels.sizes.clear()
    transform(x)
    assert (func.evaluations, func.passes, levels.sizes) == (1, 1, [])


@pytest.mark.parametrize("chunk_size", CHUNK_SIZES)
def test_a_recorded_graph_takes_one_pass_per_chunk(counted, levels, chunk_size):
    x = torch.randn(5, requires_grad=True)
    for _ in range(2):
        func = counted(torch.sin)
        levels.sizes.clear()
        torchjac.jac_of(func(x), x, chunk_size=chunk_size)
    vmapped, passes = sizes_of_chunks(5, chunk_size)
    assert (func.evaluations, func.passes, levels.sizes) == (1, passes, vmapped)


@pytest.mark.parametrize("options", [{"return_value": True}, {"has_aux": True}])
def test_the_value_and_what_is_auxiliary_come_from_the_same_evaluation(counted, options):
    func = counted(lambda x: (x.sin(), x) if "has_aux" in options else x.sin())
    transform, x = torchjac.jac(func, mode="reverse", **options), torch.randn(5)
    transform(x)
    func.reset()
    transform(x)
    assert func.evaluations == 1


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_parameters_cost_no_more_than_arguments(mode):
    class Net(torch.nn.Linear):
        evaluations = 0

        def forward(self, x):
            type(self).evaluations += 1
            return super().forward(x)

    transform, x = torchjac.jac(Net(3, 2), argnums="params", mode=mode), torch.randn(3)
    transform(x)
    Net.evaluations = 0
    transform(x)
    assert Net.evaluations == 1
