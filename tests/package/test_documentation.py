"""Docstrings and Markdown: complete, and their examples run."""

import ast
import doctest
import importlib
import importlib.util
import inspect
import itertools
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import settings

import torchjac
import torchjac.testing
from tests.sparse import DETECTS

if not DETECTS:
    pytest.skip("the examples detect patterns, which needs torch 2.1", allow_module_level=True)

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


DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


NEED_DTENSOR = {"large.md"}
HAS_DTENSOR = importlib.util.find_spec("torch.distributed.tensor._api") is not None


def place(path):
    return path.relative_to(ROOT).as_posix()


def said(block):
    """What a block says that it prints: the comments beside its prints, or below them."""
    lines, found = block.splitlines(), []
    for at, line in enumerate(lines):
        if not line.lstrip().startswith("print("):
            continue
        beside = re.search(r"  # (.*)$", line)
        below = itertools.takewhile(lambda line: line.startswith("# "), lines[at + 1 :])
        found += [beside.group(1)] if beside else [line[2:] for line in below]
    return found


@pytest.mark.parametrize("path", PAGES, ids=place)
def test_the_examples_of_a_page_run_and_print_what_the_page_says(path, capsys):
    if path.name in NEED_DTENSOR and not HAS_DTENSOR:
        pytest.skip("DTensor needs torch 2.5")
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


# The site: `nox -s docs` builds it, and looks at its links once more.

TEXTS = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md"))]
TEXTS += [ROOT / folder / "README.md" for folder in ("benchmarks", "tests")]
DIRECTIVE = re.compile(r"^::: (\S+)$", re.MULTILINE)


def prose(path):
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def anchors(path):
    """What a link to a page may name: its headings, as the repository's host and the site spell them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return {*words, *DIRECTIVE.findall(prose(path))}


@pytest.mark.parametrize("path", TEXTS, ids=place)
def test_the_links_of_a_page_lead_somewhere(path):
    dead = []
    for link in re.findall(r"\]\((?![a-z]+:)([^)\s]+)\)", prose(path)):
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        found = target.exists() and (
            target.suffix != ".md" or not anchor or anchor in anchors(target)
        )
        dead += [] if found else [link]
    assert dead == []


def public_names(name, thing):
    """A name, or of a module those that it offers."""
    if not inspect.ismodule(thing):
        return [name]
    return [
        full
        for part in thing.__all__
        for full in public_names(f"{name}.{part}", getattr(thing, part))
    ]


def test_the_reference_documents_every_public_name_once():
    pages = [path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md")]
    documented = [
        full
        for directive in DIRECTIVE.findall("\n".join(pages))
        for full in public_names(directive, pkgutil.resolve_name(directive))
    ]
    assert sorted(documented) == sorted(public_names("torchjac", torchjac))


PICTURES = sorted(path for path in (DOCS / "pictures").glob("*.py") if path.stem != "drawing")


@pytest.mark.parametrize("script", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_what_its_script_draws(script, tmp_path):
    pytest.importorskip("matplotlib")
    subprocess.run([sys.executable, script, tmp_path], check=True, capture_output=True)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {f"{script.stem}-light.svg", f"{script.stem}-dark.svg"}
    used = "".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md"))
    for name in drawn:
        assert shown(tmp_path / name) == shown(script.parent / name) != []
        assert f"pictures/{name}#" in used


def shown(path):
    """The words and colours of a picture; its shapes differ from one Matplotlib to the next."""
    return re.findall(r"<!-- (.*?) -->|fill: (#\w+)", path.read_text(encoding="utf-8"))
