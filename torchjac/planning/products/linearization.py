"""A function evaluated once at a point: products with its Jacobian from either side."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchjac.errors import DerivativeMismatchWarning, TorchjacError, UnsupportedError
from torchjac.evaluation.cancellation import rounding_of_terms
from torchjac.evaluation.engines import Engine, FlatFunction, Graph, Push, linearize
from torchjac.evaluation.evaluator import run
from torchjac.evaluation.gradients import Gradients
from torchjac.evaluation.graphs import describe
from torchjac.evaluation.probes import are_alike
from torchjac.evaluation.surroundings import (
    Draw,
    compiling,
    exclusively,
    has_values,
    inside_transform,
    without_transforms,
)
from torchjac.evaluation.transposed import transposed
from torchjac.foundations.compiler import eagerly
from torchjac.foundations.seeds import IdentitySeeds
from torchjac.foundations.spaces import FlatSeeds, Space
from torchjac.planning.chunks import bytes_per_pass, choose_chunk_size
from torchjac.planning.fallback import is_of_a_backward, is_refusal, reason_of, warn_user
from torchjac.planning.look import evaluate_plainly
from torchjac.planning.memory import Known
from torchjac.planning.products.gradient_differences import GradientDifferences
from torchjac.planning.products.product_checks import Witness, combination_agrees, random_matrix
from torchjac.planning.products.routes import Agrees, Memory, Route, Rung, is_telling

__all__ = ["Linearization"]


class Linearization:
    """J and Jᵀ of a function at a point, evaluated once, as maps of flat matrices.

    ==========  =================================================  =======================
    product     ways, best first                                   evaluations of func
    ==========  =================================================  =======================
    Jᵀ·U        a backward pass                                    none
    J·V         a backward pass over a recorded backward pass      none
    ..          a forward pass                                     one
    ..          a plain backward pass for every row                none
    H·V         a backward pass over the gradient                  none
    ..          a forward pass over the gradient                   one
    ==========  =================================================  =======================

    Threads may multiply at once: the graph is neither freed nor changed. Those that record the second
    graph, or fall back, at the same time do so twice, and either is right.

    Args:
        name: the call that the user made, for messages.
        function: what to evaluate.
        primals: where.
        known: what operators of this signature have found out before.
    """

    def __init__(
        self,
        name: str,
        function: FlatFunction,
        primals: Sequence[Tensor],
        known: Known,
    ) -> None:
        self._name, self._function, self._primals = name, function, primals
        self._draw = None if compiling() else Draw(primals)
        self.engine = self._evaluated()
        self.inputs, self.outputs = Space(primals), Space(self.engine.values)
        self._across: Engine | None = None
        self._witness: Witness | None = None
        self._largest: int | None = None
        self._memory = Memory(known, set())

    def _evaluated(self) -> Engine:
        """The one evaluation; where the gradients of a function are refused, that is said as by `solve`."""
        try:
            return linearize(self._function, self._primals, "reverse")
        except TorchjacError:
            raise
        except Exception as error:
            if self._draw is None or not is_refusal(error) or is_of_a_backward(error):
                raise
            with self._draw.aside():  # if it raises there too, the exception is the function's own
                plain = getattr(self._function, "function", self._function)
                evaluate_plainly(lambda primals: plain(primals)[0], self._primals)
            raise UnsupportedError(
                f"{self._name}: PyTorch cannot differentiate this function ({reason_of(error)}). The "
                f"function itself runs: replace the op that is named."
            ) from error

    @property
    def keeps_graph(self) -> bool:
        """Whether products made now are differentiable by what the function was evaluated with."""
        return self.engine.keeps_graph and (
            torch.is_grad_enabled() or not isinstance(self.engine, Graph)
        )

    def pull(self, matrix: Tensor) -> Tensor:
        """Jᵀ·U, from ``(m, k)`` to ``(n, k)``."""
        return self._along("Jᵀ·U", [self._back_rung], self._agrees_plainly, matrix)

    def push(self, matrix: Tensor) -> Tensor:
        """J·V, from ``(n, k)`` to ``(m, k)``."""
        over = Rung("a backward pass over the backward pass", self._over)
        rows = Rung(
            "a plain backward pass for every row", self._by_rows, is_plain=True, vmaps=False
        )
        rungs = [over, self._forward_rung, rows]
        return self._along("J·V", rungs, self._agrees_with_witness, matrix)

    def both(self, matrix: Tensor) -> Tensor:
        """Jᵀ·V where J is known to be symmetric, so that J·V will do."""
        rungs = [self._back_rung, self._forward_rung]
        return self._along("H·V", rungs, self._agrees_plainly, matrix)

    @property
    def _back_rung(self) -> Rung:
        return Rung("a backward pass", self._back, is_plain=True)

    @property
    def _forward_rung(self) -> Rung:
        return Rung("a forward pass, which evaluates func again", self._forward)

    def _along(self, side: str, rungs: Sequence[Rung], agrees: Agrees, matrix: Tensor) -> Tensor:
        if compiling() and isinstance(self.engine, Graph):
            raise UnsupportedError(
                f"{self._name}: the operator was made outside of the function that torch.compile traces, and "
                f"its graph cannot be traced. Make it inside, or multiply outside."
            )
        if isinstance(self.engine, Graph):
            return eagerly(Linearization._multiplied)(self, side, rungs, agrees, matrix)
        return self._multiplied(side, rungs, agrees, matrix)

    def _multiplied(
        self, side: str, rungs: Sequence[Rung], agrees: Agrees, matrix: Tensor
    ) -> Tensor:
        comparable = has_values([matrix, *self.engine.values])
        source = self.outputs if side == "Jᵀ·U" else self.inputs
        # Put together for each product: kept, it would be a cycle, and the graph freed late.
        route = Route(
            self._name,
            side,
            rungs,
            lambda columns: random_matrix(source.size, columns, like=source),
            agrees if comparable else None,
            self._memory,
        )
        if comparable and isinstance(self._function, Gradients):
            self._compare_with_differences(self._function, route, source)
        return route.multiply(matrix)

    def _compare_with_differences(self, gradients: Gradients, route: Route, source: Space) -> None:
        """Hold a Hessian against a difference of gradients, once, whichever side is asked for first.

        The other ways are held against plain backward passes; this is what finds fault with those.
        """
        check = "a difference of gradients"
        if self._draw is None or not self._memory.wants(check):
            return
        values = self.engine.carried[: gradients.num_values]
        differences = GradientDifferences(gradients, self._primals, values)
        pulled = source is self.outputs
        seeds = differences.cotangents if pulled else differences.tangents
        with torch.no_grad():
            # (*leaf), leaf by leaf -> (size, 1) -> its product (size, 1) -> (*leaf), leaf by leaf
            product = route.multiply(source.join([seed[None] for seed in seeds]).T)
            target = self.inputs if pulled else self.outputs
            leaves = [stack[0] for stack in target.split(product.T)]
            change = leaves if pulled else differences.contracted(leaves)
            agrees = self._agrees_within(functools.partial(differences.agree, change, self._draw))
        self._memory.settle(check, telling=is_telling(product) or not agrees)
        if not agrees:
            warn_user(
                f"{self._name}: a product with the Hessian disagrees with {check}. It stands, for plain "
                f"backward passes say so: either the function holds a derivative back on purpose (detach, "
                f"no_grad, a straight-through rule), or a double backward is wrong, such as that of a custom "
                f"autograd.Function whose backward hides what it does. torchjac.testing.check_hessian "
                f"shows where.",
                DerivativeMismatchWarning,
            )

    def chunk_size(self, columns: int) -> int:
        """How many of so many columns go into one pass."""
        if columns < 2 or compiling() or inside_transform():
            return max(columns, 1)
        if self._largest is None:
            self._largest = describe(self.engine.values)[1]
        spaces = (self.inputs, self.outputs)
        itemsize = max(torch.finfo(space.dtype).bits // 8 for space in spaces)
        held = bytes_per_pass(self._largest, sum(space.size for space in spaces), itemsize)
        return choose_chunk_size(columns, held, self.inputs.device)

    # The ways.

    def _back(self, matrix: Tensor, vectorised: bool) -> Tensor:
        size = self.chunk_size(matrix.shape[1]) if vectorised else 1
        return _product(_as_wanted(self.engine), self.outputs, self.inputs, matrix, size)

    def _over(self, matrix: Tensor, vectorised: bool) -> Tensor:
        """By NOTE [Double backward]."""
        size = self.chunk_size(matrix.shape[1]) if vectorised else 1
        across = self._across or self._recorded_across()
        return _product(_as_wanted(across), self.inputs, self.outputs, matrix, size)

    def _recorded_across(self) -> Engine:
        """The second graph, recorded from a random cotangent, so that its product is a witness."""
        values = self.engine.values
        if not isinstance(self.engine, Graph) or not _have_values_outside(values):
            # Its level of torch.func, or the trace, may be gone by the next product: it is not kept.
            return transposed(self.engine, [torch.zeros_like(value) for value in values])
        with without_transforms():
            cotangent = random_matrix(1, self.outputs.size, like=self.outputs)
            seeds = [stack[0] for stack in self.outputs.split(cotangent)]
            across = transposed(self.engine, seeds)
            product = self.inputs.join([value.detach()[None] for value in across.values])
            self._witness = Witness(cotangent[0], product[0])
        self._across = across
        return across

    def _forward(self, matrix: Tensor, vectorised: bool) -> Tensor:
        """By forward mode, at the random state of the one evaluation."""
        size = matrix.shape[1] if vectorised else 1
        with exclusively(), self._draw.aside() if self._draw else contextlib.nullcontext():
            engine = Push(self._function, self._primals)
            product = _product(engine, self.inputs, self.outputs, matrix, size)
        _refuse_other_values(engine.values, self.engine.values)
        return product

    def _by_rows(self, matrix: Tensor, vectorised: bool) -> Tensor:
        del vectorised
        # [output][input] (m_o, *in_i) -> (m_o, n) -> (m, n)
        blocks = run(_as_wanted(self.engine), IdentitySeeds(self.outputs.layout), 1)
        return torch.cat([self.inputs.join(row) for row in blocks]).to(matrix) @ matrix

    # The checks; see `Route`.

    def _agrees_plainly(self, matrix: Tensor, product: Tensor) -> bool:
        return self._agrees_within(
            lambda slack: combination_agrees(
                lambda one: self._back(one, False), matrix, product, self.engine.values, slack
            )
        )

    def _agrees_with_witness(self, matrix: Tensor, product: Tensor) -> bool:
        return self._agrees_within(
            lambda slack: self._plain_witness().agrees(matrix, product, self.engine.values, slack)
        )

    def _agrees_within(self, agrees: Callable[[float], bool]) -> bool:
        """Whether products agree, but for what is left where terms cancel."""
        try:
            return agrees(0.0) or agrees(self._rounding())
        except Exception:  # noqa: BLE001 - refused, or out of memory: there is nothing to compare with
            return True

    def _rounding(self) -> float:
        engine = _as_wanted(self.engine)
        return rounding_of_terms(engine) if isinstance(engine, Graph) else 0.0

    def _plain_witness(self) -> Witness:
        if self._witness is None:
            cotangent = random_matrix(self.outputs.size, 1, like=self.outputs)
            self._witness = Witness(cotangent[:, 0], self._back(cotangent, False)[:, 0])
        return self._witness


def _product(
    engine: Engine, source: Space, target: Space, matrix: Tensor, chunk_size: int
) -> Tensor:
    # (size, k) -> seeds (k, size) -> products (k, *shape), leaf by leaf -> (size, k)
    (products,) = run(engine, FlatSeeds(source, matrix.T), chunk_size)
    return target.join(products).T


def _have_values_outside(tensors: Sequence[Tensor]) -> bool:
    with without_transforms():
        return has_values(tensors)


def _as_wanted(engine: Engine) -> Engine:
    """Without a graph where grad mode is off, whatever it was when the function was evaluated."""
    if isinstance(engine, Graph) and engine.keeps_graph and not torch.is_grad_enabled():
        return engine.without_graph()
    return engine


def _refuse_other_values(values: Sequence[Tensor], first: Sequence[Tensor]) -> None:
    """Refuse a forward pass at another point: a parameter has changed, or a generator of func's own."""
    if not has_values([*values, *first]):
        return
    if not are_alike(values, first):
        raise RuntimeError("func gave other values when it was evaluated again")
