"""Whatever is rebound in what a function captures is a change, and is said by where it is."""

import contextlib
import functools
import operator
import types
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

import torchjac
from tests.planning.captured import Config, Net, Scaled, Slotted, closing_over, mlp
from torchjac.planning.captured.captures import Captures


def lazy_linear():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # before torch 2.1 lazy modules said that they were new
        return nn.LazyLinear(2)


def replaced(container, key, value):
    return lambda: operator.setitem(container, key, value)


def assigned(holder, name, value):
    return lambda: setattr(holder, name, value)


def changes():
    """The function, what changes something that it reaches, and how that is said."""
    with_list, with_dict, with_set = [1, [2]], {"a": {"b": 1}}, {1}
    yield (
        "item",
        closing_over(with_list),
        replaced(with_list[1], 0, 3),
        "value[1][0] was 2 and is 3 now",
    )
    yield "longer", closing_over(with_list), lambda: with_list.append(1), "value[2] is new"
    yield "key", closing_over(with_dict), replaced(with_dict["a"], "b", 2), "value['a']['b'] was 1"
    yield "new key", closing_over(with_dict), replaced(with_dict, "c", 2), "value['c'] is new"
    yield "no key", closing_over(with_dict), with_dict.clear, "value['a'] is gone"
    yield "set", closing_over(with_set), lambda: with_set.add(2), "value[1] is new"
    empty = []
    yield "first item", closing_over(empty), lambda: empty.append(1), "value[0] is new"
    order = {"a": 1, "b": 2}
    reorder = lambda: order.update(a=order.pop("a"))  # noqa: E731
    yield "order", closing_over(order), reorder, "value['a'] and others changed places"
    config, slotted = Config(), Slotted()
    yield (
        "attribute",
        closing_over(config),
        assigned(config, "scale", 3.0),
        ("value.scale was 2.0 and is 3.0 now"),
    )
    yield (
        "tensor",
        closing_over(config),
        assigned(config, "offset", torch.ones(1)),
        ("value.offset was None and is tensor now"),
    )
    yield (
        "dict",
        closing_over(config),
        assigned(config, "__dict__", {}),
        "the dict of value is another",
    )
    yield "slot", closing_over(slotted), assigned(slotted, "scale", 3.0), "value.scale was 2.0"
    yield "private", closing_over(slotted), slotted.hide, "value._Slotted__hidden[0] was 1.0"
    swapped = Config()
    yield (
        "class",
        closing_over(swapped),
        assigned(swapped, "__class__", Scaled),
        ("the class of value was Config and is Scaled now"),
    )
    keyword = functools.partial(torch.add, alpha=2.0)
    yield (
        "partial",
        keyword,
        replaced(keyword.keywords, "alpha", 3.0),
        ("partial.keywords['alpha'] was 2.0 and is 3.0 now"),
    )
    bound = Scaled()
    yield (
        "self",
        bound.scale,
        assigned(bound.inner, "scale", 3.0),
        "scale.__self__.inner.scale was 2.0",
    )
    yield "counter", bound, assigned(bound, "calls", 1), "Scaled.calls was 0 and is 1 now"

    def with_defaults(x, scale=2.0, *, shift=(1, 2)):
        return x

    yield (
        "default",
        with_defaults,
        assigned(with_defaults, "__defaults__", (3.0,)),
        ("the defaults of with_defaults was (2.0) and is (3.0) now"),
    )
    yield (
        "keyword",
        with_defaults,
        replaced(with_defaults.__kwdefaults__, "shift", (1, 3)),
        ("with_defaults.__kwdefaults__['shift'] was (1, 2) and is (1, 3) now"),
    )

    def with_keyword(x, *, scale=2.0):
        return x

    yield (
        "keywords",
        with_keyword,
        assigned(with_keyword, "__kwdefaults__", {"scale": 3.0}),
        "the keyword defaults of with_keyword is another dict now",
    )
    rolled = functools.partial(torch.roll, shifts=1)
    yield (
        "partial",
        closing_over(rolled),
        lambda: rolled.__setstate__((torch.roll, (), {"shifts": 2}, {})),
        "value.keywords is another dict now",
    )
    space = {"__name__": "someone"}
    yield (
        "builtin",
        types.FunctionType((lambda x: abs(x)).__code__, space),
        replaced(space, "abs", torch.neg),
        "the global variable 'abs' is new",
    )
    counting = [slice(True)]
    yield (
        "slice",
        closing_over(counting),
        replaced(counting, 0, slice(1)),
        "value[0] is another slice now",
    )
    python_module, cls = types.ModuleType("someone"), type("Owner", (), {})
    for name, holder in [("module", python_module), ("class", cls)]:
        asking = functools.partial(lambda x, holder: getattr(holder, "scale", 1) * x, holder=holder)
        yield (
            f"new in a {name}",
            asking,
            assigned(holder, "scale", 2),
            f"{holder.__name__}.scale is new" if holder is cls else ".scale is new",
        )
    for name, holder in [("module", types.ModuleType("one")), ("class", type("One", (), {}))]:
        holder.other = 1
        asking = functools.partial(lambda x, holder: getattr(holder, "scale", 1) * x, holder=holder)

        def exchange(holder=holder):
            del holder.other
            holder.scale = 2

        yield f"one for another in a {name}", asking, exchange, ".scale is new"
    owner = cls()
    yield (
        "new in its class",
        closing_over(owner),
        assigned(cls, "__getattr__", lambda self, name: 1),
        "Owner.__getattr__ is new",
    )
    other = (lambda x: -x).__code__
    yield "code", (f := lambda x: x), assigned(f, "__code__", other), "the code of <lambda>"
    inner = lambda x: x  # noqa: E731
    yield "inner", closing_over(inner), assigned(inner, "__code__", other), "the code of value"
    yield (
        "function attribute",
        closing_over(inner),
        assigned(inner, "scale", 1),
        "value.scale is new",
    )
    yield (
        "cached",
        functools.lru_cache(closing_over(order)),
        replaced(order, "b", 5),
        "value['b'] was",
    )
    yield (
        "wrapped",
        torch.no_grad()(closing_over(order)),
        replaced(order, "b", 6),
        "value['b'] was",
    )
    yield (
        "transformed",
        torchjac.jac(closing_over(order)),
        replaced(order, "b", 7),
        "value['b'] was",
    )
    method = order.get
    yield "built-in", method, replaced(order, "b", 8), "get.__self__['b'] was"


