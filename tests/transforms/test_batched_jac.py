"""batched_jac: the samples' own blocks, for the price of one sample, or an error; never a sum."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import torchjac
from tests.cases import written_into
from torchjac.errors import ArgumentError, BatchCouplingError, OutputTypeError, UnsupportedError

MODES = ["auto", "forward", "reverse"]


def sample(x: Tensor) -> Tensor:
    return torch.stack([x.sin().prod(), x[0] * x[-1]])


MODEL = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()


@pytest.mark.parametrize("chunk_size", ["auto", 1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_per_sample_is_vmap_of_jac(mode: str, chunk_size: Any) -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    got = torchjac.batched_jac(sample, mode=mode, chunk_size=chunk_size)(x)
    torch.testing.assert_close(got, torch.func.vmap(torch.func.jacrev(sample))(x))


@pytest.mark.parametrize("chunk_size", ["auto", 1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_whole_batch_is_the_loop(mode: str, chunk_size: Any) -> None:
    x = torch.randn(5, 3, dtype=torch.float64)
    got = torchjac.batched_jac(MODEL, per_sample=False, mode=mode, chunk_size=chunk_size)(x)
    torch.testing.assert_close(got, torch.stack([torch.func.jacrev(MODEL)(row) for row in x]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("in_dims", [(1, None), (1, 0), (-1, None)])
def test_in_dims(in_dims: Any, mode: str) -> None:
    x = torch.randn(3, 4, dtype=torch.float64)
    y = torch.randn(4, 2, dtype=torch.float64) if in_dims[1] == 0 else torch.randn(2).double()

    def func(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"a": x * y.sum(), "b": x.prod() * y}

    got = torchjac.batched_jac(func, (0, 1), in_dims=in_dims, mode=mode)(x, y)
    dims = (in_dims[0] % 2, in_dims[1])
    expected = torch.func.vmap(torch.func.jacrev(func, (0, 1)), dims)(x, y)
    torch.testing.assert_close(got, expected)


def test_trees_in_and_out() -> None:
    tree = {"a": torch.randn(4, 2).double(), "b": [torch.randn(4).double()]}

    def func(tree: Any) -> tuple[Tensor, None, Tensor]:
        return tree["a"] * tree["b"][0], None, tree["a"].argmax()

    got = torchjac.batched_jac(func)(tree)
    assert got[1] is None
    assert got[2] is None
    torch.testing.assert_close(got[0]["a"], tree["b"][0][:, None, None] * torch.eye(2).double())
    torch.testing.assert_close(got[0]["b"][0], tree["a"])


@pytest.mark.parametrize("mode", MODES)
def test_parameters_per_sample(mode: str) -> None:
    x = torch.randn(4, 3, dtype=torch.float64)
    got = torchjac.batched_jac(MODEL, "params", mode=mode)(x)
    for b, row in enumerate(x):
        expected = torchjac.jac(MODEL, "params", mode="reverse")(row)
        torch.testing.assert_close({name: leaf[b] for name, leaf in got.items()}, expected)


COUPLED = {
    "batch norm in training": nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)),
    "batch mean": lambda x: x - x.mean(0),
    "shift by one": lambda x: x * x.roll(1, 0),
    "sorted batch": lambda x: x.sort(0).values * torch.arange(16.0)[:, None],
    "attention": lambda x: torch.softmax(x @ x.T, -1) @ x,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", COUPLED)
def test_coupled_samples_are_refused(name: str, mode: str) -> None:
    expected, said = BatchCouplingError, "influence each other"
    if mode == "forward" and name == "batch norm in training":
        # PyTorch will not update the running statistics inside a transform, which forward mode is.
        expected, said = UnsupportedError, "in-place operation"
    with pytest.raises(expected, match=said):
        torchjac.batched_jac(COUPLED[name], per_sample=False, mode=mode)(torch.randn(16, 3))


def test_batch_norm_is_seen_when_training_begins_later() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    batched = torchjac.batched_jac(module, per_sample=False)
    x = torch.randn(8, 3)
    assert batched(x).shape == (8, 4, 3)
    module.train()
    with pytest.raises(BatchCouplingError):
        batched(x)


def test_any_pair_of_samples_is_found() -> None:
    """The group test separates every pair, so one dependency among many samples shows."""
    for source, target in [(0, 1), (3, 12), (12, 3), (7, 8)]:

        def func(x: Tensor, source: int = source, target: int = target) -> Tensor:
            y = x.clone()
            y[target] = y[target] + x[source] ** 2
            return y

        torchjac.planning.memory.forget_everything()
        with pytest.raises(BatchCouplingError, match=f"sample {source} of 13"):
            torchjac.batched_jac(func, per_sample=False)(torch.randn(13, 2))


def test_data_dependent_function_is_taken_sample_by_sample() -> None:
    def func(x: Tensor) -> Tensor:
        return x.sin() if x.sum() > 0 else x * 3

    x = torch.tensor([[1.0, 2.0], [-1.0, -2.0], [0.5, 0.1]])
    expected = torch.stack([torch.func.jacrev(func)(row) for row in x])
    with pytest.warns(
        torchjac.errors.TorchjacFallbackWarning, match="3 evaluations instead of one"
    ):
        got = torchjac.batched_jac(func)(x)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torchjac.batched_jac(func)(x), expected)  # and says so only once


def test_empty_batch_and_one_sample() -> None:
    assert torchjac.batched_jac(MODEL, per_sample=False)(torch.zeros(0, 3).double()).shape == (
        0,
        2,
        3,
    )
    assert torchjac.batched_jac(MODEL, per_sample=False)(torch.zeros(1, 3).double()).shape == (
        1,
        2,
        3,
    )
    assert torchjac.batched_jac(sample)(torch.zeros(1, 3).double()).shape == (1, 2, 3)


EMPTY: list[Callable[[Tensor], Any]] = [
    torch.sin,
    lambda x: x.sum(),
    lambda x: torch.cat([x * k for k in range(9)]),
    lambda x: torch.stack(list(x)).square(),
    lambda x: torch.ones(2, dtype=x.dtype),
    lambda x: {"a": x.sum(), "b": (x, x[0])},
    MODEL,
]


@pytest.mark.parametrize("func", EMPTY)
@pytest.mark.parametrize(
    "options",
    [{}, {"mode": "forward"}, {"mode": "reverse", "chunk_size": 1}, {"check": "always"}],
)
def test_an_empty_batch_is_that_of_vmap(
    func: Callable[[Tensor], Any], options: dict[str, Any]
) -> None:
    x = torch.zeros(0, 3, dtype=torch.float64)
    got = torchjac.batched_jac(func, **options)(x)
    torch.testing.assert_close(got, torch.func.vmap(torch.func.jacrev(func))(x))


def test_an_empty_batch_has_values_and_shared_arguments() -> None:
    x, y = torch.zeros(3, 0, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    transform = torchjac.batched_jac(
        lambda x, y: x.sin() * y, (0, 1), in_dims=(1, None), return_value=True
    )
    value, (by_x, by_y) = transform(x, y)
    assert value.shape == (0, 3)
    assert by_x.shape == by_y.shape == (0, 3, 3)
    by_parameters = torchjac.batched_jac(MODEL, "params")(x.T)
    for name, parameter in MODEL.named_parameters():
        assert by_parameters[name].shape == (0, 2, *parameter.shape)


def test_an_empty_batch_needs_a_function_that_can_be_vmapped() -> None:
    with pytest.raises(ArgumentError) as caught:
        torchjac.batched_jac(lambda x: x * x.sum().item())(torch.zeros(0, 3))
    assert str(caught.value) == (
        "batched_jac(per_sample=True): the batch is empty, and PyTorch cannot vmap this function, which "
        "alone could tell what it returns. Use per_sample=False, or skip empty batches."
    )


def test_bad_input_is_refused() -> None:
    x, y = torch.ones(4, 3), torch.ones(5, 3)
    with pytest.raises(ArgumentError, match=r"expected one batch size, got \[4, 5\]"):
        torchjac.batched_jac(lambda x, y: x * y)(x, y)
    with pytest.raises(ArgumentError, match="no batched argument"):
        torchjac.batched_jac(lambda x: x, in_dims=None)(x)
    with pytest.raises(ArgumentError, match="2 is no dimension of an argument of shape"):
        torchjac.batched_jac(lambda x: x, in_dims=2)(x)
    with pytest.raises(ArgumentError, match="its structure does not fit"):
        torchjac.batched_jac(lambda x: x, in_dims=(0, 0))(x)
    with pytest.raises(ArgumentError, match="share an argument"):
        torchjac.batched_jac(lambda x, y: x * y, 1, in_dims=(0, None), per_sample=False)(x, x)
    with pytest.raises(OutputTypeError, match=r"output of shape \(\) for a batch of 4"):
        torchjac.batched_jac(lambda x: x.sum(), per_sample=False)(x)


@pytest.mark.parametrize("mode", MODES)
def test_the_result_can_be_written_into(mode: str) -> None:
    got = torchjac.batched_jac(lambda x: x, per_sample=False, mode=mode)(torch.ones(3, 2))
    got[0, 0, 0] = 7
    assert got.sum() == 7 + 5


@pytest.mark.filterwarnings("ignore::torchjac.errors.TorchjacFallbackWarning")
def test_coupling_is_seen_where_only_forward_mode_works() -> None:
    x = torch.rand(5, 2, dtype=torch.float64)
    found = torchjac.batched_jac(written_into, per_sample=False)(x)
    torch.testing.assert_close(found, torch.diag_embed(2 * x.exp()))
    with pytest.raises(torchjac.errors.BatchCouplingError):
        torchjac.batched_jac(lambda x: written_into(x) - x.sum(0), per_sample=False)(x)
