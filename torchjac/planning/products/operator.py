"""`LinearOperator`: a Jacobian or Hessian that is multiplied with and never held."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from torchjac.errors import ArgumentError, ArgumentTypeError, OptionError
from torchjac.evaluation.linear_function import linear
from torchjac.evaluation.surroundings import carry_tangents, compiling, inside_transform
from torchjac.foundations.spaces import Trees
from torchjac.foundations.strides import is_dense
from torchjac.planning.modes import choose_mode
from torchjac.planning.products.grams import checked_weights, gram, side_by_side
from torchjac.planning.products.linearization import Linearization

__all__ = ["JacobianOperator", "LinearOperator", "SymmetricOperator"]


class LinearOperator(ABC):
    """A matrix ``(m, n)`` as products with it; what `torchjac.jac_operator` and its kin return.

    Flat vectors run over the elements of all leaves, leaf after leaf, as the rows and columns of a
    `torchjac.SparsityPattern` do. A product is differentiable by the vector, and by whatever func's
    value is differentiable by if the operator was made in grad mode. k columns are one vmapped pass, or as
    few as memory allows. Threads may use one operator at once.

    Example:
        >>> import torch, torchjac
        >>> op = torchjac.jac_operator(torch.diff)(torch.tensor([1.0, 2.0, 4.0]))
        >>> op
        LinearOperator(2×3, torch.float32, cpu)
        >>> op @ torch.tensor([0.0, 1.0, 0.0]), op.T @ torch.tensor([1.0, 0.0])
        (tensor([ 1., -1.]), tensor([-1.,  1.,  0.]))
    """

    value: Any
    """What func returned, from the one evaluation."""

    def __init_subclass__(cls) -> None:
        # Python puts it into messages of its own; users know one name.
        cls.__name__ = cls.__qualname__ = LinearOperator.__name__

    def __init__(
        self, name: str, point: Linearization, domain: Trees, codomain: Trees, value: Any
    ) -> None:
        self._name, self._point = name, point
        self._domain, self._codomain = domain, codomain
        self.value = value

    # What it is.

    @property
    def shape(self) -> tuple[int, int]:
        """``(m, n)``: elements of all outputs, elements of all inputs."""
        return self._codomain.space.size, self._domain.space.size

    @property
    def dtype(self) -> torch.dtype:
        """Of flat vectors: the one that all leaves promote to."""
        return torch.promote_types(self._point.inputs.dtype, self._point.outputs.dtype)

    @property
    def device(self) -> torch.device:
        """Of flat vectors: that of the first input."""
        return self._point.inputs.device

    @property
    @abstractmethod
    def T(self) -> LinearOperator:  # noqa: N802
        """The transpose, on the same graph; ``op.T.T is op``."""

    def __repr__(self) -> str:
        m, n = self.shape
        kind = ", symmetric" if self.T is self else ""
        return f"LinearOperator({m}×{n}, {self.dtype}, {self.device}{kind})"

    # Products.

    @abstractmethod
    def _multiply(self, matrix: Tensor) -> Tensor:
        """The product with ``(n, k)``, k > 0, whatever dtype comes out."""

    def __matmul__(self, v: Tensor) -> Tensor:
        """The product with a flat vector ``(n,)``, or with the columns of a matrix ``(n, k)``."""
        return self._times(v)

    def __rmatmul__(self, u: Tensor) -> Tensor:
        """uᵀ·J with a flat vector ``(m,)``, or with the rows of a matrix ``(k, m)``; that is ``op.T @ u``."""
        m = self.shape[0]
        self._check(u, "u @ operator", f"({m},) or (k, {m})", -1, m)
        # (k, m) -> (m, k), and (n, k) -> (k, n)
        return self.T._times(u) if u.dim() == 1 else self.T._times(u.T).T

    def _times(self, v: Tensor) -> Tensor:
        # A method, because torch.compile does not look into the operator @ of an object.
        n = self.shape[1]
        self._check(v, "operator @ v", f"({n},) or ({n}, k)", 0, n)
        if not compiling() and torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self._times(v.clone())
        # (n,) -> (n, 1), and (m, 1) -> (m,)
        product = self._product(v[:, None] if v.dim() == 1 else v)
        return product[:, 0] if v.dim() == 1 else product

    def matvec(self, tree: Any) -> Any:
        """The product with a tree like func's input, as a tree like its output.

        Leaves of the output that have no derivative are None. The transpose takes trees of outputs, with
        None at such leaves, and gives trees of inputs.

        Raises:
            ArgumentError: the tree, or a leaf, has another shape.
            ArgumentTypeError: a leaf is no tensor of the right dtype and device.
        """
        vector = self._domain.vector(f"{self._name}: matvec", tree)
        return self._codomain.tree(self._times(vector.to(self.device, self.dtype)))

    def _product(self, matrix: Tensor) -> Tensor:
        if 0 in (*self.shape, matrix.shape[1]):
            return matrix.new_zeros(self.shape[0], matrix.shape[1])
        if not self._point.keeps_graph and _is_followed(matrix):
            return linear(self._converted, self.T._converted, matrix)
        return self._converted(matrix)

    def _converted(self, matrix: Tensor) -> Tensor:
        return self._multiply(matrix).to(self.device, self.dtype)

    def _check(self, v: object, product: str, shapes: str, dim: int, size: int) -> None:
        """Refuse what does not fit into ``product``: of ``shapes``, with ``size`` elements along ``dim``."""
        m, n = self.shape
        where = f"{self._name}: {product}"
        expected = f"expected a tensor {shapes} of {self.dtype} on {self.device}, the operator being {m}×{n}"
        if not isinstance(v, Tensor):
            raise ArgumentTypeError(
                f"{where}: got a {type(v).__name__}; {expected}. matvec takes trees, to_scipy() arrays."
            )
        if v.dtype != self.dtype or v.device != self.device:
            raise ArgumentTypeError(
                f"{where}: got {v.dtype} on {v.device}; {expected}. Convert it with v.to()."
            )
        if not is_dense(v):
            raise ArgumentTypeError(
                f"{where}: got a sparse or nested tensor; {expected}. Convert it with v.to_dense()."
            )
        if v.dim() not in (1, 2) or v.shape[dim] != size:
            raise ArgumentError(f"{where}: got shape {tuple(v.shape)}; {expected}.")

    # The matrix, or what is made of it.

    def _columns(
        self, share: range | None = None, size: int | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """The matrix in stretches of columns, of which each is made when it is asked for.

        Args:
            share: the columns that are wanted, consecutive ones; all by default.
            size: columns per stretch; by default as many as fit into one pass.

        Yields:
            Which columns, and these, ``(m, size)``.
        """
        n = self.shape[1]
        share = range(n) if share is None else share
        size = self._pass_size(n) if size is None else size
        for start in range(share.start, share.stop, size):
            stop = min(start + size, share.stop)
            units = torch.zeros(n, stop - start, dtype=self.dtype, device=self.device)
            units.diagonal(-start).fill_(1)
            yield slice(start, stop), self._times(units)

    def _rows(
        self, share: range | None = None, size: int | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """The matrix in stretches of rows ``(size, n)``; as `_columns`."""
        for at, block in self.T._columns(share, size):
            yield at, block.T

    def _pass_size(self, count: int) -> int:
        """How many of so many columns, or rows, fit into one pass."""
        return self._point.chunk_size(count)

    def to_dense(self) -> Tensor:
        """The matrix ``(m, n)``, from m or n passes, whichever are fewer (forward ones count twice)."""
        m, n = self.shape
        if choose_mode(n, m) == "reverse":
            return side_by_side(self.T._columns(), self._zeros(m, n).T).T
        return side_by_side(self._columns(), self._zeros(m, n))

    def diagonal(self) -> Tensor:
        """The diagonal ``(n,)`` of a square matrix, from n passes, never holding more than a block of it.

        Raises:
            ArgumentError: it is not square.
        """
        self._check_square("diagonal")
        parts = [block[:, at].diagonal() for at, block in self._rows()]
        return torch.cat(parts) if parts else self._zeros(0)

    def trace(self) -> Tensor:
        """The sum of the diagonal, a tensor of no dimensions; as `diagonal`."""
        self._check_square("trace")
        return self.diagonal().sum()

    def gram(self, side: Literal["inputs", "outputs"], weights: Tensor | None = None) -> Tensor:
        """JᵀJ or JJᵀ, or JᵀWJ or JWJᵀ, in the memory of the result and one block of J.

        It is summed over blocks of rows of J, m passes, or where 2n is less it is made column by
        column, with n passes to either side.

        Args:
            side: ``"inputs"`` for JᵀJ ``(n, n)``, ``"outputs"`` for JJᵀ ``(m, m)``.
            weights: W, over the other side: its diagonal ``(m,)``, the matrix ``(m, m)``, or the blocks on
                its diagonal ``(b, c, c)`` with b·c = m, such as one for each sample's c outputs. A W that
                leads out of a block of J takes m passes more.

        Raises:
            OptionError: ``side`` is neither.
            ArgumentError, ArgumentTypeError: the weights do not fit.

        Example:
            >>> import torch, torchjac
            >>> op = torchjac.jac_operator(torch.diff)(torch.ones(3, dtype=torch.float64))
            >>> op.gram("outputs")
            tensor([[ 2., -1.],
                    [-1.,  2.]], dtype=torch.float64)
        """
        if side == "outputs":
            return self.T.gram("inputs", weights)
        if side != "inputs":
            raise OptionError(f"{self._name}: gram(side={side!r}): expected 'inputs' or 'outputs'.")
        return gram(self, checked_weights(self, f"{self._name}: gram(weights)", weights))

    def to_scipy(self) -> Any:
        """A ``scipy.sparse.linalg.LinearOperator``: matvec, rmatvec, matmat and rmatmat on arrays.

        On the CPU arrays of the operator's dtype share memory with tensors; others are converted. Nothing
        that it does is recorded by autograd.
        """
        # It loads SciPy, which nobody else needs.
        from torchjac.structure.scipy_operator import as_scipy

        return as_scipy(self.shape, self.dtype, self.device, self._times, self.T._times)

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def _check_square(self, method: str) -> None:
        m, n = self.shape
        if m != n:
            raise ArgumentError(
                f"{self._name}: {method}() is of a square matrix; this one is {m}×{n}. Choose outputs "
                f"and argnums of as many elements."
            )


class JacobianOperator(LinearOperator):
    """The Jacobian of a function where it was evaluated."""

    @property
    def T(self) -> LinearOperator:  # noqa: N802
        parts = (self._point, self._codomain, self._domain, self.value)
        return TransposedOperator(self, f"{self._name}.T", *parts)

    def _multiply(self, matrix: Tensor) -> Tensor:
        return self._point.push(matrix)


class TransposedOperator(LinearOperator):
    """The transpose of a Jacobian, which it keeps."""

    def __init__(self, of: JacobianOperator, *parts: Any) -> None:
        super().__init__(*parts)
        self._of = of

    @property
    def T(self) -> LinearOperator:  # noqa: N802
        return self._of

    def _multiply(self, matrix: Tensor) -> Tensor:
        return self._point.pull(matrix)


class SymmetricOperator(LinearOperator):
    """The Hessian of a function with one output: its own transpose."""

    def __init__(self, name: str, point: Linearization, domain: Trees, value: Any) -> None:
        super().__init__(name, point, domain, domain, value)

    @property
    def T(self) -> LinearOperator:  # noqa: N802
        return self

    def _multiply(self, matrix: Tensor) -> Tensor:
        return self._point.both(matrix)


def _is_followed(v: Tensor) -> bool:
    """Whether somebody wants to differentiate by ``v``, or to batch over it."""
    if compiling():
        return False
    return (
        inside_transform() or (v.requires_grad and torch.is_grad_enabled()) or carry_tangents([v])
    )
