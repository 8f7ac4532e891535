"""What is seen from outside: names, files, imports."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import torchjac

PACKAGE = Path(torchjac.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def relative(path):
    return path.relative_to(PACKAGE).as_posix()


def python(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


def test_the_public_names():
    assert sorted(torchjac.__all__) == [
        "Coloring",
        "LinearOperator",
        "Plan",
        "SparsityPattern",
        "batched_jac",
        "color",
        "divergence",
        "errors",
        "hessian",
        "hessian_diag",
        "hessian_operator",
        "hessian_sparsity",
        "jac",
        "jac_blocks",
        "jac_diag",
        "jac_of",
        "jac_operator",
        "jac_sparsity",
        "laplacian",
        "load_plan",
        "testing",
    ]


def test_every_public_name_is_there_without_a_further_import():
    assert python("import torchjac; print([getattr(torchjac, n) and n for n in torchjac.__all__])")


def test_no_other_name_is_public_but_the_layers():
    layers = {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"errors"}
    public = {name for name in vars(torchjac) if not name.startswith("_")}
    assert public <= set(torchjac.__all__) | layers


def test_the_errors_are_those_that_are_named():
    own = {
        name
        for name, value in vars(torchjac.errors).items()
        if inspect.isclass(value) and value.__module__ == "torchjac.errors"
    }
    assert own == set(torchjac.errors.__all__)


@pytest.mark.parametrize("name", torchjac.errors.__all__)
def test_an_error_is_a_torchjac_error_and_the_built_in_that_fits(name):
    kind = getattr(torchjac.errors, name)
    assert kind.__doc__
    if name.endswith("Warning"):
        assert issubclass(kind, UserWarning)
    elif name != "TorchjacError":
        assert issubclass(kind, torchjac.errors.TorchjacError)
        assert len(kind.__bases__) == 2


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_a_file_has_under_400_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) < 400


def test_one_file_imports_the_tree_module_of_torch():
    importers = [relative(path) for path in FILES if "_pytree" in path.read_text(encoding="utf-8")]
    assert importers == ["foundations/pytree.py"]


def test_the_types_are_published():
    assert (PACKAGE / "py.typed").is_file()


def test_importing_loads_none_of_what_it_does_not_need():
    code = (
        "import sys, torch; before = set(sys.modules); import torchjac\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*new & {'scipy', 'hypothesis', 'matplotlib', 'pytest'})\n"
        "print('torchjac.testing' in sys.modules)"
    )
    assert python(code) == "False"


def test_importing_adds_at_most_a_quarter_to_the_import_of_torch():
    # Another process may disturb a measurement, so the best of a few counts.
    code = (
        "import time\nstart = time.perf_counter()\nimport torch\n"
        "middle = time.perf_counter()\nimport torchjac\n"
        "print((time.perf_counter() - middle) / (middle - start))"
    )
    assert any(float(python(code)) <= 0.25 for _ in range(5))
