"""The walk through everything that a function reaches.

NOTE [what counts]. Of an instance, a list or a dict everything counts; of a Python module or a class,
which are shared with the rest of the program, only what the reached code mentions.
"""

from __future__ import annotations

import dis
import functools
import re
import sys
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping, Set
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchjac.planning.captured.bindings import CONSTANTS, MISSING, Container, Name, Namespace, noun

__all__ = ["OF_MODULES", "Reach"]

# Whose functions, classes and modules are taken to stay as they are.
_LIBRARIES = frozenset({"torch", "torchjac", "numpy", "scipy", *sys.stdlib_module_names})
_TENSORS = (Tensor, torch.nn.Parameter)
_ROWS = (list, tuple, set, frozenset, deque)
# Types written in C whose whole contents are seen here.
_PLAIN = frozenset(
    {object, dict, OrderedDict, defaultdict, types.MappingProxyType, torch.Size, *_ROWS}
)
_OPEN = _PLAIN | {types.SimpleNamespace}
# Containers longer than this, and more bindings than this, would cost more than they save.
_LONG, _MANY = 1024, 1 << 16
_HEAP_TYPE = 1 << 9  # of the flags of a class: made at run time, as those written in Python are
_MAKERS = ("__init__", "__new__")
# Called by PyTorch where no code mentions them.
_IMPLIED = frozenset({"forward", "backward", "jvp", "vmap", "setup_context", "right_inverse"})
# With these, code reaches names that it does not mention.
_DYNAMIC = frozenset({"eval", "exec", "globals", "__import__"})
# With these, code goes where a trace does not see it: into other threads, out into the world, or past
# PyTorch's modes.
_THREADS = frozenset(
    {"threading", "_thread", "concurrent", "multiprocessing", "queue", "_queue", "asyncio"}
)
_WORLD = frozenset(
    {"os", "posix", "nt", "io", "_io", "pathlib", "time", "datetime", "random", "secrets", "uuid"}
)
_ASKED = (types.ModuleType, types.FunctionType, types.BuiltinFunctionType, type)
_READERS = frozenset({"open", "input"})
_BLIND = frozenset(
    {"DisableTorchFunction", "_DisableTorchDispatch", "_disable_current_modes", "no_dispatch"}
)
_COMPILED = "_torchdynamo_orig_callable"  # what torch.compile writes on the functions it makes
_GLOBAL_HOOKS = re.compile("_global_(forward|backward).*hooks$")
# What every module has of its own, beside the switch: dicts, for the most part empty.
OF_MODULES = frozenset(vars(torch.nn.Module())) - {"training"}
# What these hold, and hold for good. What a cache remembers came from the function that it wraps.
_PARTS: dict[type, tuple[str, ...]] = {
    types.MethodType: ("__func__", "__self__"),
    types.BuiltinFunctionType: ("__self__",),  # of a function, the Python module it is from
    types.MethodWrapperType: ("__self__",),
    staticmethod: ("__func__",),
    classmethod: ("__func__",),
    property: ("fget", "fset"),
    functools.cached_property: ("func",),
    type(functools.lru_cache(len)): ("__wrapped__",),
    slice: ("start", "stop", "step"),
}


