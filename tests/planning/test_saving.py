"""`Plan.save` and `load_plan`: what was costly to find is found once, and what does not fit is refused."""

import json
import logging
import pickle
import shutil
import subprocess
import sys
import textwrap
import warnings
import zipfile
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import nn

import torchjac
from tests.sparse import DETECTS
from torchjac.errors import PlanError

if not DETECTS:
    pytest.skip("plans take torch 2.1", allow_module_level=True)

from torchjac.evaluation.programs import compiled as inductor
from torchjac.planning import compressed
from torchjac.planning.plans import design, packing, saving
from torchjac.structure import detection

jac, hessian, batched_jac, load_plan = (
    torchjac.jac,
    torchjac.hessian,
    torchjac.batched_jac,
    torchjac.load_plan,
)

MIX = torch.randn(40, 40) / 6
NARROW = torch.randn(40, 2) / 6
BLOCKS = torch.randn(30, 30) / 20


def stencil(x):
    return (x[1:] - x[:-1]) ** 2


def waisted(x):
    return torch.tanh(torch.tanh(torch.tanh(x @ MIX) @ NARROW) @ NARROW.T) @ MIX


def waisted_blocks(x):
    z = torch.tanh(x.sin().exp().tanh().cos().view(30, 20).exp().sum(1) @ BLOCKS)
    return (z[:, None] * torch.arange(1.0, 21.0)).sin().exp().tanh().cos().flatten()


def branching(x):
    return x.sin() if x.sum() > -1e9 else x.cos()


def energy(x):
    return (stencil(x) ** 2).sum() + x[0].exp()


def of_trees(first, second, *, scale, shift=None):
    left, right = first["left"], first["rest"][0]
    out = {"sum": left.outer(right) * second * scale, "none": None, "count": torch.arange(3)}
    return out, (left.sum(), "words", shift)


class Network(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, x):
        return self.layers(x)


def x(*shape, dtype=None):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


TREES = (
    ({"left": x(3), "rest": [x(2)]}, x(1)),
    {"scale": 2.5, "shift": (None, slice(1, None), torch.float64)},
)
SPARSE = {"sparsity": "detect", "layout": torch.sparse_coo}
PATH = torchjac.color(
    torchjac.SparsityPattern.from_dense(torch.ones(30, 30).tril(1).triu(-1)),
    "symmetric",
    max_terms=30,
)

