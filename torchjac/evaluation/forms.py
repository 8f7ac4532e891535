"""Forms: what is left of A·v for many seeds v, when only a diagonal or a trace is wanted.

    seeds -> products A·v -> v ∗ A·v  (the diagonal)  or  v·(A·v)  (the trace)  -> their sum

A is a Jacobian whose outputs are like its inputs, or a Hessian. No product outlives its chunk, so a form
takes the memory of its result and of one chunk, however many seeds there are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from torchjac.evaluation.batching import vectorised
from torchjac.evaluation.engines import Direction, Engine, linearize
from torchjac.evaluation.functions import Jacobian
from torchjac.evaluation.programs.forward_laplacian import ForwardLaplacian
from torchjac.evaluation.progress import metered
from torchjac.evaluation.repetitions import Repetitions
from torchjac.evaluation.surroundings import Draw, compiling, is_out_of_memory
from torchjac.foundations.seeds import Chunk, Seeds

__all__ = [
    "Form",
    "HessianForm",
    "JacobianForm",
    "Kind",
    "LaplacianForm",
    "ProductForm",
    "contracted",
    "flat_products",
]

Kind = Literal["diagonal", "trace"]


class Form(ABC):
    """What a chunk of seeds over the inputs contributes to each leaf of the result."""

    engine: Engine | None = None
    tensors: Sequence[Tensor] = ()
    """What the function is evaluated at."""

    @property
    def outputs(self) -> Sequence[Tensor]:
        """Those of the function, if it was evaluated itself; in forward mode, once a pass is made."""
        return ()

    @abstractmethod
    def each(self, chunk: Chunk, size: int) -> list[Tensor]:
        """For every leaf of the result ``(size, *leaf)``."""

    def summed(self, chunk: Chunk, size: int) -> list[Tensor]:
        """The same, summed over the seeds."""
        return [part.sum(0) for part in self.each(chunk, size)]

    @property
    def evaluates_anew(self) -> bool:
        """Whether every chunk evaluates the function."""
        return self.engine is None or self.engine.evaluates_anew


class ProductForm(Form):
    """A form that has the products A·v themselves."""

    kind: Kind
    engine: Engine

    @abstractmethod
    def multiplied(self, chunk: Chunk, size: int) -> list[Tensor | None]:
        """For every leaf of the inputs ``(size, *leaf)``; None for zeros."""

    def each(self, chunk: Chunk, size: int) -> list[Tensor]:
        return _paired(chunk, self.multiplied(chunk, size), self.engine.primals, size, self.kind)


class JacobianForm(ProductForm):
    """Of a Jacobian: J·v or vᵀ·J, which have the same diagonal."""

    def __init__(self, engine: Engine, kind: Kind) -> None:
        self.engine, self.tensors, self.kind = engine, engine.primals, kind

    @property
    def outputs(self) -> Sequence[Tensor]:
        return self.engine.values

    def multiplied(self, chunk: Chunk, size: int) -> list[Tensor | None]:
        return _products(self.engine, chunk, size)


class HessianForm(ProductForm):
    """Of the Hessian of every output.

    Args:
        gradient: the inner Jacobian, whose outputs are ``J[output][input]``, outputs outermost.
        primals: where.
        direction: of the outer derivative.
        kind: a diagonal is that of a single output.
    """

    def __init__(
        self, gradient: Jacobian, primals: Sequence[Tensor], direction: Direction, kind: Kind
    ) -> None:
        self.engine, self.kind = linearize(gradient, primals, direction), kind
        self.tensors, self._gradient = self.engine.primals, gradient

    @property
    def outputs(self) -> Sequence[Tensor]:
        return self.engine.carried[: self._gradient.num_values]

    def multiplied(self, chunk: Chunk, size: int) -> list[Tensor | None]:
        if self.engine.direction == "reverse":
            return self._pulled(chunk, size, 0, 0)
        return _products(self.engine, chunk, size)

    def each(self, chunk: Chunk, size: int) -> list[Tensor]:
        found: list[Tensor | None] = []
        if self.engine.direction == "forward":
            found = self.multiplied(chunk, size)
        if len(self.outputs) == 1 and self.outputs[0].numel() == 1:
            found, primals = found or self.multiplied(chunk, size), self.engine.primals
            parts = _paired(chunk, found, primals, size, self.kind)
            shape = self.outputs[0].shape
            return parts if self.kind == "diagonal" else [parts[0].reshape(size, *shape)]
        if not found:
            return [self._by_elements(chunk, size, o) for o in range(len(self.outputs))]
        n = len(self.engine.primals)
        return [
            self._by_rows(chunk, found[o * n : o * n + n], size, o)
            for o in range(len(self.outputs))
        ]

    def _by_rows(
        self, chunk: Chunk, found: Sequence[Tensor | None], size: int, output: int
    ) -> Tensor:
        shape = self.outputs[output].shape
        total = self.engine.primals[0].detach().new_zeros(size, *shape)
        for leaf, product in enumerate(found):
            if product is not None and leaf in chunk:
                # (k, *out, *in) · (k, *in) -> (k, m, n) @ (k, n, 1) -> (k, *out)
                matrix = product.reshape(size, shape.numel(), chunk[leaf][0].numel())
                column = chunk[leaf].reshape(size, -1, 1).to(matrix.dtype)
                total = total + (matrix @ column).reshape(total.shape)
        return total

    def _by_elements(self, chunk: Chunk, size: int, output: int) -> Tensor:
        """In reverse mode every output element takes passes of its own."""
        shape, primals = self.outputs[output].shape, self.engine.primals
        rows: list[Tensor] = []
        for element in range(shape.numel()):
            found = self._pulled(chunk, size, output, element)
            rows += _paired(chunk, found, primals, size, "trace")
        # [(k,)] of all elements -> (k, *out)
        stacked = torch.stack(rows, 1) if rows else primals[0].detach().new_zeros(size, 0)
        return stacked.reshape(size, *shape)

    def _pulled(self, chunk: Chunk, size: int, output: int, element: int) -> list[Tensor | None]:
        n, shape = len(self.engine.primals), self.outputs[output].shape
        seeds = {
            output * n + leaf: _at_element(stack, shape, element) for leaf, stack in chunk.items()
        }
        return _products(self.engine, seeds, size)


class LaplacianForm(Form):
    """Traces of Hessians, pushed forward through a traced function."""

    def __init__(
        self,
        run: ForwardLaplacian,
        tensors: Sequence[Tensor],
        captured: Sequence[Tensor],
    ) -> None:
        self._run, self.tensors, self._captured = run, tensors, captured

    def summed(self, chunk: Chunk, size: int) -> list[Tensor]:
        del size
        return self._pushed(chunk)

    def each(self, chunk: Chunk, size: int) -> list[Tensor]:
        del size

        def alone(one: Chunk) -> list[Tensor]:
            return self._pushed({leaf: seed[None] for leaf, seed in one.items()})

        return [part for part in vectorised(alone, chunk) if part is not None]

    def _pushed(self, chunk: Chunk) -> list[Tensor]:
        directions = [chunk.get(leaf) for leaf in range(self._run.num_primals)]
        found = self._run(self.tensors, self._captured, directions)
        return [
            torch.zeros(shape, dtype=dtype, device=device) if part is None else part
            for part, (shape, dtype, device) in zip(found, self._run.kinds, strict=True)
        ]


def contracted(
    form: Form, seeds: Seeds, size: int | None, *, each: bool = False, shown: str | None = None
) -> list[Tensor]:
    """The contributions of all ``seeds``, summed, or with ``each`` stacked ``(k, *leaf)``.

    On running out of memory the chunks are halved and the same one tried again. A form that evaluates its
    function in every chunk finds the random state of the first. Progress is shown under a name, if any.
    """
    total, start = seeds.total, 0
    size = total if size is None else min(size, total)
    anew = form.evaluates_anew and size < total and not compiling()
    draw = Draw(form.tensors) if anew else None
    found: list[list[Tensor]] = []
    seen = Repetitions()
    with metered(shown, total) as meter:
        while start < total:
            stop = min(start + size, total)
            try:
                chunk = seeds.chunk(start, stop)
                parts = (form.each if each else form.summed)(chunk, stop - start)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or not is_out_of_memory(error):
                    raise
                size = math.ceil(size / 2)
                draw = draw or (Draw(form.tensors) if form.evaluates_anew else None)
                continue
            meter.update(stop - start)
            if draw is not None and form.engine is not None:
                seen.see(form.engine.values)
            if found and not each:
                parts = [one + other for one, other in zip(found.pop(), parts, strict=True)]
            found.append(parts)
            start = stop
            if draw is not None and start < total:
                draw.again()
    seen.refuse_others()
    return [torch.cat(pieces) if each else pieces[0] for pieces in zip(*found, strict=True)]


def flat_products(form: ProductForm, seeds: Seeds, size: int | None) -> Tensor:
    """A·v for all seeds, as the rows of a matrix ``(k, n)``."""
    primals, total = form.engine.primals, seeds.total
    size, rows = total if size is None else size, []
    for start in range(0, total, size):
        stop = min(start + size, total)
        found = form.multiplied(seeds.chunk(start, stop), stop - start)
        # (k, *leaf) of all leaves -> (k, n)
        flat = [
            primal.detach().new_zeros(stop - start, primal.numel())
            if product is None
            else product.reshape(stop - start, primal.numel())
            for product, primal in zip(found, primals, strict=True)
        ]
        rows.append(torch.cat(flat, 1))
    return torch.cat(rows)


def _products(engine: Engine, chunk: Chunk, size: int) -> list[Tensor | None]:
    """The products of a stack of seeds; a single one does not use vmap."""
    if engine.direction == "reverse":
        chunk = {leaf: stack.to(engine.values[leaf].dtype) for leaf, stack in chunk.items()}
    if size > 1:
        return engine.multiply_all(chunk, last=False)
    one = {leaf: stack[0] for leaf, stack in chunk.items()}
    return [None if row is None else row[None] for row in engine.multiply(one, last=False)]


def _paired(
    chunk: Chunk,
    found: Sequence[Tensor | None],
    primals: Sequence[Tensor],
    size: int,
    kind: Kind,
) -> list[Tensor]:
    """V ∗ A·v leaf by leaf, or the sum of that over all leaves."""
    parts = []
    for leaf, (product, primal) in enumerate(zip(found, primals, strict=True)):
        if product is None or leaf not in chunk:
            parts.append(primal.detach().new_zeros(size, *primal.shape))
        else:
            # (k, 1, *leaf) of the Hessian of an output of shape (1,) -> (k, *leaf)
            own = chunk[leaf]
            parts.append(own * product.reshape(own.shape).to(own.dtype))
    if kind == "diagonal":
        return parts
    # (k, *leaf) -> (k,)
    sums = [part.reshape(size, -1).sum(1) for part in parts]
    return [sum(sums[1:], sums[0])]


def _at_element(stack: Tensor, shape: torch.Size, element: int) -> Tensor:
    """Seeds for the rows of one output: ``(k, *in)`` to ``(k, *out, *in)``, zero but at ``element``."""
    # (m,) -> (*out, 1, ..., 1)
    unit = torch.zeros(shape.numel(), dtype=stack.dtype, device=stack.device)
    unit[element] = 1
    unit = unit.reshape((*shape, *[1] * (stack.dim() - 1)))
    return stack.reshape(len(stack), *[1] * len(shape), *stack.shape[1:]) * unit
