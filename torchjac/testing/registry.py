"""The operators that random programs are made of: one line each.

To add an operator, add a line to one of the tables: the strategies draw it, and the tests check it,
from there. It must be defined, and where it is called smooth be smooth, for all values; ``bound``
says how large its result can get, so that no composition overflows.
"""

from __future__ import annotations

import math

import torch

from torchjac.testing import choices as c
from torchjac.testing.operators import Operator as Op

__all__ = ["OPERATORS"]

# Before 2.4 some operators had no forward mode.
_OLD = tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 4)
_F = "torch.nn.functional."
_EYE = "torch.eye({0}.shape[0], dtype={0}.dtype, device={0}.device)"
# Diagonally dominant, so that its inverse is no larger than one.
_DOMINANT = "torch.tanh({0}) + 2 * {0}.shape[0] * " + _EYE
_INDEX = "torch.tensor({indices}, device={0}.device)"
_MASK = "torch.tensor({mask}, device={0}.device)"

_ELEMENTWISE = (
    Op("sin", "torch.sin({0})", bound=c.at_most(1)),
    Op("cos", "torch.cos({0})", bound=c.at_most(1)),
    Op("tanh", "torch.tanh({0})", bound=c.at_most(1)),
    Op("sigmoid", "torch.sigmoid({0})", bound=c.at_most(1)),
    Op("atan", "torch.atan({0})", bound=c.at_most(2)),
    Op("erf", "torch.erf({0})", bound=c.at_most(1)),
    Op("exp", "torch.exp({0})", bound=c.of(math.exp)),
    Op("expm1", "torch.expm1({0})", bound=c.of(math.exp)),
    Op("log", "torch.log(1 + {0} * {0})"),
    Op("sqrt", "torch.sqrt(1 + {0} * {0})", bound=c.of(lambda b: 1 + b)),
    Op("rsqrt", "torch.rsqrt(1 + {0}.square())", bound=c.at_most(1)),
    Op("reciprocal", "1 / (1 + {0}.square())", bound=c.at_most(1)),
    Op("square", "{0}.square()", bound=c.of(lambda b: b * b)),
    Op("cube", "{0} ** 3", bound=c.of(lambda b: b**3)),
    Op("neg", "-{0}"),
    Op("affine", "1.5 - 0.5 * {0}", bound=c.of(lambda b: 1.5 + b)),
    Op("softplus", _F + "softplus({0})", bound=c.of(lambda b: 1 + b)),
    Op("silu", _F + "silu({0})"),
    Op("gelu", _F + "gelu({0})"),
    Op("logsigmoid", _F + "logsigmoid({0})", bound=c.of(lambda b: 1 + b), trap=2 * _OLD),
    Op("ones_like", "torch.ones_like({0})", bound=c.at_most(1)),
    Op("abs", "torch.abs({0})", smooth=False),
    Op("relu", "torch.relu({0})", smooth=False),
    Op("leaky_relu", _F + "leaky_relu({0}, 0.1)", smooth=False),
    Op("elu", _F + "elu({0})", smooth=False),
    Op("clamp", "torch.clamp({0}, -0.5, 0.5)", bound=c.at_most(1), smooth=False),
    Op("sign", "torch.sign({0})", bound=c.at_most(1), smooth=False),
    Op("where_zero", "torch.where({0} == 0, {0} * {0}, torch.sin({0}))", smooth=False),
)

_SEVERAL = (
    Op("add", "{0} + {1}", c.broadcast, bound=c.total),
    Op("sub", "{0} - {1}", c.broadcast, bound=c.total),
    Op("mul", "{0} * {1}", c.broadcast, bound=c.product),
    Op("div", "{0} / (1 + {1}.square())", c.broadcast),
    Op(
        "hypot",
        "torch.hypot({0}, 1 + {1}.square())",
        c.broadcast,
        bound=lambda n, a, b: a + 1 + b * b,
    ),
    Op("atan2", "torch.atan2({0}, 1 + {1}.square())", c.broadcast, bound=c.at_most(2)),
    Op("logaddexp", "torch.logaddexp({0}, {1})", c.broadcast, bound=lambda n, a, b: 1 + a + b),
    Op("lerp", "torch.lerp({0}, {1}, 0.25)", c.same, bound=c.total),
    Op("addcmul", "torch.addcmul({0}, {1}, {2})", c.broadcast, bound=lambda n, x, y, z: x + y * z),
    Op("where_mask", "torch.where(" + _MASK + ", {0}, {1})", c.same_filled, c.mask),
    Op("maximum", "torch.maximum({0}, {1})", c.broadcast, smooth=False),
    Op("minimum", "torch.minimum({0}, {1})", c.broadcast, smooth=False),
    Op("where", "torch.where({0} > {1}, {0}, -{1})", c.broadcast, smooth=False),
    Op("cat", "torch.cat([{0}, {1}], {dim})", c.same_rank_1, c.dim),
    Op("cat_same", "torch.cat([{0}, {0}], {dim})", c.rank(1), c.dim),
    Op("stack", "torch.stack([{0}, {1}], {dim})", c.same, c.new_dim),
    Op("outer", "torch.outer({0}, {1})", c.rank(1, 1), bound=c.product),
    Op("matmul", "{0} @ {1}", c.matmul, bound=c.summed),
    Op("linear", _F + "linear({0}, {1})", c.linear, bound=c.summed, trap=2 * _OLD),
    Op("inner", "torch.einsum('...i,...i->...', {0}, {1})", c.same_rank_1, bound=c.summed),
    Op("conv1d", _F + "conv1d({0}[None, None], {1}[None, None])[0, 0]", c.conv, bound=c.summed),
)

