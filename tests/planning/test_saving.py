"""`Plan.save` writes words and numbers alone, and refuses what they cannot say."""

import json
import zipfile
from collections import namedtuple

import pytest
import torch

import torchjac
from tests.sparse import DETECTS
from torchjac.errors import PlanError

if not DETECTS:
    pytest.skip("plans take torch 2.1", allow_module_level=True)

from tests.planning.saved_plans import saved, waisted, x
from torchjac import jac
from torchjac.planning.plans import packing


def test_a_pattern_of_captured_values_is_not_saved_without_a_trace(path):
    band = torch.eye(3)
    held = [band]

    def func(x):
        held.append(len(held))  # watched, and changed: not to be traced
        return held[0] @ x

    plan = jac(func, sparsity="detect").plan(x(3))
    assert plan._program is None
    with pytest.raises(PlanError, match=r"save: the pattern holds for the values .* sparsity=plan"):
        plan.save(path)


Pair = namedtuple("Pair", "one two")


@pytest.mark.parametrize("thing", [object(), Pair(1, 2), {1, 2}, b"bytes", len])
def test_arguments_that_are_no_plain_values_are_not_saved(thing, path):
    plan = jac(lambda x, y: x.sin()).plan(x(3), thing)
    message = (
        rf"save: there is a {type(thing).__name__} among the arguments or options, which a file"
    )
    with pytest.raises(PlanError, match=message):
        plan.save(path)
    assert not path.exists()


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 2.5, float("inf"), "words", 1 + 2j, slice(1, None, 2), ...),
        *(torch.float16, torch.device("cpu"), torch.strided, torch.channels_last, torch.Size([2])),
        *(
            [1, (2, [])],
            {"a": {1: None}, (1, 2): [3.0]},
            __import__("collections").OrderedDict(a=1),
        ),
        *(torchjac.SparsityPattern.from_dense(torch.eye(3)), (), []),
    ],
    ids=repr,
)
def test_plain_values_come_back_as_they_were(value, path):
    packer = packing.Packer("here")
    packer.write(path, packer.pack(value))
    unpacker = packing.Unpacker(path)
    got = unpacker.unpack(unpacker.manifest)
    assert got == value
    assert type(got) is type(value)


def test_a_tensor_comes_back_as_a_stand_in(path):
    packer = packing.Packer("here")
    tensors = [x(3, 4).T, x(2).half().expand(3, 2), torch.arange(3), torch.tensor(1 + 1j), x(0, 2)]
    packer.write(path, packer.pack(tensors))
    unpacker = packing.Unpacker(path)
    for tensor, other in zip(tensors, unpacker.unpack(unpacker.manifest), strict=True):
        assert (tensor.shape, tensor.stride(), tensor.dtype) == (
            other.shape,
            other.stride(),
            other.dtype,
        )
    assert not torch.equal(tensors[0], other)


def test_a_file_holds_words_and_numbers_alone(path):
    saved(path, jac, waisted, x(40))
    with zipfile.ZipFile(path) as archive:
        assert all(n == "plan.json" or n.startswith("arrays/") for n in archive.namelist())
        json.loads(archive.read("plan.json"))
