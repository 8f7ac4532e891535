"""Tables of operations by name: a name that is misspelt would be found by nobody."""

import importlib

import pytest
import torch

NEW = hasattr(torch, "compiler")
TABLES = [
    ("elements", "_MOVES"),
    ("elements", "_AMONG_ZEROS"),
    ("elements", "_RESHAPES"),
    ("elementwise", "_ELEMENTWISE_BACKWARDS"),
    ("linearity", "FACTORS"),
    ("linearity", "INDEPENDENT"),
    ("noops", "RESHAPES"),
    ("noops", "_SAME"),
    ("noops", "_COPIES"),
    ("noops", "_PERMUTES"),
    ("noops", "_BROADCASTING"),
    ("noops", "_NEUTRAL"),
    ("blocks", "_RULES"),
    ("contractions", "PRODUCTS"),
    ("propagation", "_RULES"),
    ("seedwise", "_SUMS"),
    ("seedwise", "_PRODUCTS"),
    ("seedwise", "_FIRST"),
    ("seedwise", "_FILLS"),
    ("seedwise", "_OTHERS"),
    ("simplify", "_SHAPED_IN_PLACE"),
    ("simplify", "_SECRET_VIEWS"),
    ("straight_line", "_MOVES"),
    ("straight_line", "_FORMULAS"),
    ("zeros", "_SOURCES"),
    ("zeros", "_MOVES"),
    ("zeros", "_LINEAR"),
    ("zeros", "_RULES"),
]


def is_known(name):
    word = name.removeprefix("aten::")
    return any(hasattr(space, word) for space in (torch.ops.aten, torch.ops.prims))


@pytest.mark.skipif(not NEW, reason="nothing is traced before torch 2.1")
@pytest.mark.parametrize(("module", "table"), TABLES)
def test_every_name_is_that_of_an_operation(module, table):
    names = getattr(importlib.import_module(f"torchjac.evaluation.programs.{module}"), table)
    assert names
    assert [name for name in names if not is_known(name)] == []