class Reach:
    """A walk through everything that a function reaches."""

    def __init__(self, func: Callable[..., Any]) -> None:
        self._func = func
        self.names: list[Name] = []
        self.containers: list[Container] = []
        self.namespaces: list[Namespace] = []
        self.tensors: dict[int, Tensor] = {}
        self.unsure_of: str | None = None
        self._seen: dict[int, Any] = {}  # keeps what was seen alive, so that ids stay taken
        self._mentioned = set(_IMPLIED)
        self._namespaces: dict[int, tuple[Mapping[str, Any], str, bool]] = {}
        self._bound: set[tuple[int, str]] = set()
        self._waiting: deque[tuple[Any, str]] = deque([(func, noun(func))])
        while self._waiting:
            self._visit(*self._waiting.popleft())
            if not self._waiting:
                self._visit_namespaces()
        mentioned = frozenset(self._mentioned)
        for space, path, is_class in self._namespaces.values():
            counts = partial(_counts, mentioned, is_class)
            self.namespaces.append(Namespace(path, space, counts).renewed())

    def _visit(self, subject: Any, path: str) -> None:
        if isinstance(subject, Tensor):
            self.tensors[id(subject)] = subject
            if type(subject) in _TENSORS and vars(subject):
                self._items(vars(subject), path, attributes=True, ordered=False)
        elif not isinstance(subject, CONSTANTS) and id(subject) not in self._seen:
            self._seen[id(subject)] = subject
            if len(self._seen) > _MANY:
                self._doubt(f"{path} and more: too many objects to watch")
            elif _is_from(_THREADS, subject):
                self._doubt(f"{path}, with which work goes to other threads")
            elif isinstance(subject, _ASKED) and _is_from(_WORLD, subject):
                self._doubt(f"{path}, which tells of the world outside")
            elif isinstance(subject, types.FunctionType) and _COMPILED in vars(subject):
                self._doubt(f"{path}, which torch.compile compiles anew where it must")
            else:
                self._look_into(subject, path)

    def _look_into(self, subject: Any, path: str) -> None:
        if isinstance(subject, types.FunctionType):
            self._function(subject, path)
        elif isinstance(subject, types.ModuleType):
            if not _is_library(subject.__name__):
                self._namespaces[id(subject)] = vars(subject), path, False
        elif isinstance(subject, type):
            self._class(subject)
            if not _is_library(subject.__module__):
                self._wait(*[(vars(subject).get(name), path) for name in _MAKERS])
        elif isinstance(subject, weakref.ref):
            self._wait((subject(), path))
        elif isinstance(subject, partial):  # another state can be set of it
            for name in ("func", "args", "keywords"):
                self._bind(f"{path}.{name}", partial(getattr, subject, name), f"{path}.{name}")
        else:
            parts = next((_PARTS[kind] for kind in type(subject).__mro__ if kind in _PARTS), None)
            self._wait(*[(getattr(subject, name), f"{path}.{name}") for name in parts or ()])
            if parts is None:
                self._object(subject, path)

    def _wait(self, *found: tuple[Any, str]) -> None:
        self._waiting += found

    def _doubt(self, words: str) -> None:
        self.unsure_of = self.unsure_of or words

    # Functions, and the namespaces in which they look names up

    def _function(self, function: types.FunctionType, path: str) -> None:
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        for name, cell in cells:
            label = f"the closure variable {name!r} of {path}"
            self._bind(label, partial(getattr, cell, "cell_contents"), name)
        space = function.__globals__
        if _is_library(space.get("__name__")):
            return
        self._bind(f"the code of {path}", partial(getattr, function, "__code__"), path)
        # Where there are no defaults, those given later are for arguments that are passed already.
        if function.__defaults__:
            read = partial(getattr, function, "__defaults__")
            self._bind(f"the defaults of {path}", read, f"{path}.__defaults__")
        if function.__kwdefaults__:
            read = partial(getattr, function, "__kwdefaults__")
            self._bind(f"the keyword defaults of {path}", read, f"{path}.__kwdefaults__")
        mentions = _mentions(function.__code__)
        named = {*mentions.variables, *function.__code__.co_freevars}
        if vars(function) or function is not self._func or function.__name__ in named:
            self._items(vars(function), path, attributes=True, ordered=False)
        self._mentioned |= mentions.attributes
        for name in _BLIND & (mentions.attributes | mentions.variables):
            self._doubt(f"{path}, which calls {name}")
        for name in mentions.variables:
            if name in _DYNAMIC or (name in _READERS and name not in space):
                self._doubt(f"{path}, which calls {name}")
            self._bind_item(f"the global variable {name!r}", space, name, name)
        for name in mentions.imports:
            package = sys.modules.get(f"{space.get('__package__')}.{name}", sys.modules.get(name))
            self._wait((package, name))
            if package is None:
                self._doubt(f"{path}, which imports {name or 'from its package'}")

    def _class(self, cls: type) -> None:
        for base in cls.__mro__:
            if id(base) not in self._namespaces and not _is_library(base.__module__):
                self._namespaces[id(base)] = vars(base), base.__qualname__, True
        if type(cls) is not type:  # what is asked of a class, its own class may answer
            self._class(type(cls))

    def _visit_namespaces(self) -> None:
        """Bind what was mentioned, by any of the code reached, of Python modules and of classes."""
        for space, path, is_class in self._namespaces.values():
            for name, value in space.items():
                if _counts(self._mentioned, is_class, name, value):
                    self._bind_item(f"{path}.{name}", space, name, f"{path}.{name}")

    def _bind_item(self, label: str, space: Mapping[str, Any], name: str, path: str) -> None:
        if (id(space), name) not in self._bound:
            self._bound.add((id(space), name))
            self._bind(label, partial(space.get, name, MISSING), path)

    def _bind(self, label: str, read: Callable[[], Any], path: str) -> None:
        self.names.append(Name(label, read).renewed())
        self._wait((self.names[-1].held, path))

    # Objects and containers

    def _object(self, subject: Any, path: str) -> None:
        kind = type(subject)
        if isinstance(subject, (dict, types.MappingProxyType, *_ROWS)):
            self._items(subject, path)
        if kind in _PLAIN:
            return
        self._class(kind)
        scripted = isinstance(subject, torch.jit.ScriptModule)
        read = partial(getattr, subject, "__class__")
        self.names.append(Name(f"the class of {path}", read, kind))
        for base in kind.__mro__:
            for name, member in vars(base).items():
                if isinstance(member, types.MemberDescriptorType) and _is_open(base):
                    read = partial(getattr, subject, name)
                    self._bind(f"{path}.{name}", read, f"{path}.{name}")
        if isinstance(subject, torch.nn.Module) and not scripted:
            self._module(subject, path)
        elif hasattr(subject, "__dict__"):
            read = partial(getattr, subject, "__dict__")
            self.names.append(Name(f"the dict of {path}", read, vars(subject)))
        if hasattr(subject, "__dict__"):
            self._items(vars(subject), path, attributes=True, ordered=False)
        if scripted or not all(map(_is_open, kind.__mro__)):
            self._doubt(f"{path}, whose type {kind.__name__} hides what it holds")

    def _module(self, module: torch.nn.Module, path: str) -> None:
        """Give what a module keeps in dicts of its own the names that its users know."""
        for held in (module._parameters, module._buffers, module._modules):
            self._items(held, path, attributes=True, ordered=held is module._modules)
        for name, value in vars(torch.nn.modules.module).items():
            if _GLOBAL_HOOKS.match(name):
                self._wait((value, name))

    def _items(
        self, container: Any, path: str, attributes: bool = False, ordered: bool = True
    ) -> None:
        if attributes and id(container) in self._seen:
            return
        self._seen[id(container)] = container

        def label(key: Any) -> str:
            return f"{path}.{key}" if attributes else f"{path}[{key!r}]"

        # Those of dict itself, whatever a class makes of them.
        kind = dict if isinstance(container, dict) else types.MappingProxyType
        rows = isinstance(container, _ROWS)
        views = (container,) if rows else (kind.keys(container), kind.values(container))
        if len(container) > _LONG and not attributes:
            self._doubt(f"{path}, which has {len(container)} items")
        else:
            seen = Container(label, views, None if ordered else container).renewed()
            self.containers += [] if isinstance(container, (tuple, frozenset)) else [seen]
            self._wait(*[(value, label(key)) for key, value in seen.items().items()])