_REDUCTIONS = (
    Op("sum", "{0}.sum()", bound=c.summed),
    Op("sum_dim", "{0}.sum({dim}, keepdim={keep})", c.rank(1), c.dim_keep, c.summed),
    Op("mean", "{0}.mean()", c.nonempty),
    Op("mean_dim", "{0}.mean({dim}, keepdim={keep})", c.filled, c.dim_keep),
    Op("var", "{0}.var({dim}, unbiased=False)", c.filled, c.dim, c.of(lambda b: b * b)),
    Op("logsumexp", "{0}.logsumexp({dim})", c.filled, c.dim, c.log_sum),
    Op("softmax", "{0}.softmax({dim})", c.filled, c.dim, c.at_most(1)),
    Op("log_softmax", "{0}.log_softmax({dim})", c.filled, c.dim, c.log_sum),
    Op("cumsum", "{0}.cumsum({dim})", c.rank(1), c.dim, c.summed),
    Op(
        "logcumsumexp", "{0}.logcumsumexp({dim})", c.filled, c.dim, c.log_sum, trap=1 if _OLD else 2
    ),
    Op("trace", "{0}.trace()", c.square, bound=c.summed),
    Op("norm", "torch.linalg.vector_norm({0})", bound=c.summed, smooth=False),
    Op("norm_dim", "{0}.norm(dim={dim})", c.filled, c.dim, c.summed, smooth=False),
    Op("norm_1", "{0}.norm(p=1)", bound=c.summed, smooth=False),
    Op("std", "{0}.std({dim}, unbiased=False)", c.filled, c.dim, smooth=False),
    Op("amax", "{0}.amax({dim}, keepdim={keep})", c.filled, c.dim_keep, smooth=False),
    Op("amin", "{0}.amin()", c.nonempty, smooth=False),
    Op("max", "{0}.max({dim}).values", c.filled, c.dim, smooth=False),
    Op("sort", "{0}.sort({dim}).values", c.filled, c.dim, smooth=False),
    Op("median", "{0}.median({dim}).values", c.filled, c.dim, smooth=False),
)

_VIEWS = (
    Op("flatten", "{0}.flatten()"),
    Op("unsqueeze", "{0}.unsqueeze({dim})", fields=c.new_dim),
    Op("squeeze", "{0}.squeeze({dim})", c.rank(1), c.dim),
    Op("transpose", "{0}.transpose({first}, {second})", c.rank(1), c.two_dims),
    Op("permute", "{0}.permute({order})", fields=c.order),
    Op("flip", "{0}.flip({dim})", c.rank(1), c.dim),
    Op("roll", "{0}.roll(1, {dim})", c.filled, c.dim),
    Op("expand", "{0}.expand({count}, *{0}.shape)", fields=c.count),
    Op("repeat", "{0}.repeat({count}, 1)", c.rank(0, 1), c.count),
    Op("repeat_interleave", "{0}.repeat_interleave(2, {dim})", c.rank(1), c.dim),
    Op("select", "{0}.select({dim}, {index})", c.filled, c.position),
    Op("narrow", "{0}.narrow({dim}, {start}, {length})", c.rank(1), c.window),
    Op("every_second", "{0}[..., ::2]", c.rank(1)),
    Op("row", "{0}[{index}]", c.filled, c.row),
    Op("unbind", "{0}.unbind({dim})[{index}]", c.filled, c.position),
    Op("chunk", "{0}.chunk(2, {dim})[-1]", c.filled, c.dim),
    Op("unfold", "{0}.unfold({dim}, 1, 1)", c.filled, c.dim, trap=1),
    Op("diagonal", "{0}.diagonal()", c.rank(2, 2)),
    Op("diag_embed", "torch.diag_embed({0})", c.rank(1)),
    Op("tril", "{0}.tril()", c.rank(2)),
    Op("triu", "{0}.triu(1)", c.rank(2)),
    Op("pad", _F + "pad({0}, (1, 2))", c.rank(1)),
)