# name: the transform, the function, the arguments, keyword arguments
CASES = {
    "dense": (jac, lambda x: torch.outer(x, x).sum(0), (x(4),), {}),
    "found": (jac, stencil, (x(900),), {}),
    "detected": (lambda f: jac(f, sparsity="detect"), stencil, (x(40),), {}),
    "coo": (lambda f: jac(f, **SPARSE), stencil, (x(40),), {}),
    "csr": (
        lambda f: jac(f, sparsity="detect", layout=torch.sparse_csr),
        stencil,
        (x(40),),
        {},
    ),
    "given": (lambda f: jac(f, sparsity=torch.eye(9, dtype=torch.bool)), torch.sin, (x(9),), {}),
    "waist": (jac, waisted, (x(40),), {}),
    "waist of sparse factors": (jac, waisted_blocks, (x(600),), {}),
    "waist of samples": (batched_jac, waisted, (x(7, 40),), {}),
    "trees": (
        lambda f: jac(f, (0, -1), has_aux=True, return_value=True, chunk_size=2),
        of_trees,
        *TREES,
    ),
    "strides": (jac, lambda x: x.flatten() ** 2, (x(4, 3).T,), {}),
    "expanded": (jac, lambda x, y: x * y.sum(), (x(3), x(1).expand(5)), {}),
    "indices": (jac, lambda x, i: x[i] ** 2, (x(4), torch.tensor([2, 0])), {}),
    "params": (lambda f: jac(f, "params"), Network(), (x(3),), {}),
    "double": (lambda f: jac(f, mode="forward", check="never"), stencil, (x(9).double(),), {}),
    "hessian": (hessian, lambda x: (x.sum() ** 3) + x.sin().sum(), (x(5),), {}),
    "hessian, sparse": (lambda f: hessian(f, **SPARSE), energy, (x(30),), {}),
    "hessian, few colours": (
        lambda f: hessian(f, sparsity=PATH),
        lambda x: (x[1:] * x[:-1]).square().sum(),
        (x(30),),
        {},
    ),
    "hessian, modes": (
        lambda f: hessian(f, mode="forward-over-reverse", return_value=True),
        energy,
        (x(5),),
        {},
    ),
    "samples": (batched_jac, lambda x: stencil(x), (x(6, 4),), {}),
    "samples, options": (
        lambda f: batched_jac(f, in_dims=(1, None), per_sample=True, randomness="same"),
        lambda x, w: x * w,
        (x(4, 6), x(4)),
        {},
    ),
    "batch": (lambda f: batched_jac(f, per_sample=False), Network(), (x(6, 3),), {}),
    "untraceable": (jac, branching, (x(5),), {}),
    "untraceable, sparse": (
        lambda f: jac(f, sparsity=torch.eye(9, dtype=torch.bool), layout=torch.sparse_coo),
        branching,
        (x(9),),
        {},
    ),
    "forward inside": (
        lambda f: hessian(f, mode="reverse-over-forward"),
        energy,
        (x(5),),
        {},
    ),
    "identity": (jac, lambda x: (x, x * 2), (x(3),), {}),
    "no elements": (jac, lambda x: x * 2, (x(0),), {}),
    "nested": (jac, jac(lambda x: x**3), (x(3),), {}),
    "inner derivative": (jac, lambda x: torch.func.grad(energy)(x), (x(5),), {}),
    "of torch": (jac, torch.sin, (x(30),), {}),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "saved.plan"


def saved(path, transform, func, *args, tune=False, **kwargs):
    plan = transform(func).plan(*args, tune=tune, **kwargs)
    plan.save(path)
    return plan


def assert_same(plan, loaded):
    for name in ("mode", "passes", "chunk_size", "pattern"):
        assert getattr(plan, name) == getattr(loaded, name)
    assert (plan.coloring is None) == (loaded.coloring is None)
    if plan.coloring is not None:
        assert plan.coloring == loaded.coloring
    assert [c.name for c in plan._design.considered] == [c.name for c in loaded._design.considered]
    assert plan._design.chosen.name == loaded._design.chosen.name
    assert (plan._program is None) == (loaded._program is None)
    if plan._program is not None:
        assert plan._program.num_operations == loaded._program.num_operations


def dense(result):
    leaves, _ = torchjac.foundations.pytree.flatten(result)
    return [
        t.to_dense() if isinstance(t, torch.Tensor) and t.layout is not torch.strided else t
        for t in leaves
    ]


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_plan_is_the_plan_that_was_saved(name, path):
    transform, func, args, kwargs = CASES[name]
    plan = saved(path, transform, func, *args, **kwargs)
    loaded = load_plan(path, func)
    assert_same(plan, loaded)
    expected, got = plan(*args, **kwargs), loaded(*args, **kwargs)
    assert str(torchjac.foundations.pytree.flatten(expected)[1]) == str(
        torchjac.foundations.pytree.flatten(got)[1]
    )
    for one, other in zip(dense(got), dense(expected), strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
    assert loaded.verify(*args, **kwargs)


@pytest.mark.parametrize("name", ["coo", "waist", "untraceable, sparse", "trees"])
def test_a_loaded_plan_can_be_saved_again(name, path, tmp_path):
    transform, func, args, kwargs = CASES[name]
    plan = saved(path, transform, func, *args, **kwargs)
    again = tmp_path / "again.plan"
    load_plan(path, func).save(again)
    assert_same(plan, load_plan(again, func))
    with zipfile.ZipFile(path) as one, zipfile.ZipFile(again) as other:
        assert one.namelist() == other.namelist()
        assert all(one.read(name) == other.read(name) for name in one.namelist())


def test_the_plans_here_are_what_they_are_called():
    def plan(name):
        transform, func, args, kwargs = CASES[name]
        return transform(func).plan(*args, **kwargs)

    assert all(plan(name).coloring for name in ("found", "coo", "hessian, sparse"))
    assert plan("waist")._design.chosen.waist
    assert plan("waist of samples")._design.chosen.waist.batched
    assert plan("waist of sparse factors")._design.chosen.waist.factors
    assert not any(plan(name)._program for name in CASES if "untraceable" in name)


def test_a_loaded_plan_refuses_other_arguments(path):
    transform, func, args, kwargs = CASES["trees"]
    saved(path, transform, func, *args, **kwargs)
    with pytest.raises(torchjac.errors.PlanMismatchError, match=r"value 2.5 was planned, got 3.5"):
        load_plan(path, func)(*args, **{**kwargs, "scale": 3.5})


def test_a_loaded_plan_is_differentiable_and_sees_changes_in_place(path):
    model = Network()
    saved(path, jac, model, x(3))
    loaded = load_plan(path, model)
    with torch.no_grad():
        model.layers[0].weight.mul_(2)
    point = x(3).requires_grad_()
    (got,) = torch.autograd.grad(loaded(point).sum(), point)
    (expected,) = torch.autograd.grad(torch.func.jacrev(model)(point).sum(), point)
    torch.testing.assert_close(got, expected)


def test_the_printout_says_that_it_was_loaded(path):
    plan = saved(path, jac, stencil, x(40))
    loaded = load_plan(path, stencil)
    assert f"loaded: from {path}, saved with torchjac " in str(loaded)
    kept = [line for line in str(loaded).splitlines() if "loaded:" not in line]
    assert kept == str(plan).splitlines()


def test_a_tuned_plan_keeps_what_was_measured(path):
    plan = saved(path, jac, stencil, x(40), tune=True)
    loaded = load_plan(path, stencil)
    assert_same(plan, loaded)
    assert "measured" in loaded._design.reason
    assert loaded._design.reason == plan._design.reason
    assert [c.seconds for c in loaded._design.considered] == [
        c.seconds for c in plan._design.considered
    ]


def test_a_tuned_plan_whose_fastest_way_is_not_traced(path, monkeypatch):
    def measured(problem, record, considered):
        from dataclasses import replace

        return [replace(c, seconds=1.0 if c.program else 0.5) for c in considered]

    monkeypatch.setattr(design, "measured", measured)
    plan = saved(path, jac, waisted, x(40), tune=True)
    loaded = load_plan(path, waisted)
    assert plan._program is loaded._program is None
    assert_same(plan, loaded)
    torch.testing.assert_close(loaded(x(40)), plan(x(40)))


@pytest.mark.parametrize(
    "name",
    [
        *("found", "coo", "hessian, sparse", "waist", "waist of sparse factors"),
        "untraceable, sparse",
    ],
)
def test_loading_detects_colors_and_considers_nothing(name, path, monkeypatch):
    transform, func, args, kwargs = CASES[name]
    plan = saved(path, transform, func, *args, **kwargs)
    with monkeypatch.context() as patch:

        def never(*args, **kwargs):
            raise AssertionError("it was looked for again")

        patch.setattr(detection, "linear_pattern", never)
        patch.setattr(compressed, "_colored", never)
        patch.setattr(compressed, "color", never)
        patch.setattr(design, "find_pattern", never)
        patch.setattr(design, "find_waist", never)
        patch.setattr(design, "traced", never)
        loaded = load_plan(path, func)
        loaded(*args, **kwargs)
    assert_same(plan, loaded)


def test_loading_does_not_evaluate_the_function_on_values(path):
    values = []

    def func(x):
        values.append(not hasattr(x, "fake_mode") and type(x) is torch.Tensor)
        return x.sin()

    # What it appends to is watched, so that it cannot be traced.
    saved(path, jac, func, x(3))
    count = len(values)
    load_plan(path, func)
    assert len(values) == count


@pytest.mark.skipif(not inductor._supported(), reason="Inductor of PyTorch 2.4")
@pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_loaded_plan_can_be_compiled(path):
    transform, func, args, kwargs = CASES["coo"]
    plan = saved(path, transform, func, *args, **kwargs)
    loaded = load_plan(path, func)
    # It is compared where nothing is zero.
    assert all(tensor.abs().max() > 0 for tensor in loaded._arguments.planned)
    compiled = loaded.compile()
    torch.testing.assert_close(dense(compiled(*args)), dense(plan(*args)), rtol=1e-4, atol=1e-5)
    compiled.save(path)
    assert_same(plan, load_plan(path, func))


def test_it_loads_in_another_process_for_a_function_defined_anew(path):
    body = """
        import torch, torchjac
        weights = torch.arange(1600.0).reshape(40, 40).sin() / 6
        narrow = torch.arange(80.0).reshape(40, 2).sin() / 6
        def waisted(x):
            return torch.tanh(torch.tanh(torch.tanh(x @ weights) @ narrow) @ narrow.T) @ weights
        def stencil(x):
            return (x[1:] - x[:-1]) ** 2
        def branching(x):
            return x.sin() if x.sum() > -1e9 and "a" in {"a", "b", "c"} else x.cos()
    """
    names, space = ("waisted", "stencil", "branching"), {}
    exec(textwrap.dedent(body), space)
    for name in names:
        saved(f"{path}.{name}", jac, space[name], x(40))
    load = f"""
        for func in (waisted, stencil, branching):
            plan = torchjac.load_plan(f"{path}.{{func.__name__}}", func)
            point = torch.linspace(-1, 1, 40)
            torch.testing.assert_close(plan(point), torch.func.jacrev(func)(point) if func is not branching
                else torch.diag(point.cos()))
            print(plan.passes)
    """
    code = textwrap.dedent(body) + textwrap.dedent(load)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(load_plan(f"{path}.{name}", space[name]).passes) for name in names
    ]


# --- what counts as the same function ----------------------------------------------------------


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


def test_a_pattern_of_captured_values_is_not_saved_without_a_trace(path):
    band = torch.eye(3)
    held = [band]

    def func(x):
        held.append(len(held))  # watched, and changed: not to be traced
        return held[0] @ x

    plan = jac(func, sparsity="detect").plan(x(3))
    assert plan._program is None
    with pytest.raises(PlanError, match=r"save: the pattern holds for the values .* sparsity=plan"):
        plan.save(path)


# --- what cannot be saved, and files that cannot be loaded --------------------------------------


Pair = namedtuple("Pair", "one two")


@pytest.mark.parametrize("thing", [object(), Pair(1, 2), {1, 2}, b"bytes", len])
def test_arguments_that_are_no_plain_values_are_not_saved(thing, path):
    plan = jac(lambda x, y: x.sin()).plan(x(3), thing)
    message = (
        rf"save: there is a {type(thing).__name__} among the arguments or options, which a file"
    )
    with pytest.raises(PlanError, match=message):
        plan.save(path)
    assert not path.exists()


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 2.5, float("inf"), "words", 1 + 2j, slice(1, None, 2), ...),
        *(torch.float16, torch.device("cpu"), torch.strided, torch.channels_last, torch.Size([2])),
        *(
            [1, (2, [])],
            {"a": {1: None}, (1, 2): [3.0]},
            __import__("collections").OrderedDict(a=1),
        ),
        *(torchjac.SparsityPattern.from_dense(torch.eye(3)), (), []),
    ],
    ids=repr,
)
def test_plain_values_come_back_as_they_were(value, path):
    packer = packing.Packer("here")
    packer.write(path, packer.pack(value))
    unpacker = packing.Unpacker(path)
    got = unpacker.unpack(unpacker.manifest)
    assert got == value
    assert type(got) is type(value)


