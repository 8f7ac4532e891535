import functools
import gc
import math
import types
import weakref

import pytest
import torch

import torchjac
from tests.planning.described import same
from torchjac.planning.memory import Memory, Record
from torchjac.planning.signature import of_arguments, of_function

# What is the same function


def test_a_lambda_written_anew_is_the_same():
    made = [lambda x: x.sin() for _ in range(2)]
    assert same(*made)


def test_different_code_differs():
    assert not same(lambda x: x.sin(), lambda x: x.cos())


def closing_over(value):
    return lambda x: value


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 2), (1.0, 2.0), (torch.ones(2), torch.zeros(3)), ([1, 2], [3, 4]), ({"a": 1}, {"a": 2})],
    ids=["int", "float", "tensor", "list", "dict"],
)
def test_values_in_a_closure_do_not_distinguish(one, other):
    assert same(closing_over(one), closing_over(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.sin, torch.cos),
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)),
        (lambda x: x, lambda x: -x),
        ([torch.sin], [torch.cos]),
        ({"f": torch.sin}, {"f": torch.cos}),
        ("max", "min"),
        (True, False),
        (None, "max"),
        (torch.float32, torch.float64),
    ],
    ids=["builtin", "module", "lambda", "list", "dict", "str", "bool", "none", "dtype"],
)
def test_functions_modules_and_switches_in_a_closure_do(one, other):
    assert same(closing_over(one), closing_over(one))
    assert not same(closing_over(one), closing_over(other))


def test_training_mode_distinguishes_wherever_the_module_is():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout())
    for func in (module, closing_over(module), functools.partial(torch.add, module)):
        module.train()
        training, _ = of_function(func)
        module[1].eval()
        assert of_function(func)[0] != training


def test_what_a_function_has_for_defaults_counts():
    def with_default(chosen):
        return lambda x, f=chosen: f(x)

    assert same(with_default(torch.sin), with_default(torch.sin))
    assert not same(with_default(torch.sin), with_default(torch.cos))


def test_what_a_function_has_for_keyword_defaults_counts():
    def with_default(chosen):
        return lambda x, *, f=chosen: f(x)

    assert same(with_default(torch.sin), with_default(torch.sin))
    assert not same(with_default(torch.sin), with_default(torch.cos))


def test_partials_are_their_parts():
    assert same(functools.partial(torch.add, 1), functools.partial(torch.add, 2))
    assert not same(functools.partial(torch.add, 1), functools.partial(torch.sub, 1))
    assert not same(
        functools.partial(closing_over(0), torch.sin), functools.partial(closing_over(0), torch.cos)
    )


class Model:
    def __init__(self, net):
        self.net = net

    def predict(self, x):
        return self.net(x)

    def other(self, x):
        return -self.net(x)


def test_bound_methods_are_their_function_and_their_object():
    module = torch.nn.Linear(2, 2)
    model = Model(module)
    assert same(model.predict, model.predict)
    assert not same(model.predict, model.other)
    assert same(module.forward, module.forward)
    assert not same(module.forward, torch.nn.Linear(2, 2).forward)


def test_methods_bound_to_objects_over_different_modules_differ():
    assert not same(Model(torch.nn.Linear(2, 2)).predict, Model(torch.nn.Linear(2, 2)).predict)


def test_callable_objects_are_told_apart():
    class Call:
        def __call__(self, x):
            return x

    one = Call()
    assert same(one, one)
    assert not same(one, Call())


# What a function reaches through the globals of its file


def module_of(source):
    namespace = {"torch": torch}
    exec(compile(source, "<globals>", "exec"), namespace)
    return types.SimpleNamespace(**namespace), namespace


def test_a_global_function_that_was_replaced_makes_another_function():
    space, namespace = module_of("def inner(x): return x.sin()\ndef func(x): return inner(x)")
    before, _ = of_function(space.func)
    namespace["inner"] = lambda x: x.cos()
    assert of_function(space.func)[0] != before


def test_a_global_module_counts():
    space, namespace = module_of("net = torch.nn.Dropout()\ndef func(x): return net(x)")
    before, reaches_module = of_function(space.func)
    assert reaches_module
    namespace["net"].eval()
    assert of_function(space.func)[0] != before


def test_a_global_named_only_in_a_nested_function_counts():
    space, namespace = module_of("net = torch.nn.Dropout()\ndef func(x): return (lambda: net(x))()")
    before, _ = of_function(space.func)
    namespace["net"].eval()
    assert of_function(space.func)[0] != before


def test_recursion_ends():
    space, _ = module_of("def even(x): return odd(x)\ndef odd(x): return even(x)")
    assert same(space.even, space.even)
    assert not same(space.even, space.odd)


