"""Bad input: the error names the call, what came, what was expected and what to do."""

import dataclasses
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

import torchjac
from torchjac.errors import ArgumentError, OptionError, TorchjacError

X = torch.ones(2)
TRANSFORMS = [torchjac.jac, torchjac.batched_jac, torchjac.hessian]


@dataclasses.dataclass
class State:
    """No tree yet."""

    q: torch.Tensor


OPTIONS: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"chunk_size": 0},
        ValueError,
        "(chunk_size=0): expected a positive int, None for all at once",
    ),
    ({"chunk_size": -3}, ValueError, "(chunk_size=-3): expected a positive int"),
    ({"chunk_size": "all"}, ValueError, "(chunk_size='all'): expected a positive int"),
    ({"chunk_size": 1.5}, TypeError, "(chunk_size=1.5): expected a positive int"),
    ({"chunk_size": True}, TypeError, "(chunk_size=True): expected a positive int"),
    ({"check": "maybe"}, ValueError, "(check='maybe'): expected one of 'first', 'always', 'never'"),
    ({"check": None}, ValueError, "(check=None): expected one of"),
    ({"mode": "backward"}, ValueError, "(mode='backward'): expected one of 'auto', 'forward"),
    ({"mode": []}, ValueError, "(mode=[]): expected one of 'auto', 'forward"),
    ({"argnums": 1.0}, TypeError, "(argnums=1.0): expected an int, a tuple of ints"),
    ({"argnums": (0, "x")}, TypeError, "(argnums=(0, 'x')): expected an int, a tuple of ints"),
    ({"argnums": True}, TypeError, "(argnums=True): expected an int, a tuple of ints"),
    ({"argnums": ()}, ValueError, "(argnums=()): expected an int, a tuple of ints"),
    (
        {"argnums": (1, 1)},
        ValueError,
        "(argnums=(1, 1)): an argument is chosen twice; name it once",
    ),
    ({"argnums": "x"}, ValueError, "(argnums='x'): expected an int, a tuple of ints"),
]


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize(("options", "kind", "text"), OPTIONS)
def test_options_are_refused_when_the_transform_is_built(
    transform: Any, options: dict[str, Any], kind: type[Exception], text: str
) -> None:
    with pytest.raises(TorchjacError) as caught:
        transform(torch.sin, **options)
    assert isinstance(caught.value, kind)
    assert text in str(caught.value)
    assert str(caught.value).startswith(transform.__name__)


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_func_must_be_callable(transform: Any) -> None:
    with pytest.raises(TypeError, match=r"\(func\): expected a callable, got Tensor"):
        transform(X)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("flag", ["has_aux", "return_value"])
def test_flags_are_true_or_false(transform: Any, flag: str) -> None:
    for value in ("no", 1, None):
        with pytest.raises(TypeError, match=rf"{flag}={value!r}\): expected True or False"):
            transform(torch.sin, **{flag: value})