def test_a_tensor_comes_back_as_a_stand_in(path):
    packer = packing.Packer("here")
    tensors = [x(3, 4).T, x(2).half().expand(3, 2), torch.arange(3), torch.tensor(1 + 1j), x(0, 2)]
    packer.write(path, packer.pack(tensors))
    unpacker = packing.Unpacker(path)
    for tensor, other in zip(tensors, unpacker.unpack(unpacker.manifest), strict=True):
        assert (tensor.shape, tensor.stride(), tensor.dtype) == (
            other.shape,
            other.stride(),
            other.dtype,
        )
    assert not torch.equal(tensors[0], other)


def rewritten(path, **changes):
    """The file with other entries in its JSON."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(held["plan.json"])
    held["plan.json"] = json.dumps({**manifest, **changes})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    return manifest


def rearranged(path, change):
    """The file with other arrays; ``change`` is given them by number."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    arrays = {
        int(name.partition("/")[2]): np.frombuffer(content, np.int64).copy()
        for name, content in held.items()
        if name != "plan.json"
    }
    change(arrays)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("plan.json", held["plan.json"])
        for number, array in arrays.items():
            archive.writestr(f"arrays/{number}", array.tobytes())


def places_of_colors(path):
    """Where the colours of the first colouring are among the arrays, and the places of its pattern."""
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("plan.json"))
    pattern, _, columns, rows, _ = manifest["compression"]["colorings"][0]["coloring"]
    return pattern["pattern"][:2], columns if columns is not None else rows


