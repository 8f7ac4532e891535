"""Docstrings and Markdown: complete, and their examples run."""

import ast
import doctest
import importlib
import inspect
import os
import pkgutil
import re
from pathlib import Path

import pytest
from hypothesis import settings

import torchjac
import torchjac.testing

ROOT = Path(torchjac.__file__).parent.parent
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(torchjac.__path__, "torchjac.")
    if not info.name.endswith(".__main__")
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
TRANSFORMS = ["jac", "batched_jac", "hessian", "jac_of", "jac_operator", "hessian_operator"]
TRANSFORMS += ["jac_diag", "hessian_diag", "divergence", "laplacian"]
PUBLIC = [getattr(torchjac, name) for name in TRANSFORMS] + [
    value
    for name, value in sorted(vars(torchjac.testing).items())
    if name in torchjac.testing.__all__ and inspect.isfunction(value)
]


def name_of(func):
    return func.__name__


@pytest.mark.parametrize("func", PUBLIC, ids=name_of)
@pytest.mark.parametrize("section", ["Args", "Returns", "Raises", "Example"])
def test_a_public_docstring_is_complete(func, section):
    assert re.search(rf"^    {section}:$", func.__doc__, re.MULTILINE)


@pytest.mark.parametrize("func", PUBLIC[: len(TRANSFORMS)], ids=name_of)
@pytest.mark.parametrize("section", ["Shapes", "Dtypes"])
def test_a_transform_also_tells_shapes_and_dtypes(func, section):
    assert re.search(rf"^    {section}:$", func.__doc__, re.MULTILINE)


@pytest.mark.parametrize("func", PUBLIC, ids=name_of)
def test_a_docstring_describes_every_argument_in_their_order(func):
    code = func.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    described = re.search(r"^    Args:\n(.*?)\n\n", func.__doc__, re.MULTILINE | re.DOTALL).group(1)
    listed = [
        part.strip("* ")
        for line in re.findall(r"^        ([*\w, ]+):", described, re.MULTILINE)
        for part in line.split(",")
    ]
    assert [name for name in listed if name in names] == list(names)


@pytest.fixture
def few_examples():
    """A property test in a docstring shows how it is written; others look for what it finds."""
    settings.register_profile("few", max_examples=4, deadline=None, derandomize=True)
    settings.load_profile("few")
    yield
    settings.load_profile(os.environ.get("TORCHJAC_PROFILE", "default"))


# Said where PyTorch vmaps an op in a loop of its own, as a random program may want.
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
@pytest.mark.usefixtures("few_examples")
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    module = importlib.import_module(name)
    results = doctest.testmod(module, optionflags=FLAGS)
    assert not results.failed


@pytest.mark.parametrize("name", MODULES)
def test_every_module_and_every_public_thing_in_it_says_what_it_is(name):
    module = importlib.import_module(name)
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.ClassDef)
    public = [node for node in tree.body if isinstance(node, kinds) and node.name[0] != "_"]
    silent = [node.name for node in public if not ast.get_docstring(node)]
    if tree.body and name != "torchjac.testing.__init__":
        assert ast.get_docstring(tree), name
    assert silent == []


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def said(block):
    """What a block says that it prints: the comments beside its prints, or below them."""
    lines, found = block.splitlines(), []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("print("):
            beside = re.search(r"  # (.*)$", line)
            below = re.match(r"# (.*)$", following)
            found += [comment.group(1) for comment in (beside or below,) if comment]
    return found


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_examples_of_a_page_run_and_print_what_the_page_says(path, capsys):
    # The blocks of a page are one program.
    space = {"__name__": path.stem}
    for block in re.findall(
        r"^```python\n(.*?)^```", path.read_text(encoding="utf-8"), re.M | re.S
    ):
        exec(compile(block, path.name, "exec"), space)
        printed = capsys.readouterr().out.strip().splitlines()
        if said(block):
            assert printed == said(block)


def test_the_readme_says_what_its_examples_print():
    assert sum(line.startswith("print(") for line in PAGES[0].read_text("utf-8").splitlines()) >= 4