def test_cycles_end():
    knot = []
    knot.append(knot)
    own = {}
    own["self"] = own
    assert same(closing_over(knot), closing_over(knot))
    assert same(closing_over(own), closing_over(own))


def test_a_function_that_closes_over_itself_ends():
    def countdown(n):
        return countdown(n - 1) if n else 0

    assert same(countdown, countdown)


def test_an_empty_cell_is_no_obstacle():
    def late():
        return unset

    description = of_function(late)
    unset = torch.sin
    assert of_function(late) != description


@pytest.mark.parametrize(
    "func", [torch.sin, math.sin, len, torch.nn.functional.relu, torch.Tensor.sin]
)
def test_builtins_are_told_by_what_they_are(func):
    assert same(func, func)
    assert not same(func, torch.cos)


def test_whether_a_module_is_reached_is_told():
    assert of_function(torch.nn.Linear(2, 2))[1]
    assert of_function(closing_over(torch.nn.Linear(2, 2)))[1]
    assert of_function(torch.nn.Linear(2, 2).forward)[1]
    assert not of_function(lambda x: x)[1]


# Arguments


def test_arguments_are_told_by_shape_dtype_and_tree():
    described = [
        of_arguments((torch.zeros(2),), {}),
        of_arguments((torch.zeros(3),), {}),
        of_arguments((torch.zeros(2, dtype=torch.float64),), {}),
        of_arguments((torch.zeros(2), torch.zeros(2)), {}),
        of_arguments(((torch.zeros(2), torch.zeros(2)),), {}),
        of_arguments(([torch.zeros(2), torch.zeros(2)],), {}),
        of_arguments((torch.zeros(2),), {"scale": torch.zeros(2)}),
        of_arguments((torch.zeros(2, device="meta"),), {}),
    ]
    assert len({*described}) == len(described)


def test_the_values_of_arguments_do_not_matter():
    one = of_arguments((torch.zeros(2), 1.0), {"n": 2})
    assert one == of_arguments((torch.ones(2), 3.0), {"n": 4})


def test_functions_and_switches_among_the_arguments_do():
    x = torch.zeros(2)
    assert of_arguments((x, torch.sin), {}) != of_arguments((x, torch.cos), {})
    assert of_arguments((x,), {"reduce": "sum"}) != of_arguments((x,), {"reduce": "mean"})


# Nothing is kept alive


def _module_closure():
    module = torch.nn.Linear(2, 2)
    return closing_over(module), module


def _tensor_closure():
    tensor = torch.ones(2)
    return closing_over(tensor), tensor


def _function_closure():
    def inner(x):
        return x

    return closing_over(inner), inner


def _partial():
    module = torch.nn.Linear(2, 2)
    return functools.partial(torch.add, module), module


def _method():
    module = torch.nn.Linear(2, 2)
    return module.forward, module


def _default():
    module = torch.nn.Linear(2, 2)
    return (lambda x, m=module: m(x)), module


@pytest.mark.parametrize(
    "make",
    [_module_closure, _tensor_closure, _function_closure, _partial, _method, _default],
    ids=lambda make: make.__name__[1:],
)
def test_a_description_keeps_neither_the_function_nor_what_it_reaches_alive(make):
    func, reached = make()
    watched = [weakref.ref(func)] if isinstance(func, types.FunctionType) else []
    watched.append(weakref.ref(reached))
    key = of_function(func)
    Memory().remember(key, Record((1,), 1, ()))
    del func, reached
    gc.collect()
    assert [ref() for ref in watched] == [None] * len(watched)


def test_a_description_keeps_no_argument_alive():
    x, net = torch.ones(2), torch.nn.Linear(2, 2)
    watched = [weakref.ref(x), weakref.ref(net)]
    Memory().remember(of_arguments(({"x": [x]}, net), {}), Record((1,), 1, ()))
    del x, net
    gc.collect()
    assert [ref() for ref in watched] == [None, None]


def test_what_is_gone_is_never_taken_for_something_new():
    module = torch.nn.Linear(2, 2)
    key = of_function(module)
    Memory().remember(key, Record((1,), 1, ()))
    del module
    gc.collect()
    # The memory may be used again for another module, at the same address.
    assert all(Memory().recall(of_function(torch.nn.Linear(2, 2))) is None for _ in range(20))


def test_a_log_that_grows_with_every_call_is_no_other_function():
    calls, counts = [], {"n": 0}

    def func(x):
        calls.append("called")
        counts["n"] += 1
        return x**2

    for _ in range(3):
        torchjac.jac(func)(torch.ones(2))
    before = len(calls)
    torchjac.jac(func)(torch.ones(2))
    assert len(calls) == before + 1
