"""What makes two calls the same, so that what one of them taught serves the other.

A signature is the function and the tree, shapes, dtypes and devices of the arguments. People write
``jac(lambda x: model(x))(x)`` in a loop, so a function is its code and the functions and modules that
the code can reach, never the function object. Nothing in a signature keeps any of them alive.
"""

from __future__ import annotations

import functools
import itertools
import types
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch

from torchjac.foundations.frozen import is_record
from torchjac.foundations.identity import Identity
from torchjac.foundations.pytree import flatten
from torchjac.foundations.strides import is_dense
from torchjac.planning.mentions import UNCHANGING, mentions
from torchjac.planning.search import Search
from torchjac.planning.switches import WORDS, switches_of
from torchjac.planning.trail import LONG, TENSORS, Trail

__all__ = [
    "DESCRIBED",
    "Description",
    "modules_of",
    "of_arguments",
    "of_function",
    "tensors_of",
]

# What a closure holds beside functions and modules are values, and values do not change which code
# runs; these do, because they are how switches are written.
_SWITCHES = (str, bool, type(None), bytes, torch.dtype, torch.device)


# What holds nothing else.
_PLAIN = frozenset({int, float, complex, range, slice, torch.Size, *_SWITCHES})
_KEYS = frozenset({int, float, *WORDS})
_VALUES = frozenset({*TENSORS, int, float, types.ModuleType})
# Where torchjac's own transforms write on the functions they return what these are: an object with ``func``,
# the function within, and ``told_by``, the options.
DESCRIBED = "_transform"
_OF_TRANSFORMS = frozenset({DESCRIBED, "__wrapped__", "plan"})
_HEAP_TYPE = 1 << 9  # of the flags of a class: made at run time
_MOST_IN_VAIN = 3


def of_function(func: Any, search: Search | None = None) -> tuple[Hashable, bool]:
    """Describe ``func`` by its code and by the functions and modules that the code can reach.

    Args:
        func: the function.
        search: says whether the numbers and the tensors that it captures belong to the description.
            They change no sizes, but a sparsity pattern depends on them: on the shift of a roll, on the
            zeros of a mask. A tensor that is changed in place remains the same one, and one that
            requires grad is left out, for no pattern depends on its values.

    Returns:
        The description, and whether a module was among what it reaches.
    """
    search = search or Search()
    described = _describe(func, search)
    return described, bool(search.modules)


class Description:
    """The description of one function, which is made anew when what was read for it has changed.

    Not before the second call does anybody take down what is read: there may be no other.
    """

    latest: tuple[Hashable, ...] | None = None
    """A signature that the description is the first part of."""
    _known: tuple[Trail, Hashable, bool] | None = None
    _was_called = False
    _in_vain = 0

    def by(self, func: Any, search: Search) -> tuple[Hashable, bool]:
        """The same as `of_function`."""
        known = self._known
        if known is not None:
            trail, described, connects = known
            if trail.is_unchanged():
                search.connects, self._in_vain = connects, 0
                return described, False
            self._known = None
        if self._was_called and self._in_vain < _MOST_IN_VAIN:
            self._in_vain += 1
            search.trail = Trail(func)
        self._was_called = True
        described = _describe(func, search)
        taken, search.trail = search.trail, None
        if taken is not None and search.is_sure and not taken.is_broken and taken.is_unchanged():
            self._known = taken, described, search.connects
        return described, bool(search.modules)


def tensors_of(func: Any) -> list[torch.Tensor]:
    """The tensors that ``func`` captures, those of the modules that it reaches among them."""
    search = Search(values=True)
    _describe(func, search)
    of_modules = [[*module.parameters(), *module.buffers()] for module in search.modules]
    return [*search.tensors, *itertools.chain(*of_modules)]


def modules_of(func: Any) -> list[torch.nn.Module]:
    """The modules that ``func`` reaches, without those within them."""
    search = Search()
    _describe(func, search)
    return search.modules


def _describe(subject: Any, search: Search) -> Any:
    kind = type(subject)
    if kind is types.FunctionType and id(subject) not in search.seen:  # most of what there is
        return _describe_function(subject, search)
    if kind in _VALUES:
        return _describe_value(subject, search)
    if isinstance(subject, _SWITCHES):
        return _describe_switch(subject, search)
    if id(subject) in search.seen:
        return ("seen", search.seen[id(subject)])
    if isinstance(subject, torch.nn.Module):
        return _describe_module(subject, search)
    if isinstance(subject, types.MethodType):
        return (_describe(subject.__func__, search), _describe(subject.__self__, search))
    if isinstance(subject, types.BuiltinMethodType):
        return _describe_builtin(subject, search)
    if isinstance(subject, functools.partial):
        parts = (subject.func, *subject.args, *subject.keywords.values())
        return ("partial", *subject.keywords, *[_describe(part, search) for part in parts])
    if isinstance(subject, (tuple, list, dict)):
        return _describe_container(subject, search)
    if isinstance(subject, slice):
        return (slice, *[_describe(p, search) for p in (subject.start, subject.stop, subject.step)])
    return _describe_object(subject, search)


