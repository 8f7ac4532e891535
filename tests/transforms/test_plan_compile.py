"""A compiled plan is the plan: the same numbers, the same refusals, what it captured seen alive."""

import dataclasses
import shutil
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch
from torch import nn

import torchjac
from torchjac.errors import PlanMismatchError, UnsupportedError
from torchjac.evaluation.programs import compiled as compiled_programs
from torchjac.evaluation.programs.tracing import UntraceableError
from torchjac.planning.plans import compiling, design

pytestmark = [
    pytest.mark.skipif(not compiled_programs._supported(), reason="Inductor of PyTorch 2.4"),
    pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler"),
    # PyTorch's compiler warns of its own parts.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3).double()
        self.register_buffer("shift", torch.ones(3, dtype=torch.float64))

    def forward(self, x):
        return (self.layer(x) + self.shift).tanh() * x[0]


@pytest.fixture(scope="module")
def compiled():
    net = Net()
    transform = torchjac.jac(net, return_value=True)
    plan = transform.plan(torch.ones(4).double())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above, which does not reach here
        return net, transform, plan.compile()


def test_it_is_the_derivative_whatever_the_strides(compiled):
    _, transform, plan = compiled
    numbers = torch.randn(8).double()
    for x in (numbers[:4], numbers[::2], numbers[4:], numbers[:1].expand(4)):
        torch.testing.assert_close(plan(x), transform(x))
    assert plan.verify(numbers[:4])
    assert plan.compile() is plan
    assert "compiled" in str(plan)
    assert "compiled" in repr(plan)


def test_writes_are_seen_and_other_tensors_refused(compiled):
    net, transform, plan = compiled
    x = torch.randn(4).double()
    with torch.no_grad():
        net.layer.weight.mul_(2)
        net.shift.add_(1)
    net.layer.bias.data = torch.randn(3).double()
    torch.testing.assert_close(plan(x), transform(x))
    with pytest.raises(PlanMismatchError, match="shape"):
        plan(x[:3])
    kept, net.shift = net.shift, torch.zeros(3).double()
    with pytest.raises(PlanMismatchError, match="shift is another tensor now"):
        plan(x)
    net.shift = kept
    net.layer.float()
    with pytest.raises(PlanMismatchError, match="another shape, dtype or device"):
        plan(x)
    net.layer.double()
    torch.testing.assert_close(plan(x), transform(x), rtol=1e-5, atol=1e-5)


def test_it_is_differentiable_and_composes(compiled):
    net, transform, plan = compiled
    found = []
    for derivative in (transform, plan):
        x = torch.linspace(0, 1, 4, dtype=torch.float64).requires_grad_()
        result = sum(part.square().sum() for part in derivative(x))
        found.append(torch.autograd.grad(result, (x, net.layer.weight)))
    torch.testing.assert_close(*found)
    batch = torch.randn(3, 4).double()
    torch.testing.assert_close(torch.func.vmap(plan)(batch), torch.func.vmap(transform)(batch))


def test_results_are_new_memory_at_every_call(compiled):
    _, _, plan = compiled
    x = torch.randn(4).double()
    with torch.no_grad():
        first = [part.clone() for part in plan(x)]
        for part in plan(x):
            part.fill_(7)
        torch.testing.assert_close(list(plan(x)), first)


def test_a_compiled_plan_draws_what_the_plan_draws():
    func = lambda x: nn.functional.dropout(x, 0.5) * x  # noqa: E731
    x = torch.randn(300).double()
    plan, found = torchjac.jac(func).plan(x), []
    for run in (plan, plan.compile()):
        torch.manual_seed(1)
        found.append((run(x), torch.get_rng_state()))
    torch.testing.assert_close(*found)


def test_a_compiled_waist():
    tall, wide = torch.randn(400, 2).double(), torch.randn(2, 300).double()
    func = lambda x: tall @ (wide @ x).sin()  # noqa: E731
    plan = torchjac.jac(func).plan(torch.randn(300).double()).compile()
    x = torch.randn(300).double()
    torch.testing.assert_close(plan(x), torch.func.jacrev(func)(x))


def test_what_was_captured_is_of_the_kind_that_was_compiled_for():
    """Compiled code reads memory by the strides that it was made for."""
    layer = nn.Linear(40, 30).double()
    plan = torchjac.jac(lambda x: layer(x).tanh()).plan(torch.randn(40).double())
    compiled = plan.compile()
    layer.weight.data = torch.randn(40, 30).double().T
    for run in (plan, compiled):
        with pytest.raises(PlanMismatchError, match="other strides"):
            run(torch.randn(40).double())
    with pytest.raises(PlanMismatchError, match="other strides"):
        plan.compile()


def test_the_defaults_are_those_of_the_trace():
    func = lambda x: x * torch.arange(3).sqrt()  # noqa: E731
    x = torch.ones(3)
    plan = torchjac.jac(func).plan(x)
    compiled = plan.compile()
    torch.set_default_dtype(torch.float64)
    try:
        for run in (plan, compiled):
            torch.testing.assert_close(run(x), torchjac.jac(func)(x))
        with pytest.raises(PlanMismatchError) as caught:
            plan.compile()
    finally:
        torch.set_default_dtype(torch.float32)
    assert str(caught.value) == (
        "jac(<lambda>).compile(): new tensors are torch.float64 on cpu by default, and the plan is for "
        "torch.float32 on cpu. Compile it under the defaults that it was made under, or make a new plan."
    )
    torch.testing.assert_close(compiled(x), torchjac.jac(func)(x))


# A plan that was tuned

TALL = torch.linspace(-1, 1, 24).double().reshape(8, 3)


def squeezed(x):
    return TALL @ (x * x.sum()).sin()


def assert_jacobian(plan, x=None):
    x = torch.randn(3).double() if x is None else x
    torch.testing.assert_close(plan(x), torch.func.jacrev(squeezed)(x))
    weighed = x.clone().requires_grad_()
    torch.testing.assert_close(
        torch.autograd.grad(plan(weighed).square().sum(), weighed),
        torch.autograd.grad(torch.func.jacrev(squeezed)(weighed).square().sum(), weighed),
    )
    batch = torch.randn(4, 3).double()
    torch.testing.assert_close(
        torch.func.vmap(plan)(batch), torch.func.vmap(torch.func.jacrev(squeezed))(batch)
    )


@pytest.mark.parametrize("faster", [0, 1])
def test_a_tuned_plan_chooses_again_by_what_is_compiled(faster, monkeypatch):
    plan = torchjac.jac(squeezed).plan(torch.ones(3).double(), tune=True)
    raced = []

    def race(runs, may_fail):
        for run in runs:
            run()
        raced.append(len(runs))
        return [1.0 if at == faster else 2.0 for at in range(len(runs))]

    monkeypatch.setattr(compiling, "race", race)
    found = plan.compile()
    if plan._program is None:  # then only the other one could be compiled
        assert raced == []
    else:
        assert raced == [2]
        assert (found.mode == plan.mode) == (faster == 0)
        assert "the fastest of 2 that were compiled, measured" in str(found)
    assert_jacobian(found)
    assert found.verify(torch.randn(3).double())


def test_a_tuned_plan_is_measured_when_it_is_compiled():
    plan = torchjac.jac(squeezed).plan(torch.ones(3).double(), tune=True).compile()
    assert "compiled" in str(plan)
    assert_jacobian(plan)


def test_where_no_trace_was_the_fastest_one_is_compiled(monkeypatch):
    def measured(problem, record, considered):
        return [dataclasses.replace(c, seconds=1.0 if c.program else 0.5) for c in considered]

    monkeypatch.setattr(design, "measured", measured)
    plan = torchjac.jac(squeezed).plan(torch.ones(3).double(), tune=True)
    assert plan._program is None
    assert_jacobian(plan.compile())


def test_another_way_that_does_not_stand_the_test_is_not_compiled(monkeypatch):
    plan = torchjac.jac(squeezed).plan(torch.ones(3).double(), tune=True)
    if plan._program is None:
        pytest.skip("PyTorch itself was the fastest")

    def try_out(*args):
        raise UntraceableError("wrong")

    monkeypatch.setattr(compiling, "try_out", try_out)
    found = plan.compile()
    assert found.mode == plan.mode
    assert_jacobian(found)


def test_a_tuned_plan_of_a_pattern_may_become_a_dense_one(monkeypatch):
    monkeypatch.setattr(compiling, "race", lambda runs, may_fail: [2.0, 1.0])
    x = torch.randn(60).double()
    func = lambda x: x[1:] * x[:-1].sin()  # noqa: E731
    plan = torchjac.jac(func).plan(x, tune=True)
    found = plan.compile()
    torch.testing.assert_close(found(x), torch.func.jacrev(func)(x))
    torch.testing.assert_close(
        torch.func.vmap(found)(x[None]), torch.func.vmap(torch.func.jacrev(func))(x[None])
    )
    assert found.verify(x)


def test_without_a_graph_there_is_nothing_to_compile():
    plan = torchjac.jac(lambda x: x.sin() if x.sum() > 0 else x).plan(torch.ones(2))
    with pytest.raises(UnsupportedError, match="this plan has no graph") as caught:
        plan.compile()
    assert "by sizes alone: it looks at values" in str(caught.value)


@pytest.mark.skipif(
    torch.__version__.startswith("2.4."), reason="torch.compile refuses torch.func itself"
)
def test_a_plan_within_what_torch_compiles():
    plan = torchjac.jac(torch.sin).plan(torch.ones(3))
    run = torch.compile(lambda x: plan(x) * 2, backend="eager")
    x = torch.tensor([0.5, 1.0, 2.0])
    torch.testing.assert_close(run(x), torch.diag(2 * x.cos()))


def test_where_all_warnings_are_errors_pytorch_may_warn_of_its_own_parts():
    """In a process of its own, where nothing of PyTorch's has been imported yet."""
    code = """
        import copy, dataclasses, torch, torchjac

        tall = torch.linspace(-1, 1, 60).double().reshape(20, 3)
        func = lambda x: tall @ (x @ tall).sin()
        x = torch.linspace(-1, 1, 20).double()
        compiled = torchjac.jac(func).plan(x).compile()
        program = copy.copy(compiled._program)
        program._run = lambda *tensors: [2 * compiled._program._run(*tensors)[0]]
        try:
            dataclasses.replace(compiled, _program=program).verify(x)
        except torchjac.errors.PlanError as error:
            print(error)
        assert compiled.verify(x)
        torch.testing.assert_close(compiled(x), torchjac.jac(func, mode="forward")(x))
        assert torchjac.hessian(lambda x: func(x).sum()).plan(x).compile().verify(x)
        assert torchjac.jac(func).plan(x, tune=True).verify(x)
    """
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "one plain forward pass" in done.stdout
