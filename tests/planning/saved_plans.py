"""Plans to be saved, of every kind, and what it means that two are the same."""

import torch
from torch import nn

import torchjac
from torchjac import batched_jac, hessian, jac

MIX = torch.randn(40, 40) / 6
NARROW = torch.randn(40, 2) / 6
BLOCKS = torch.randn(30, 30) / 20


def stencil(x):
    return (x[1:] - x[:-1]) ** 2


def waisted(x):
    return torch.tanh(torch.tanh(torch.tanh(x @ MIX) @ NARROW) @ NARROW.T) @ MIX


def waisted_blocks(x):
    z = torch.tanh(x.sin().exp().tanh().cos().view(30, 20).exp().sum(1) @ BLOCKS)
    return (z[:, None] * torch.arange(1.0, 21.0)).sin().exp().tanh().cos().flatten()


def branching(x):
    return x.sin() if x.sum() > -1e9 else x.cos()


def energy(x):
    return (stencil(x) ** 2).sum() + x[0].exp()


def of_trees(first, second, *, scale, shift=None):
    left, right = first["left"], first["rest"][0]
    out = {"sum": left.outer(right) * second * scale, "none": None, "count": torch.arange(3)}
    return out, (left.sum(), "words", shift)


class Network(nn.Module):
    def __init__(self, width=5):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, x):
        return self.layers(x)


def x(*shape, dtype=None):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


TREES = (
    ({"left": x(3), "rest": [x(2)]}, x(1)),
    {"scale": 2.5, "shift": (None, slice(1, None), torch.float64)},
)
SPARSE = {"sparsity": "detect", "layout": torch.sparse_coo}
PATH = torchjac.color(
    torchjac.SparsityPattern.from_dense(torch.ones(30, 30).tril(1).triu(-1)),
    "symmetric",
    max_terms=30,
)

# name: the transform, the function, the arguments, keyword arguments
CASES = {
    "dense": (jac, lambda x: torch.outer(x, x).sum(0), (x(4),), {}),
    "found": (jac, stencil, (x(900),), {}),
    "detected": (lambda f: jac(f, sparsity="detect"), stencil, (x(40),), {}),
    "coo": (lambda f: jac(f, **SPARSE), stencil, (x(40),), {}),
    "csr": (
        lambda f: jac(f, sparsity="detect", layout=torch.sparse_csr),
        stencil,
        (x(40),),
        {},
    ),
    "given": (lambda f: jac(f, sparsity=torch.eye(9, dtype=torch.bool)), torch.sin, (x(9),), {}),
    "waist": (jac, waisted, (x(40),), {}),
    "waist of sparse factors": (jac, waisted_blocks, (x(600),), {}),
    "waist of samples": (batched_jac, waisted, (x(7, 40),), {}),
    "trees": (
        lambda f: jac(f, (0, -1), has_aux=True, return_value=True, chunk_size=2),
        of_trees,
        *TREES,
    ),
    "strides": (jac, lambda x: x.flatten() ** 2, (x(4, 3).T,), {}),
    "expanded": (jac, lambda x, y: x * y.sum(), (x(3), x(1).expand(5)), {}),
    "indices": (jac, lambda x, i: x[i] ** 2, (x(4), torch.tensor([2, 0])), {}),
    "params": (lambda f: jac(f, "params"), Network(), (x(3),), {}),
    "double": (lambda f: jac(f, mode="forward", check="never"), stencil, (x(9).double(),), {}),
    "hessian": (hessian, lambda x: (x.sum() ** 3) + x.sin().sum(), (x(5),), {}),
    "hessian, sparse": (lambda f: hessian(f, **SPARSE), energy, (x(30),), {}),
    "hessian, few colours": (
        lambda f: hessian(f, sparsity=PATH),
        lambda x: (x[1:] * x[:-1]).square().sum(),
        (x(30),),
        {},
    ),
    "hessian, modes": (
        lambda f: hessian(f, mode="forward-over-reverse", return_value=True),
        energy,
        (x(5),),
        {},
    ),
    "samples": (batched_jac, lambda x: stencil(x), (x(6, 4),), {}),
    "samples, options": (
        lambda f: batched_jac(f, in_dims=(1, None), per_sample=True, randomness="same"),
        lambda x, w: x * w,
        (x(4, 6), x(4)),
        {},
    ),
    "batch": (lambda f: batched_jac(f, per_sample=False), Network(), (x(6, 3),), {}),
    "untraceable": (jac, branching, (x(5),), {}),
    "untraceable, sparse": (
        lambda f: jac(f, sparsity=torch.eye(9, dtype=torch.bool), layout=torch.sparse_coo),
        branching,
        (x(9),),
        {},
    ),
    "forward inside": (
        lambda f: hessian(f, mode="reverse-over-forward"),
        energy,
        (x(5),),
        {},
    ),
    "identity": (jac, lambda x: (x, x * 2), (x(3),), {}),
    "no elements": (jac, lambda x: x * 2, (x(0),), {}),
    "nested": (jac, jac(lambda x: x**3), (x(3),), {}),
    "inner derivative": (jac, lambda x: torch.func.grad(energy)(x), (x(5),), {}),
    "of torch": (jac, torch.sin, (x(30),), {}),
}


def saved(path, transform, func, *args, tune=False, **kwargs):
    plan = transform(func).plan(*args, tune=tune, **kwargs)
    plan.save(path)
    return plan


def assert_same(plan, loaded):
    for name in ("mode", "passes", "chunk_size", "pattern"):
        assert getattr(plan, name) == getattr(loaded, name)
    assert (plan.coloring is None) == (loaded.coloring is None)
    if plan.coloring is not None:
        assert plan.coloring == loaded.coloring
    assert [c.name for c in plan._design.considered] == [c.name for c in loaded._design.considered]
    assert plan._design.chosen.name == loaded._design.chosen.name
    assert (plan._program is None) == (loaded._program is None)
    if plan._program is not None:
        assert plan._program.num_operations == loaded._program.num_operations


def dense(result):
    leaves, _ = torchjac.foundations.pytree.flatten(result)
    return [
        t.to_dense() if isinstance(t, torch.Tensor) and t.layout is not torch.strided else t
        for t in leaves
    ]