def _describe_builtin(subject: types.BuiltinMethodType, search: Search) -> Any:
    # Made anew at every access, so its identity says nothing; that of what it belongs to does.
    owner = subject.__self__
    if owner is None or isinstance(owner, types.ModuleType):  # a function
        return (subject.__qualname__, owner and owner.__name__)
    return (subject.__qualname__, _describe(owner, search))


def _describe_switch(subject: Any, search: Search) -> Any:
    if isinstance(subject, (str, bytes)):
        if type(subject) not in _PLAIN:  # it may hold more, and is not to be kept alive
            search.is_sure = False
            subject = "".join(subject) if isinstance(subject, str) else bytes(bytearray(subject))
        if len(subject) > LONG:
            return (len(subject), hash(subject))
    return subject


def _describe_container(subject: Any, search: Search) -> Any:
    search.seen[id(subject)] = len(search.seen)
    items = subject.values() if isinstance(subject, dict) else subject
    # A subclass may have attributes beside its items.
    search.is_sure &= len(subject) <= LONG and not getattr(subject, "__dict__", None)
    nested = _sifted(itertools.islice(items, LONG), search, texts=type(subject) is not list)
    described = [_describe(part, search) for part in nested]
    if search.values and isinstance(subject, dict):
        keys = list(itertools.islice(subject, LONG))
        search.is_sure &= all(type(key) in _KEYS for key in keys)
        described += [_told(key) if type(key) in _KEYS else None for key in keys]
    return (_class_of(subject), *described)


def _class_of(subject: Any) -> Hashable:
    """Its class; one made at run time is not kept alive."""
    kind: Any = type(subject)
    return Identity(kind) if kind.__flags__ & _HEAP_TYPE else kind


def _describe_value(subject: Any, search: Search) -> Any:
    if isinstance(subject, types.ModuleType):  # it is not known what is asked of it
        search.is_sure &= subject.__name__.partition(".")[0] in UNCHANGING
    elif isinstance(subject, torch.Tensor):
        search.connects |= subject.requires_grad
    if not search.values:
        return type(subject)
    if isinstance(subject, torch.Tensor):
        search.tensors.append(subject)
        if not is_dense(subject):
            return Identity(subject)
        if subject.requires_grad:
            return (type(subject), subject.shape)
        if not search.alike:
            return Identity(subject)
        search.identities.append(Identity(subject))
        return (type(subject), subject.shape, subject.stride(), subject.dtype, subject.device)
    return _told(subject) if isinstance(subject, (int, float)) else type(subject)


def _told(constant: Any) -> Hashable:
    # Zeros have a sign.
    return (type(constant), constant or repr(constant))


def _describe_module(module: torch.nn.Module, search: Search) -> Any:
    search.modules.append(module)
    search.is_sure = False
    switches = switches_of(module)
    held = [_describe_value(buffer, search) for buffer in module.buffers()] if search.values else ()
    return (Identity(module), *switches, *held)


def _sifted(parts: Iterable[Any], search: Search, texts: bool = True) -> list[Any]:
    """The parts that are to be described.

    The rest of a container is values, and those of a log or a counter change with every call; so do the
    ``texts`` of a list.
    """
    found = []
    for part in parts:
        kind = type(part)
        if (
            search.values
            or (kind in WORDS and (texts or kind is not str))
            or callable(part)
            or isinstance(part, (tuple, list, dict))
        ):
            found.append(part)
        elif kind in TENSORS:
            search.connects |= part.requires_grad
        else:
            search.is_sure &= kind in _PLAIN
    return found


def _describe_object(subject: Any, search: Search) -> Any:
    """Describe a callable by its identity, anything else by its type, and both by what they hold."""
    search.seen[id(subject)] = len(search.seen)
    kind: Any = type(subject)
    search.is_sure &= _is_torch(subject) or is_record(kind)
    held = _sifted(getattr(subject, "__dict__", {}).values(), search)
    captured = list(search.tensors)
    parts = [_describe(part, search) for part in held[:LONG]]
    # An object may hold what its method does not read, such as memory for the results.
    search.tensors = captured
    if not callable(subject):
        return (_class_of(subject), *parts)
    try:
        return (Identity(subject), *parts)
    except TypeError:  # no weak references to it: a built-in, or a class with slots
        return (_class_of(subject), getattr(subject, "__qualname__", None))