def module_changes():
    def case(name, change, said, make=Net):
        module = make()
        return name, module, functools.partial(change, module), said

    yield case("eval", Net.eval, "Net.training was True and is False now")
    yield case("inner eval", lambda m: m.layers[1].eval(), "Net.layers.1.training was True")
    yield case("float", assign("rate", 1.0), "Net.rate was 0.5 and is 1.0 now")
    yield case("new", assign("extra", 1.0), "Net.extra is new")
    yield case("buffer", assign("shift", torch.ones(2)), "Net.shift is another tensor now")
    yield case("forward", assign("forward", abs), "Net.forward is new")
    yield case(
        "class", assign("__class__", nn.Module), "the class of Net was Net and is Module now"
    )
    parameter = nn.Parameter(torch.ones(2, 2))
    yield case(
        "parameter", at("0", assign("weight", parameter)), "Sequential.0.weight is another", mlp
    )
    yield case(
        "removed",
        at("0", assign("bias", None)),
        "Sequential.0.bias was tensor and is None now",
        mlp,
    )
    yield case("p", at("2", assign("p", 0.1)), "Sequential.2.p was 0.5 and is 0.1 now", mlp)
    yield case(
        "submodule", assign("1", nn.ReLU()), "Sequential.1 was BatchNorm1d and is ReLU now", mlp
    )
    yield case("same kind", assign("0", nn.Linear(2, 2)), "Sequential.0 is another Linear now", mlp)
    yield case("appended", lambda m: m.append(nn.ReLU()), "Sequential.3 is new", mlp)
    hook = lambda *_: None  # noqa: E731
    yield case(
        "hook", lambda m: m[0].register_forward_hook(hook), "Sequential.0._forward_hooks[", mlp
    )
    yield case("pre-hook", lambda m: m.register_forward_pre_hook(hook), "Net._forward_pre_hooks[")
    yield case(
        "backward hook",
        lambda m: m.register_full_backward_hook(hook),
        "Net._is_full_backward_hook was",
    )
    yield case("half", lambda m: parametrize.register_parametrization(m[0], "weight", nn.Identity()),
               "the class of Sequential.0 was Linear and is ParametrizedLinear now", mlp)  # fmt: skip
    yield case("lazy", lambda m: m(torch.ones(1, 2)), "the class of LazyLinear", lazy_linear)


