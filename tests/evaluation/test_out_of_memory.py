"""Memory runs out: the chunk is halved and tried again, and the answer is what it would have been."""

import pytest
import torch

import torchjac
from torchjac.evaluation.surroundings import is_out_of_memory

X = torch.linspace(-1, 1, 7, dtype=torch.float64)


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("chunk_size", ["auto", None, 5, 4])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_chunk_that_does_not_fit_is_halved(levels, mode, chunk_size, limit):
    levels.limit = limit
    got = torchjac.jac(torch.sin, mode=mode, chunk_size=chunk_size)(X)
    torch.testing.assert_close(got, X.cos().diag())
    assert levels.sizes[0] > limit


def test_halving_goes_on_from_the_chunk_that_failed(levels):
    levels.limit = 2
    torchjac.jac(torch.sin, mode="reverse", chunk_size=None, check="never")(X)
    assert levels.sizes == [7, 4, 2, 2, 2]


def test_a_hessian_is_halved_too(levels):
    levels.limit = 2
    got = torchjac.hessian(lambda x: x.sin().sum(), chunk_size=None)(X)
    torch.testing.assert_close(got, -X.sin().diag())


def test_a_hessian_in_forward_mode_is_halved_too(levels):
    levels.limit = 2
    func, mode = (lambda x: x.sin().sum()), "forward-over-reverse"
    got = torchjac.hessian(func, mode=mode, chunk_size=None)(X)
    torch.testing.assert_close(got, -X.sin().diag())


def test_a_recorded_graph_is_halved_too(levels):
    levels.limit = 2
    x = X.clone().requires_grad_()
    torch.testing.assert_close(torchjac.jac_of(x.sin(), x, chunk_size=None), X.cos().diag())


def test_a_batch_is_halved_too(levels):
    levels.limit = 2
    batch = X.expand(3, 7).contiguous()
    got = torchjac.batched_jac(torch.sin, per_sample=False, chunk_size=None)(batch)
    torch.testing.assert_close(got, X.cos().diag().expand(3, 7, 7))


@pytest.mark.parametrize("chunk_size", [None, 30, 20])
def test_dropout_keeps_its_mask_when_a_chunk_is_tried_again(levels, chunk_size):
    levels.limit = 8
    x = torch.ones(40, dtype=torch.float64)
    torch.manual_seed(1)
    mask = torch.nn.functional.dropout(x)
    torch.manual_seed(1)
    func = torch.nn.functional.dropout
    got = torchjac.jac(func, mode="forward", chunk_size=chunk_size, check="never")(x)
    torch.testing.assert_close(got, mask.diag())


class Late(torch.autograd.Function):
    """The identity, whose backward runs out of memory the second time it is run."""

    runs = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, cotangent):
        Late.runs += 1
        if Late.runs == 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory (simulated)")
        return cotangent


@pytest.mark.filterwarnings("error::torchjac.errors.TorchjacFallbackWarning")
def test_a_last_chunk_that_fails_halfway_is_tried_again_over_the_same_graph():
    # sin comes first on the way back, so that what it saved is gone if the graph was freed.
    transform = torchjac.jac(
        lambda x: Late.apply(x).sin(), mode="reverse", chunk_size=4, check="never"
    )
    Late.runs = 0
    torch.testing.assert_close(transform(X), X.cos().diag())


def test_a_last_chunk_that_fails_over_a_graph_it_was_freeing_says_so():
    # There is no going over that graph again; with retain_graph=True there is.
    x = X.clone().requires_grad_()
    for retain_graph in (False, True):
        y = Late.apply(x).sin()
        Late.runs = 0
        if not retain_graph:
            with pytest.raises(torch.cuda.OutOfMemoryError, match="simulated"):
                torchjac.jac_of(y, x, chunk_size=4, check="never")
        else:
            got = torchjac.jac_of(y, x, chunk_size=4, retain_graph=True, check="never")
            torch.testing.assert_close(got, X.cos().diag())


def test_where_not_even_one_seed_fits_the_error_comes_out():
    def full(x):
        y = x.sin()
        if y.requires_grad:
            y.register_hook(_no_memory)
        return y

    with pytest.raises(torch.cuda.OutOfMemoryError, match="simulated"):
        torchjac.jac(full, mode="reverse")(X)


def _no_memory(cotangent):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory (simulated)")


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("MPS backend out of memory"), True),
        (RuntimeError("size mismatch"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_running_out_of_memory(error, answer):
    assert is_out_of_memory(error) is answer