def _is_torch(subject: Any) -> bool:
    """Whether it is a function, a class or an op that nobody changes."""
    if isinstance(subject, types.BuiltinFunctionType):
        return True
    if not isinstance(subject, (type, types.FunctionType, torch._ops.OpOverloadPacket)):
        return False
    # What a function says of its module it may have from another one, which it wraps.
    if isinstance(subject, types.FunctionType):
        home = subject.__globals__.get("__name__")
    else:
        home = getattr(subject, "__module__", None)
    return isinstance(home, str) and home.partition(".")[0] in UNCHANGING


def _describe_function(function: types.FunctionType, search: Search) -> Any:
    """Describe the code, the contents of the closure, the defaults, and the globals that the code names."""
    search.seen[id(function)] = len(search.seen)
    written, space = function.__dict__, function.__globals__
    names, looks_elsewhere = mentions(function.__code__)
    if search.trail is not None:
        search.trail.note(function, names)
    # A wrapper of the user's has a copy of what is written on what it wraps.
    if DESCRIBED in written and str(space.get("__name__"))[:9] == "torchjac.":
        search.is_sure &= _OF_TRANSFORMS.issuperset(written)
        own = written[DESCRIBED]
        return (function.__code__, *own.told_by, _describe(own.func, search))
    search.is_sure &= not written
    parts: list[Any] = [function.__code__]
    _add_closure(function, names, parts, search)
    if function.__defaults__:
        parts.append(_describe(function.__defaults__, search))
    if function.__kwdefaults__:
        parts.append(_describe(function.__kwdefaults__, search))
    search.is_sure &= not looks_elsewhere
    for name in names:
        known = space.get(name)
        if known is None:
            continue
        kind = type(known)
        if kind in _VALUES and not search.values:
            if kind is types.ModuleType:
                search.is_sure &= known.__name__ in UNCHANGING or _is_closed(known, names)
            else:
                search.connects |= kind in TENSORS and known.requires_grad
            continue
        if isinstance(known, types.FunctionType) and known.__globals__ is not space:
            parts.append(known.__code__)  # a library's function: what it reaches is its own affair
            search.is_sure &= _is_torch(known)
            if known.__closure__ and id(known) not in search.seen:
                search.seen[id(known)] = len(search.seen)
                _add_closure(known, names, parts, search)
        elif isinstance(known, types.ModuleType):
            _add_python_module(known, names, parts, search)
        else:
            parts.append(_describe(known, search))
    return tuple(parts)


def _add_closure(
    function: types.FunctionType, names: tuple[str, ...], parts: list[Any], search: Search
) -> None:
    for cell in function.__closure__ or ():
        try:
            contents = cell.cell_contents
        except ValueError:  # the cell is still empty
            continue
        kind = type(contents)
        is_value = kind in _VALUES and not search.values
        if isinstance(contents, types.ModuleType):
            _add_python_module(contents, names, parts, search)
        elif is_value:  # as in `_describe`, where it is a call for each
            search.connects |= kind in TENSORS and contents.requires_grad
            parts.append(kind)
        else:
            parts.append(_describe(contents, search))


def _add_python_module(
    module: types.ModuleType, names: tuple[str, ...], parts: list[Any], search: Search
) -> None:
    held = [vars(module)[name] for name in names if name in vars(module)] if search.values else ()
    parts += [_describe(part, search) for part in held if type(part) in _VALUES]
    search.is_sure &= _is_closed(module, names)


def _is_closed(module: types.ModuleType, names: tuple[str, ...]) -> bool:
    """Whether all that code with these names can reach of a Python module has been seen."""
    if module.__name__.partition(".")[0] in UNCHANGING:
        return True
    held = [vars(module)[name] for name in names if name in vars(module)]
    # Of a tensor there it is not known whether it requires grad.
    return all(type(p) in (int, float) or _is_torch(p) for p in held)


def of_arguments(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], search: Search | None = None
) -> Hashable:
    """Describe arguments by tree and kinds of tensors; others are described as captured ones."""
    search = search or Search()
    if not kwargs:
        kinds = []
        for arg in args:
            if not isinstance(arg, torch.Tensor):
                break
            kinds.append(_of_tensor(arg, search))
        else:
            return tuple(kinds)
    leaves, spec = flatten((args, dict(kwargs)))
    search.seen = {}  # for what the function reaches may have been described before
    described = [
        _of_tensor(leaf, search) if isinstance(leaf, torch.Tensor) else _describe(leaf, search)
        for leaf in leaves
    ]
    return (spec, *described)


def _of_tensor(tensor: torch.Tensor, search: Search) -> Hashable:
    search.connects |= tensor.requires_grad
    if tensor.is_nested:  # it has no shape
        return ("nested", tensor.dtype, tensor.device)
    if tensor.layout is torch.strided or not search.values:
        kind = (tensor.shape, tensor.layout, tensor.dtype, tensor.device)
        # What is followed once is followed for these strides.
        return (*kind, tensor.stride()) if search.values and not tensor.is_contiguous() else kind
    # The places of its entries are numbers that a pattern depends on.
    return Identity(tensor)
