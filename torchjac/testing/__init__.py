from torchjac.testing.checks import check_hessian, check_jac
from torchjac.testing.finite_difference import finite_difference_jac