def assign(name, value):
    return lambda module: setattr(module, name, value)


def at(name, change):
    return lambda module: change(module.get_submodule(name))


CHANGES = [*changes(), *module_changes()]


@pytest.mark.parametrize(
    ("func", "change"), [case[1:3] for case in CHANGES], ids=[c[0] for c in CHANGES]
)
def test_rebinding_is_a_change(func, change, request):
    said = next(case[3] for case in CHANGES if case[1] is func and case[2] is change)
    captures = Captures.of(func)
    assert captures.changed() is None
    change()
    told = captures.changed()
    assert told is not None
    assert said in told
    assert captures.changed() == told


def test_hooks_for_all_modules_count():
    captures = Captures.of(nn.Linear(2, 2))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    with contextlib.closing(types.SimpleNamespace(close=handle.remove)):
        assert "_global_forward_hooks[" in captures.changed()
    assert captures.changed() is None


def test_attributes_of_tensors():
    held = torch.ones(2)
    held.scale = 2.0
    captures = Captures.of(closing_over([held]))
    assert captures.changed() is None
    held.scale = 3.0
    assert captures.changed() == "value[0].scale was 2.0 and is 3.0 now"


class OwnNames:
    """An object that calls an attribute as modules call theirs."""

    _buffers = None

    def __init__(self):
        self._buffers = 0


def test_names_of_modules_in_other_objects():
    held = OwnNames()
    captures = Captures.of(closing_over(held))
    held._buffers = 1
    assert captures.changed() == "value._buffers was 0 and is 1 now"


# Random trees

# Where PyTorch 2.4 has compiled anything, the processor has no subnormal numbers any more.
FLOATS = st.floats(allow_subnormal=False)
LEAVES = st.one_of(st.integers(), FLOATS, st.text(max_size=3), st.booleans(), st.none())
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=2), inner, max_size=3),
        st.builds(Config, inner),
        st.builds(lambda held: types.SimpleNamespace(held=held), inner),
    ),
    max_leaves=12,
)


def slots_of(tree):
    """Every place in a tree that can be assigned to, as a function that does."""
    if isinstance(tree, (list, dict)):
        for key, value in enumerate(tree) if isinstance(tree, list) else tree.items():
            yield functools.partial(operator.setitem, tree, key)
            yield from slots_of(value)
    elif isinstance(tree, tuple):
        for value in tree:
            yield from slots_of(value)
    elif hasattr(tree, "__dict__"):
        for name, value in vars(tree).items():
            yield functools.partial(setattr, tree, name)
            yield from slots_of(value)


@given(TREES, st.data())
def test_one_replaced_leaf_in_a_random_tree_is_a_change(tree, data):
    captures = Captures.of(closing_over([tree]))
    assert captures.changed() is None
    slots = list(slots_of([tree]))[1:]
    if slots:
        data.draw(st.sampled_from(slots))(torch.ones(1))
        assert captures.changed() is not None