_INDEXING = (
    Op("take_rows", "{0}[" + _INDEX + "]", lambda s: c.filled(s) and len(s) == 1, c.indices),
    Op("index_select", "{0}.index_select({dim}, " + _INDEX + ")", c.filled, c.indices),
    Op("take", "{0}.take(" + _INDEX + ")", c.nonempty, c.flat_indices, trap=1),
    Op("gather", "{0}.gather({dim}, " + _INDEX + ")", c.filled, c.grid),
    Op(
        "scatter_add",
        "{0}.scatter_add({dim}, " + _INDEX + ", {1})",
        c.same_filled,
        c.grid,
        lambda n, a, b: a + n * b,
    ),
    Op(
        "index_add",
        "{0}.index_add({dim}, " + _INDEX + ", {1})",
        c.same_filled,
        c.permutation,
        c.total,
    ),
    Op("index_copy", "{0}.index_copy({dim}, " + _INDEX + ", {1})", c.same_filled, c.permutation),
    Op("masked_fill", "{0}.masked_fill(" + _MASK + ", 0.5)", c.filled, c.mask),
)

_IN_PLACE = (
    Op("mul_", "{out} = {0}.clone(); {out}.mul_({1})", c.into, bound=c.product),
    Op("add_", "{out} = {0}.clone(); {out}.add_({1}, alpha=0.5)", c.into, bound=c.total),
    Op("sin_", "{out} = {0} + 1; {out}.sin_()", bound=c.at_most(1)),
    Op("copy_", "{out} = torch.zeros_like({0}); {out}.copy_({0})"),
    Op("set_row", "{out} = {0}.clone(); {out}[{index}] = {1}", c.into_row, c.row),
    Op("fill_row", "{out} = {0}.clone(); {out}[{index}] = 0.5", c.filled, c.row),
    Op("scale_slice", "{out} = {0}.clone(); {out}[..., 0].mul_(0.5)", c.filled),
    # Writing through a view, and relu_, are refused by forward mode inside forward mode.
    Op(
        "scale_view",
        "{out} = {0}.contiguous() * 1; {out}.view(-1)[0].mul_(0.5)",
        c.nonempty,
        trap=2,
    ),
    Op("relu_", "{out} = {0} * 1; {out}.relu_()", smooth=False, trap=2),
)

_LINEAR_ALGEBRA = (
    Op("inv", "torch.linalg.inv(" + _DOMINANT + ")", c.square, bound=c.at_most(1)),
    Op(
        "cholesky",
        "torch.linalg.cholesky({0} @ {0}.T + " + _EYE + ")",
        c.square,
        bound=c.of(lambda b: 1 + 2 * b),
    ),
    # Second derivatives with forward mode inside are wrong.
    Op("solve", "torch.linalg.solve(" + _DOMINANT + ", {1})", c.solve, bound=c.total, trap=2),
    Op("det", "torch.linalg.det((" + _DOMINANT + ") / 6)", c.square, bound=c.at_most(3), trap=2),
    Op(
        "slogdet",
        "torch.linalg.slogdet(" + _DOMINANT + ")[1]",
        c.square,
        bound=c.at_most(9),
        trap=2,
    ),
    Op("prod", "{0}.prod({dim})", c.filled, c.dim, c.power),
    Op("cumprod", "{0}.cumprod({dim})", c.filled, c.dim, c.power, trap=2),
    Op("layer_norm", _F + "layer_norm({0}, {0}.shape[-1:], eps=1.0)", c.filled, trap=2),
    # The batching rule of its derivative is wrong, and there is no forward mode.
    Op(
        "cdist",
        "torch.cdist({0}, {1} + 9)",
        c.point_sets,
        bound=lambda n, a, b: n * (a + b + 9),
        trap=1,
    ),
)

OPERATORS: tuple[Op, ...] = (
    *_ELEMENTWISE,
    *_SEVERAL,
    *_REDUCTIONS,
    *_VIEWS,
    *_INDEXING,
    *_IN_PLACE,
    *_LINEAR_ALGEBRA,
)
"""Every operator; simple ones first, so that failing programs shrink towards them."""
