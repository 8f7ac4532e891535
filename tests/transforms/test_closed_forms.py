"""Every case in every mode and chunking gives what was written down by hand."""

import pytest
import torch

import torchjac
from tests.cases import CASES, Case
from torchjac.planning.modes import HESSIAN_MODES, MODES

WITH_HESSIAN = [case for case in CASES if case.hessian is not None]


@pytest.mark.parametrize("chunk_size", ["auto", None, 1, 2])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_jacobian(case: Case, mode: str, chunk_size: object) -> None:
    got = torchjac.jac(case.func, case.argnums, mode=mode, chunk_size=chunk_size)(*case.args)
    torch.testing.assert_close(got, case.jacobian)


@pytest.mark.parametrize("chunk_size", ["auto", 1, 3])
@pytest.mark.parametrize("mode", HESSIAN_MODES)
@pytest.mark.parametrize("case", WITH_HESSIAN, ids=str)
def test_hessian(case: Case, mode: str, chunk_size: object) -> None:
    got = torchjac.hessian(case.func, case.argnums, mode=mode, chunk_size=chunk_size)(*case.args)
    torch.testing.assert_close(got, case.hessian)


@pytest.mark.parametrize("case", WITH_HESSIAN, ids=str)
def test_jacobian_of_jacobian_is_hessian(case: Case) -> None:
    got = torchjac.jac(torchjac.jac(case.func, case.argnums), case.argnums)(*case.args)
    torch.testing.assert_close(got, case.hessian)
