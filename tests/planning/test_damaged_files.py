"""A file that is damaged, changed, of another version or no plan is refused, and none is run."""

import json
import pickle
import shutil
import warnings
import zipfile

import numpy as np
import pytest
import torch

from tests.sparse import DETECTS
from torchjac.errors import PlanError

if not DETECTS:
    pytest.skip("plans take torch 2.1", allow_module_level=True)

from tests.planning.saved_plans import CASES, saved, stencil, x
from torchjac import jac, load_plan
from torchjac.evaluation.programs import compiled as inductor
from torchjac.planning.plans import saving


def rewritten(path, **changes):
    """The file with other entries in its JSON."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    manifest = json.loads(held["plan.json"])
    held["plan.json"] = json.dumps({**manifest, **changes})
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in held.items():
            archive.writestr(name, content)
    return manifest


def rearranged(path, change):
    """The file with other arrays; ``change`` is given them by number."""
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    arrays = {
        int(name.partition("/")[2]): np.frombuffer(content, np.int64).copy()
        for name, content in held.items()
        if name != "plan.json"
    }
    change(arrays)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("plan.json", held["plan.json"])
        for number, array in arrays.items():
            archive.writestr(f"arrays/{number}", array.tobytes())


def places_of_colors(path):
    """Where the colours of the first colouring are among the arrays, and the places of its pattern."""
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("plan.json"))
    pattern, _, columns, rows, _ = manifest["compression"]["colorings"][0]["coloring"]
    return pattern["pattern"][:2], columns if columns is not None else rows


@pytest.mark.parametrize("name", ["found", "coo", "hessian, sparse", "untraceable, sparse"])
def test_colours_that_do_not_fit_the_pattern_are_refused(name, path):
    transform, func, args, kwargs = CASES[name]
    saved(path, transform, func, *args, **kwargs)
    _, colors = places_of_colors(path)

    def change(arrays):
        arrays[colors][:] = 0

    if name == "untraceable, sparse":  # of a diagonal all can have one colour

        def change(arrays):
            arrays[colors][:] = -1

    rearranged(path, change)
    with pytest.raises(
        PlanError,
        match=r"the colouring of \w+ is none: entry \(\d+, \d+\) cannot be told from others",
    ):
        load_plan(path, func)


def test_colours_that_nothing_has_are_refused(path):
    saved(path, jac, stencil, x(900))
    _, colors = places_of_colors(path)
    rearranged(path, lambda arrays: arrays[colors].__setitem__(0, 2**40))
    with pytest.raises(PlanError, match="there is a colour that no"):
        load_plan(path, stencil)


def without_an_entry(path):
    (rows, cols), _ = places_of_colors(path)

    def change(arrays):
        for at in (rows, cols):
            arrays[at] = np.delete(arrays[at], 7)

    rearranged(path, change)


@pytest.mark.parametrize("compiles", [False, True])
@pytest.mark.parametrize("layout", [torch.strided, torch.sparse_coo])
def test_a_pattern_that_lacks_an_entry_is_found_at_the_first_call(layout, compiles, path):
    if compiles and not (inductor._supported() and shutil.which("g++")):
        pytest.skip("no compiler")
    sparsity = "detect" if layout is torch.sparse_coo else None
    saved(path, lambda f: jac(f, sparsity=sparsity, layout=layout), stencil, x(900))
    without_an_entry(path)
    loaded = load_plan(path, stencil)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = loaded.compile() if compiles else loaded
    for _ in range(2):
        with pytest.raises(PlanError) as caught:
            loaded(x(900))
    assert str(caught.value) == (
        f"jac(stencil): the derivative disagrees with one plain backward pass. The plan was loaded "
        f"{loaded._loaded}: the file has been changed, or its plan does not hold here any more. Make a new "
        f"plan, and save that."
    )
    with pytest.raises(PlanError, match="verify"):
        loaded.verify(x(900))


def test_nothing_is_compared_where_that_is_not_wanted(path):
    saved(path, lambda f: jac(f, check="never"), stencil, x(900))
    without_an_entry(path)
    wrong = load_plan(path, stencil)(x(900))
    assert not torch.allclose(wrong, jac(stencil)(x(900)))


def test_another_number_of_passes_is_refused(path):
    plan = saved(path, jac, lambda x: torch.outer(x, x).sum(0), x(4))
    chosen = saving._candidate(plan._design.chosen)
    rewritten(path, considered=[{**chosen, "passes": 1}], chosen=0)
    with pytest.raises(PlanError, match="its way takes 4 passes, and 1 are in the file"):
        load_plan(path, lambda x: torch.outer(x, x).sum(0))


def test_chunks_are_those_that_were_saved(path):
    def func(x):
        return torch.outer(x, x).sum(0)

    plan = saved(path, jac, func, x(20))
    assert plan.passes == plan.chunk_size == 20
    chosen = saving._candidate(plan._design.chosen)
    rewritten(path, considered=[{**chosen, "chunk_size": 7}], chosen=0)
    loaded = load_plan(path, func)
    assert loaded.chunk_size == 7
    torch.testing.assert_close(loaded(x(20)), plan(x(20)))


def test_another_format_is_refused(path):
    saved(path, jac, stencil, x(40))
    rewritten(path, format=saving.FORMAT + 1)
    with pytest.raises(
        PlanError, match="the plan has format 3, and this version of torchjac reads format 2"
    ):
        load_plan(path, stencil)


def test_another_torch_is_named_where_the_trace_differs(path):
    saved(path, jac, stencil, x(40))
    rewritten(path, versions={**saving.versions(), "torch": "1.2.3"})
    assert load_plan(path, stencil).passes
    with pytest.raises(PlanError, match=r"saved with torch 1\.2\.3, and here is torch 2"):
        load_plan(path, torch.sin)


def test_a_missing_device_is_refused(path):
    saved(path, jac, stencil, x(40))
    with zipfile.ZipFile(path) as archive:
        manifest = json.loads(archive.read("plan.json"))
    text = json.dumps(manifest["arguments"]).replace('"cpu"', '"cuda:77"')
    rewritten(path, arguments=json.loads(text))
    with pytest.raises(PlanError, match="it is for device 'cuda:77', which is not here"):
        load_plan(path, stencil)


def test_what_is_no_plan_is_refused(path, tmp_path):
    with pytest.raises(FileNotFoundError):
        load_plan(path, stencil)
    path.write_bytes(b"not a plan")
    with pytest.raises(PlanError, match="this is no plan, or a damaged one"):
        load_plan(path, stencil)
    torch.save({"format": 1}, path)
    with pytest.raises(PlanError, match="this is no plan, or a damaged one"):
        load_plan(path, stencil)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("plan.json", json.dumps({"format": saving.FORMAT}))
    with pytest.raises(PlanError, match="the plan is damaged"):
        load_plan(path, stencil)


@pytest.mark.parametrize(
    "changes",
    [
        {"transform": "jit"},
        {"keywords": {"dict": [["no_such_option", 1]]}},
        {"arguments": {"tuple": [{"tuple": [{"surprise": 1}]}, {"dict": []}]}},
        {"arguments": {"torch": "torch.load"}},
        {"chosen": 99},
        {"record": None},
    ],
    ids=str,
)
def test_a_file_with_other_entries_is_refused(changes, path):
    saved(path, jac, stencil, x(40))
    rewritten(path, **changes)
    with pytest.raises(PlanError):
        load_plan(path, stencil)


def test_a_file_that_was_cut_short_or_changed_is_refused(path):
    saved(path, jac, stencil, x(40))
    whole = path.read_bytes()
    for end in range(0, len(whole), 97):
        path.write_bytes(whole[:end])
        with pytest.raises(PlanError, match="no plan, or a damaged one"):
            load_plan(path, stencil)
    at = whole.index(b"arrays/0") + 20
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    with pytest.raises(PlanError, match="no plan, or a damaged one"):
        load_plan(path, stencil)


class Runs:
    def __reduce__(self):
        return exec, ("raise SystemExit",)


def test_a_pickle_is_not_run(path):
    path.write_bytes(pickle.dumps(Runs()))
    with pytest.raises(PlanError, match="no plan"):
        load_plan(path, stencil)
    torch.save(Runs(), path)
    with pytest.raises(PlanError, match="no plan"):
        load_plan(path, stencil)