@pytest.mark.parametrize("name", ["found", "coo", "hessian, sparse", "untraceable, sparse"])
def test_colours_that_do_not_fit_the_pattern_are_refused(name, path):
    transform, func, args, kwargs = CASES[name]
    saved(path, transform, func, *args, **kwargs)
    _, colors = places_of_colors(path)

    def change(arrays):
        arrays[colors][:] = 0

    if name == "untraceable, sparse":  # of a diagonal all can have one colour

        def change(arrays):
            arrays[colors][:] = -1

    rearranged(path, change)
    with pytest.raises(
        PlanError,
        match=r"the colouring of \w+ is none: entry \(\d+, \d+\) cannot be told from others",
    ):
        load_plan(path, func)


def test_colours_that_nothing_has_are_refused(path):
    saved(path, jac, stencil, x(900))
    _, colors = places_of_colors(path)
    rearranged(path, lambda arrays: arrays[colors].__setitem__(0, 2**40))
    with pytest.raises(PlanError, match="there is a colour that no"):
        load_plan(path, stencil)


def without_an_entry(path):
    (rows, cols), _ = places_of_colors(path)

    def change(arrays):
        for at in (rows, cols):
            arrays[at] = np.delete(arrays[at], 7)

    rearranged(path, change)


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo])
def test_a_pattern_that_lacks_an_entry_is_found_at_the_first_call(layout, compiles, path):
    if compiles and not (inductor._supported() and shutil.which("g++")):
        pytest.skip("no compiler")
    sparsity = "detect" if layout is torch.sparse_coo else None
    saved(path, lambda f: jac(f, sparsity=sparsity, layout=layout), stencil, x(900))
    without_an_entry(path)
    loaded = load_plan(path, stencil)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = loaded.compile() if compiles else loaded
    for _ in range(2):
        with pytest.raises(PlanError) as caught:
            loaded(x(900))
    assert str(caught.value) == (
        f"jac(stencil): the derivative disagrees with one plain backward pass. The plan was loaded "
        f"{loaded._loaded}: the file has been changed, or its plan does not hold here any more. Make a new "
        f"plan, and save that."
    )
    with pytest.raises(PlanError, match="verify"):
        loaded.verify(x(900))


