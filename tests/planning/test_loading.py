"""`load_plan`: the plan that was saved comes back, and what was costly to find is not looked for again."""

import logging
import shutil
import subprocess
import sys
import textwrap
import zipfile

import pytest
import torch

import torchjac
from tests.sparse import DETECTS
from torchjac.errors import PlanError

if not DETECTS:
    pytest.skip("plans take torch 2.1", allow_module_level=True)

from tests.planning.saved_plans import (
    CASES,
    Network,
    assert_same,
    dense,
    saved,
    stencil,
    waisted,
    x,
)
from torchjac import jac, load_plan
from torchjac.evaluation.programs import compiled as inductor
from torchjac.planning import compressed
from torchjac.planning.plans import design
from torchjac.structure import detection


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


def test_a_plan_is_not_loaded_within_a_transform(path):
    saved(path, jac, stencil, x(40))
    with pytest.raises(PlanError, match="cannot be loaded within vmap"):
        torch.func.vmap(lambda x: load_plan(path, stencil)(x))(x(2, 40))
    with torch.inference_mode():
        loaded = load_plan(path, stencil)
    torch.testing.assert_close(loaded(x(40)), jac(stencil)(x(40)))