def test_flags_of_batches_are_true_or_false() -> None:
    with pytest.raises(TypeError, match=r"batched_jac\(per_sample='no'\): expected True or False"):
        torchjac.batched_jac(torch.sin, per_sample="no")  # type: ignore[arg-type]
    x = torch.ones(2, requires_grad=True)
    with pytest.raises(TypeError, match=r"jac_of\(batched='no'\): expected True or False"):
        torchjac.jac_of(x * 2, x, batched="no")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"jac_of\(create_graph=3\): expected True or False"):
        torchjac.jac_of(x * 2, x, create_graph=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"jac_of\(retain_graph='no'\): expected True or False"):
        torchjac.jac_of(x * 2, x, retain_graph="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("in_dims", ["x", 0.5, True, (0, "x"), {"a": 1.0}])
def test_batch_dimensions_are_ints(in_dims: Any) -> None:
    with pytest.raises(TypeError) as caught:
        torchjac.batched_jac(torch.sin, in_dims=in_dims)
    assert isinstance(caught.value, TorchjacError)
    assert str(caught.value) == (
        f"batched_jac(in_dims={in_dims!r}): expected an int, None for an argument that the samples share, "
        f"or a tuple with an entry per argument."
    )


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_randomness_is_that_of_vmap(randomness: Any) -> None:
    with pytest.raises(OptionError) as caught:
        torchjac.batched_jac(torch.sin, per_sample=False, randomness=randomness)
    assert str(caught.value) == (
        f"batched_jac(randomness={randomness!r}, per_sample=False): a function of the whole batch draws as "
        f"it does by itself, so there is nothing to choose. Leave randomness away."
    )


def test_batched_randomness_option() -> None:
    with pytest.raises(ValueError, match="expected one of 'error', 'same', 'different'"):
        torchjac.batched_jac(torch.sin, randomness="some")


ARGUMENTS: list[tuple[Any, tuple[Any, ...], type[Exception], str]] = [
    (
        0,
        (torch.ones(2, dtype=torch.int64),),
        TypeError,
        "an integer or boolean tensor (torch.int64)",
    ),
    (0, (torch.ones(2, dtype=torch.bool),), TypeError, "an integer or boolean tensor (torch.bool)"),
    (0, (torch.ones(2, dtype=torch.complex64),), TypeError, "is complex (torch.complex64)"),
    (
        0,
        (torch.eye(2).to_sparse(),),
        TypeError,
        "argument 0 is a tensor of layout torch.sparse_coo; derivatives are taken by dense tensors. Pass "
        "what it is made from",
    ),
    (0, (2.0,), TypeError, "argument 0 holds a float; expected a tensor"),
    (0, (State(X),), TypeError, "torch.export.register_dataclass makes a tree of it"),
    (
        0,
        ({"a": X, "b": None},),
        TypeError,
        "argument 0 holds a NoneType; expected a tensor, or a tree of tensors. Leave the entry out, or hand "
        "it over in an argument that argnums does not choose.",
    ),
    (0, ((),), ValueError, "the argument holds no tensor to differentiate by"),
    (1, (X,), ValueError, "there is no argument 1; the call has 1 positional arguments"),
    (-2, (X,), ValueError, "there is no argument -2; the call has 1 positional arguments"),
    ((0, -1), (X,), ValueError, "argument 0 is chosen twice; name it once"),
]


@pytest.mark.parametrize("transform", [torchjac.jac, torchjac.hessian])
@pytest.mark.parametrize(("argnums", "args", "kind", "text"), ARGUMENTS)
def test_arguments(
    transform: Any, argnums: Any, args: tuple[Any, ...], kind: type[Exception], text: str
) -> None:
    with pytest.raises(TorchjacError) as caught:
        transform(lambda *args: args[0], argnums)(*args)
    assert isinstance(caught.value, kind)
    assert text in str(caught.value)
    assert str(caught.value).startswith(f"{transform.__name__}(argnums={argnums!r})")


OUTPUTS: list[tuple[Any, str]] = [
    (lambda x: 3.0, "func returned a float in its output; expected tensors, or None"),
    (lambda x: (x, "text"), "func returned a str in its output"),
    (lambda x: x.argmax(), "torch.int64, which holds no floating-point tensor"),
    (lambda x: None, "holds no floating-point tensor"),
    (lambda x: torch.complex(x, x), "complex tensor (torch.complex64)"),
]


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
@pytest.mark.parametrize(("func", "text"), OUTPUTS)
def test_outputs(func: Any, text: str, mode: str) -> None:
    with pytest.raises(TypeError) as caught:
        torchjac.jac(func, mode=mode)(X)
    assert isinstance(caught.value, TorchjacError)
    assert text in str(caught.value)


@pytest.mark.parametrize("mode", ["auto", "forward", "reverse"])
def test_has_aux_wants_a_pair(mode: str) -> None:
    def triple(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x, x, x

    for func in (torch.sin, triple):
        with pytest.raises(TypeError, match="must return a pair"):
            torchjac.jac(func, has_aux=True, mode=mode)(X)


def test_nothing_is_remembered_of_a_call_that_failed() -> None:
    broken = True

    def func(x: Tensor) -> Any:
        return 3.0 if broken else x**2

    with pytest.raises(TypeError):
        torchjac.jac(func)(X)
    broken = False
    torch.testing.assert_close(torchjac.jac(func)(X), 2 * torch.eye(2))


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_parameters_have_shapes(transform: Any) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LazyLinear(1))
    x = torch.ones(4, 2)
    with pytest.raises(ArgumentError) as caught:
        transform(net, "params")(x)
    assert str(caught.value) == (
        f"{transform.__name__}(argnums='params'): parameter 1.weight of Sequential has no shape yet. Call "
        f"the module with its inputs once first."
    )
    net(x)
    transform(net, "params")(x)


@pytest.mark.parametrize(
    "options", [{}, {"mode": "forward"}, {"chunk_size": 1}, {"return_value": True}]
)
def test_samples_have_outputs_of_one_shape(options: dict[str, Any]) -> None:
    with pytest.raises(TypeError) as caught:
        torchjac.batched_jac(lambda x: x[x > 0], **options)(torch.tensor([[1.0, -1.0], [1.0, 2.0]]))
    assert isinstance(caught.value, TorchjacError)
    assert str(caught.value) == (
        "batched_jac: func returned a tensor of shape (1,) for sample 0 and of shape (2,) for sample 1; "
        "expected the same for every sample. Pad them to one shape, or call jac for each sample."
    )


def test_a_scripted_module_has_no_parameters_of_samples() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.script(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="is a scripted module, whose parameters PyTorch cannot"):
        torchjac.batched_jac(module, "params")(torch.randn(3, 2))