def _counts(mentioned: Set[str], is_class: bool, name: str, value: Any) -> bool:
    """Whether code that mentions such names may look for one in a Python module or in a class."""
    special = is_class and isinstance(value, types.FunctionType) and name[:2] == "__"
    return name in mentioned or (special and name not in _MAKERS)


class _Mentions(NamedTuple):
    variables: frozenset[str]  # in the globals
    attributes: frozenset[str]  # in anything else; texts count, for they may be meant for getattr
    imports: frozenset[str]


@functools.lru_cache(maxsize=1024)
def _mentions(code: types.CodeType) -> _Mentions:
    """The names that a code object and those nested in it look up."""
    steps = [(step.opname, step.argval) for step in dis.get_instructions(code)]
    texts = {part for part in code.co_consts if isinstance(part, str) and part.isidentifier()}
    own = _Mentions(
        frozenset({name for step, name in steps if "GLOBAL" in step or step == "LOAD_NAME"}),
        frozenset({*code.co_names, *texts}),
        frozenset({name for step, name in steps if step == "IMPORT_NAME"}),
    )
    nested = [_mentions(part) for part in code.co_consts if isinstance(part, types.CodeType)]
    return _Mentions(*[frozenset().union(*names) for names in zip(own, *nested, strict=True)])


def _is_library(name: object) -> bool:
    return _root(name) in _LIBRARIES


def _root(name: object) -> str:
    # A class may say anything of its module, or have the slot for it without a value.
    return name.partition(".")[0] if isinstance(name, str) else ""


def _is_from(packages: frozenset[str], subject: Any) -> bool:
    """Whether it is a Python module among these, or a function, a class or an object from there."""
    if isinstance(subject, types.ModuleType):
        return _root(subject.__name__) in packages
    if isinstance(subject, (types.FunctionType, types.BuiltinFunctionType)):
        return _root(subject.__module__) in packages
    cls = subject if isinstance(subject, type) else type(subject)
    return any(_root(base.__module__) in packages for base in cls.__mro__)


def _is_open(cls: type) -> bool:
    """Whether all that its instances hold is in their attributes, slots and items."""
    made_in_c = isinstance(vars(cls).get("__new__"), types.BuiltinFunctionType)
    return cls in _OPEN or (bool(cls.__flags__ & _HEAP_TYPE) and not made_in_c)