def test_nothing_is_compared_where_that_is_not_wanted(path):
    saved(path, lambda f: jac(f, check="never"), stencil, x(900))
    without_an_entry(path)
    wrong = load_plan(path, stencil)(x(900))
    assert not torch.allclose(wrong, jac(stencil)(x(900)))


@pytest.mark.parametrize("check", ["first", "never", "always"])
def test_a_loaded_plan_is_compared_at_its_first_call(check, path, caplog):
    caplog.set_level(logging.INFO, logger="evaluations")

    def func(x):
        logging.getLogger("evaluations").info("evaluated")
        return stencil(x)

    saved(path, lambda f: jac(f, check=check), func, x(40))
    loaded = load_plan(path, func)
    counts = []
    for _ in range(3):
        caplog.clear()
        loaded(x(40).requires_grad_())
        counts.append(sum(record.name == "evaluations" for record in caplog.records))
    assert counts == {"first": [1, 0, 0], "never": [0, 0, 0], "always": [1, 1, 1]}[check]


def test_another_number_of_passes_is_refused(path):
    plan = saved(path, jac, lambda x: torch.outer(x, x).sum(0), x(4))
    chosen = saving._candidate(plan._design.chosen)
    rewritten(path, considered=[{**chosen, "passes": 1}], chosen=0)
    with pytest.raises(PlanError, match="its way takes 4 passes, and 1 are in the file"):
        load_plan(path, lambda x: torch.outer(x, x).sum(0))


