"""Every command of the project: ``nox -l`` lists them, ``nox`` runs what the CI runs.

PyTorch is always installed first, at the version a session names, so that the package's own
``torch>=2.0`` is already met and pip does not fetch the newest, largest build.
Arguments after ``--`` go to the tool: ``nox -s tests -- -k hessian -x``.
"""

import os
import shutil
import time
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.sessions = ["lint", "types", "imports", "docs", "tests"]

PYPROJECT = nox.project.load_toml("pyproject.toml")

DEFAULT_TORCH = "2.13.0"
TORCH = {
    "2.0.1": ["torch==2.0.1", "numpy<2"],  # built against NumPy 1; needs Python 3.11 or older
    "2.4.1": ["torch==2.4.1"],
    "2.13.0": ["torch==2.13.0"],
    "newest": ["--upgrade", "torch"],
}

# Two processes share two cores better than two threads share one small tensor.
PYTEST_ENV = {"OMP_NUM_THREADS": "1"}
IN_PARALLEL = ["--numprocesses=auto", "--maxprocesses=4", "--dist=worksteal"]


def needs(group: str) -> tuple[str, ...]:
    """The requirements of one dependency group of pyproject.toml."""
    return nox.project.dependency_groups(PYPROJECT, group)


def run_pytest(
    session: nox.Session,
    *args: str,
    torch: str = DEFAULT_TORCH,
    group: str = "test",
    profile: str = "default",
) -> None:
    """Install PyTorch, then the package, then run pytest under a Hypothesis profile."""
    session.install(*TORCH[torch])
    session.install("--editable", ".", *needs(group))
    env = {**PYTEST_ENV, "TORCHJAC_PROFILE": profile}
    session.run("python", "-m", "pytest", *IN_PARALLEL, *args, *session.posargs, env=env)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests."""
    run_pytest(session, "--ignore=tests/ops")


def tests_on(version: str) -> None:
    """Add the session ``tests-<version>``: the same tests on another PyTorch."""

    def run(session: nox.Session) -> None:
        run_pytest(session, "--ignore=tests/ops", torch=version)

    run.__doc__ = f"Run the tests (torch: {version})."
    nox.session(run, name=f"tests-{version}", default=False)


for version in TORCH:
    tests_on(version)


@nox.session(default=False)
def deep(session: nox.Session) -> None:
    """Run the tests with twenty times the Hypothesis examples."""
    run_pytest(session, "--ignore=tests/ops", profile="deep")


@nox.session(default=False)
def ops(session: nox.Session) -> None:
    """Check every transform on PyTorch's own database of operators."""
    run_pytest(session, "tests/ops", group="ops")


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style of the code and its format."""
    session.install(*needs("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session
def types(session: nox.Session) -> None:
    """Check the types of the package, strictly."""
    session.install(*TORCH[DEFAULT_TORCH])
    session.install(*needs("types"))
    session.run("mypy", *session.posargs)


@nox.session
def imports(session: nox.Session) -> None:
    """Check that imports only go down the layers."""
    session.install(*needs("imports"))
    session.run("lint-imports", "--no-cache")


@nox.session(default=False)
def quickstart(session: nox.Session) -> None:
    """Print the Jacobian of a robot arm, checked and timed."""
    session.install(*TORCH[DEFAULT_TORCH])
    session.install("--editable", ".")
    session.run("python", "examples/quickstart.py")


# How an example is started that is not `python examples/<name>.py`, and what it is given.
LAUNCHERS = {"distributed": ["torchrun", "--nproc-per-node", "2"]}
ARGUMENTS = {"brusselator": ["32", "brusselator.png"], "conv_jacobian": ["conv_jacobian.png"]}


@nox.session(default=False)
def examples(session: nox.Session) -> None:
    """Run every example, or those that are named after ``--``, and say how long each takes."""
    session.install(*TORCH[DEFAULT_TORCH])
    session.install("--editable", ".", "matplotlib")
    pictures = Path(session.create_tmp())
    names = session.posargs or sorted(path.stem for path in Path("examples").glob("*.py"))
    seconds = {}
    for name in names:
        given = [str(pictures / word) if "." in word else word for word in ARGUMENTS.get(name, [])]
        began = time.perf_counter()
        # One thread each: for tensors of this size several spend their time waiting for each other.
        env = {"OMP_NUM_THREADS": "1"}
        session.run(*LAUNCHERS.get(name, ["python"]), f"examples/{name}.py", *given, env=env)
        seconds[name] = time.perf_counter() - began
    session.log("\n".join(["seconds", *(f"{took:7.1f} {name}" for name, took in seconds.items())]))


@nox.session
def docs(session: nox.Session) -> None:
    """Build the site of the documentation, strictly; ``-- serve`` shows it while it is written."""
    session.install(*needs("docs"))
    task = session.posargs or ["build", "--strict", "--site-dir", ".nox/site"]
    env = {"NO_MKDOCS_2_WARNING": "1"}  # an advertisement
    session.run("mkdocs", *task, "--config-file", ".mkdocs.yml", env=env)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Time every workload against its peers, and measure peak memory: all of benchmarks/results."""
    session.install(*TORCH[DEFAULT_TORCH])
    session.install("--editable", ".", *needs("bench"))
    session.run("python", "-m", "benchmarks", *session.posargs)
    session.run("python", "-m", "benchmarks.sparse", *session.posargs)
    session.run("python", "-m", "benchmarks.plans", *session.posargs)
    session.run("python", "-m", "benchmarks.contractions")
    session.run("python", "-m", "benchmarks.distributed")
    session.run("python", "-m", "benchmarks.memory")


# Run with the wheel's own interpreter, away from the checkout (-I), PyTorch being imported first so
# that what it imports itself is not held against the package.
USE_WHEEL = """
import importlib.metadata, importlib.resources, sys
import torch

class Watch:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] not in {"hypothesis", "matplotlib", "scipy"}, name

sys.meta_path.insert(0, Watch())
import torchjac

assert "site-packages" in torchjac.__file__, torchjac.__file__
assert importlib.resources.files("torchjac").joinpath("py.typed").is_file()
x = torch.tensor([1.0, 2.0, 3.0])
torch.testing.assert_close(torchjac.jac(torch.sin)(x), x.cos().diag())
print("torchjac", importlib.metadata.version("torchjac"), "works from its wheel")
"""


@nox.session(default=False)
def package(session: nox.Session) -> None:
    """Build the package, install the wheel alone in a clean environment, and use it there."""
    session.install(*needs("package"))
    room = Path(session.create_tmp())
    dist, clean = room / "dist", room / "clean"
    shutil.rmtree(dist, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(dist))
    session.run("python", "-m", "virtualenv", "--quiet", "--clear", str(clean))
    python = str(clean / ("Scripts" if os.name == "nt" else "bin") / "python")
    (wheel,) = map(str, dist.glob("*.whl"))
    for requirement in (*TORCH[DEFAULT_TORCH], wheel):
        session.run(python, "-m", "pip", "install", "--quiet", requirement, external=True)
    session.run(python, "-I", "-c", USE_WHEEL, external=True)