def test_chunks_are_those_that_were_saved(path):
    def func(x):
        return torch.outer(x, x).sum(0)

    plan = saved(path, jac, func, x(20))
    assert plan.passes == plan.chunk_size == 20
    chosen = saving._candidate(plan._design.chosen)
    rewritten(path, considered=[{**chosen, "chunk_size": 7}], chosen=0)
    loaded = load_plan(path, func)
    assert loaded.chunk_size == 7
    torch.testing.assert_close(loaded(x(20)), plan(x(20)))


def test_another_format_is_refused(path):
    saved(path, jac, stencil, x(40))
    rewritten(path, format=saving.FORMAT + 1)
    with pytest.raises(
        PlanError, match="the plan has format 3, and this version of torchjac reads format 2"
    ):
        load_plan(path, stencil)


def test_another_torch_is_named_where_the_trace_differs(path):
    saved(path, jac, stencil, x(40))
    rewritten(path, versions={**saving.versions(), "torch": "1.2.3"})
    assert load_plan(path, stencil).passes
    with pytest.raises(PlanError, match=r"saved with torch 1\.2\.3, and here is torch 2"):
        load_plan(path, torch.sin)


def test_a_missing_device_is_refused(path):
    saved(path, jac, stencil, x(40))
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("plan.json"))
    text = json.dumps(manifest["arguments"]).replace('"cpu"', '"cuda:77"')
    rewritten(path, arguments=json.loads(text))
    with pytest.raises(PlanError, match="it is for device 'cuda:77', which is not here"):
        load_plan(path, stencil)


def test_what_is_no_plan_is_refused(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_plan(path, stencil)
    path.write_bytes(b"not a plan")
    with pytest.raises(PlanError, match="this is no plan, or a damaged one"):
        load_plan(path, stencil)
    torch.save({"format": 1}, path)
    with pytest.raises(PlanError, match="this is no plan, or a damaged one"):
        load_plan(path, stencil)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("plan.json", json.dumps({"format": saving.FORMAT}))
    with pytest.raises(PlanError, match="the plan is damaged"):
        load_plan(path, stencil)


@pytest.mark.parametrize(
    "changes",
    [
        {"transform": "jit"},
        {"keywords": {"dict": [["no_such_option", 1]]}},
        {"arguments": {"tuple": [{"tuple": [{"surprise": 1}]}, {"dict": []}]}},
        {"arguments": {"torch": "torch.load"}},
        {"chosen": 99},
        {"record": None},
    ],
    ids=str,
)
def test_a_file_with_other_entries_is_refused(changes, path):
    saved(path, jac, stencil, x(40))
    rewritten(path, **changes)
    with pytest.raises(PlanError):
        load_plan(path, stencil)


def test_a_file_that_was_cut_short_or_changed_is_refused(path):
    saved(path, jac, stencil, x(40))
    whole = path.read_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(PlanError, match="no plan, or a damaged one"):
            load_plan(path, stencil)
    at = whole.index(b"arrays/0") + 20
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    with pytest.raises(PlanError, match="no plan, or a damaged one"):
        load_plan(path, stencil)


class Runs:
    def __reduce__(self):
        return exec, ("raise SystemExit",)


def test_a_pickle_is_not_run(path):
    path.write_bytes(pickle.dumps(Runs()))
    with pytest.raises(PlanError, match="no plan"):
        load_plan(path, stencil)
    torch.save(Runs(), path)
    with pytest.raises(PlanError, match="no plan"):
        load_plan(path, stencil)


def test_a_file_holds_words_and_numbers_alone(path):
    saved(path, jac, waisted, x(40))
    with zipfile.ZipFile(path) as archive:
        assert all(n == "plan.json" or n.startswith("arrays/") for n in archive.namelist())
        json.loads(archive.read("plan.json"))


def test_a_plan_is_not_loaded_within_a_transform(path):
    saved(path, jac, stencil, x(40))
    with pytest.raises(PlanError, match="cannot be loaded within vmap"):
        torch.func.vmap(lambda x: load_plan(path, stencil)(x))(x(2, 40))
    with torch.inference_mode():
        loaded = load_plan(path, stencil)
    torch.testing.assert_close(loaded(x(40)), jac(stencil)(x(40)))
