"""`batched_jac`: the Jacobian of every sample of a batch, without the B x B blocks that are zero."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, NoReturn, TypeAlias

import torch
from torch import Tensor

from torchjac.errors import (
    ArgumentError,
    ArgumentTypeError,
    OptionError,
    OptionTypeError,
    OutputTypeError,
)
from torchjac.evaluation.surroundings import Draw
from torchjac.foundations.compiler import uncompiled
from torchjac.foundations.pytree import TreeSpec, broadcast_prefix, flatten, leaves_of, unflatten
from torchjac.planning.memory import Memory
from torchjac.planning.problem import Ask, Problem
from torchjac.planning.signature import Description
from torchjac.transforms.call import Call, Leaves
from torchjac.transforms.delivery import Delivery
from torchjac.transforms.options import (
    PARAMS,
    Argnums,
    Check,
    ChunkSize,
    Mode,
    Options,
    check_choice,
    check_flag,
)
from torchjac.transforms.outcome import Outcome
from torchjac.transforms.transformed import Transform, transformed

__all__ = ["batched_jac"]

_Sample: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]
_TENSOR = object()
_RANDOMNESS = ("error", "same", "different")


def batched_jac(
    func: Callable[..., Any],
    argnums: Argnums = 0,
    *,
    in_dims: Any = 0,
    per_sample: bool = True,
    randomness: Literal["error", "same", "different"] = "error",
    has_aux: bool = False,
    return_value: bool = False,
    mode: Mode = "auto",
    chunk_size: ChunkSize = "auto",
    check: Check = "first",
    out: Any = None,
    progress: bool = False,
    device_mesh: Any = None,
) -> Callable[..., Any]:
    """Return a function that computes the Jacobian of every sample of a batch.

    The samples do not influence each other, so one seed serves them all: a batch costs one
    evaluation and the m (or n) passes of a single sample, not B·m.

    Args:
        func: with ``per_sample=True``, a function of one sample, so that the result is that of
            ``vmap(jac(func), in_dims)``; with ``per_sample=False``, a function of the whole batch, as an
            ``nn.Module`` usually is, whose outputs have the batch as dim 0.
        argnums: as for `torchjac.jac`. An argument that is shared by the samples (its in_dim is
            None, or it is ``"params"``) can be differentiated by with ``per_sample=True``.
        in_dims: the batch dimension of every argument, as for `torch.func.vmap`.
        per_sample: what ``func`` takes, see there.
        randomness: as for `torch.func.vmap`; only with ``per_sample=True``.
        has_aux: whether ``func`` returns ``(output, aux)``.
        return_value: whether to return the value of ``func``, from the same evaluation.
        mode: as for `torchjac.jac`; ``"auto"`` goes by the sizes of one sample.
        chunk_size: seeds per vmapped pass, each for the whole batch; as for `torchjac.jac`.
        check: as for `torchjac.jac`. With ``per_sample=False`` it includes that the samples do not
            influence each other, by 2·log2(B) plain backward passes.
        out: as for `torchjac.jac`.
        progress: as for `torchjac.jac`.
        device_mesh: as for `torchjac.jac`; the samples are divided, and the result (and the value) is sharded
            along them. With ``per_sample=False`` ``func`` is given a rank's own samples only, and what it
            returns as aux or in integer tensors is of these, or of the first sample where there are none.

    Returns:
        A function with the signature of ``func`` that returns the per-sample Jacobians, in the
        tree that `torchjac.jac` gives; with ``return_value``, ``has_aux`` and ``plan`` as there.

    Shapes:
        Each leaf is ``(B, *out, *in)``, where out and in are the shapes of one sample.

    Dtypes:
        As for `torchjac.jac`.

    Raises:
        BatchCouplingError: with ``per_sample=False``, where one sample's output depends on another.
        TorchjacError: as for `torchjac.jac`, and where batch sizes differ.

    Example:
        >>> import torch, torchjac
        >>> model = torch.nn.Sequential(
        ...     torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)
        ... )
        >>> torchjac.batched_jac(model, per_sample=False)(torch.randn(16, 3)).shape
        torch.Size([16, 2, 3])
    """
    name = "batched_jac"
    options = Options.checked(name, func, argnums, has_aux, return_value, mode, chunk_size, check)
    check_flag(name, "per_sample", per_sample)
    check_choice(name, "randomness", randomness, _RANDOMNESS)
    _check_in_dims(name, in_dims)
    if not per_sample and randomness != "error":
        raise OptionError(
            f"{name}(randomness={randomness!r}, per_sample=False): a function of the whole batch draws as it "
            f"does by itself, so there is nothing to choose. Leave randomness away."
        )
    if not per_sample and argnums == PARAMS:
        raise OptionError(
            f"{name}(argnums='params', per_sample=False): the samples share the parameters, so a function "
            f"of the whole batch has no per-sample Jacobian. Use per_sample=True, with a module that "
            f"takes one sample."
        )

    kind = _SampleCall if per_sample else _BatchCall
    described, memory = Description(), Memory()

    def take(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _BatchCall:
        return kind(options, func, args, kwargs, in_dims, randomness, described, memory)

    def pose(batch: _BatchCall) -> Problem:
        return Problem(
            name=name,
            function=batch,
            slower=batch.one_by_one if isinstance(batch, _SampleCall) else None,
            primals=batch.primals,
            begun=batch.take_begun(),
            signature=batch.signature,
            outcome=lambda: batch.outcome,
            wants_value=options.return_value or options.has_aux,
            batched=True,
            promised=not per_sample,
            mode=options.mode,
            chunk_size=options.chunk_size,
            check=options.check,
            others=batch.others,
            keep_state=batch.keep_state,
            is_sure=lambda: batch.is_sure,
            memory=memory,
        )

    def tree(batch: _BatchCall, outcome: Outcome, leaves: Leaves) -> Any:
        return outcome.jacobian([batch.input_trees(row) for row in leaves])

    own = {"in_dims": in_dims, "per_sample": per_sample, "randomness": randomness}
    if device_mesh is not None and randomness == "different":
        raise OptionError(
            f"{name}(randomness='different', device_mesh=...): every rank evaluates its own samples, so that "
            f"no draw would be that of one process. Draw before, and pass what was drawn as an argument."
        )
    delivery = Delivery.checked(name, out, progress, device_mesh)
    return transformed(Transform(name, func, options, Ask(take, pose), tree, own, delivery))


def _check_in_dims(name: str, in_dims: object) -> None:
    for dim in flatten(in_dims)[0]:
        if dim is not None and (isinstance(dim, bool) or not isinstance(dim, int)):
            raise OptionTypeError(
                f"{name}(in_dims={in_dims!r}): expected an int, None for an argument that the samples share, "
                f"or a tuple with an entry per argument."
            )


class _BatchCall(Call):
    """A call with the whole batch: the differentiated leaves have the batch as their dim 0."""

    def __init__(
        self,
        options: Options,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        in_dims: Any,
        randomness: str,
        described: Description,
        memory: Memory,
    ) -> None:
        super().__init__(options, func, args, kwargs, described, memory)
        self._in_dims, self._randomness = in_dims, randomness
        self.captures_primals = False  # every sample has parameters of its own
        if options.argnums == PARAMS and isinstance(self._func, torch.jit.ScriptModule):
            raise ArgumentTypeError(
                f"{options.name}(argnums='params'): {type(func).__name__} is a scripted module, whose "
                f"parameters PyTorch cannot replace by those of a sample. Pass the module it was made of."
            )
        self._leaves = leaves_of(self._args)
        self._argument_dims = self._spread(in_dims)
        self.batch_size = self._one_size()
        self._primal_dims = self._dims_of_primals()
        self.primals = [
            self._with_batch_first(primal, dim)
            for primal, dim in zip(self.primals, self._primal_dims, strict=True)
        ]

    def narrowed(self, samples: range) -> tuple[Any, ...]:
        """The positional arguments of a call with consecutive samples of this one."""
        leaves, spec = flatten(self._args)
        return tuple(
            unflatten(
                [
                    leaf if dim is None else leaf.narrow(dim, samples.start, len(samples))
                    for leaf, dim in zip(leaves, self._argument_dims, strict=True)
                ],
                spec,
            )
        )

    def _one_size(self) -> int:
        """The size of the batch, which all batched arguments have.

        Sizes are compared with each other: a compiler that leaves one open would have to fix it for a set.
        """
        pairs = zip(self._leaves, self._argument_dims, strict=True)
        sizes: list[int] = [leaf.shape[dim] for leaf, dim in pairs if dim is not None]
        for size in sizes:
            if size != sizes[0]:
                self._refuse_sizes(f"{sorted(set(sizes))}")
        if not sizes:
            self._refuse_sizes("no batched argument")
        return sizes[0]

    def _refuse_sizes(self, got: str) -> NoReturn:
        raise ArgumentError(
            f"batched_jac(in_dims={self._in_dims!r}): expected one batch size, got {got}."
        )

    def _spread(self, in_dims: Any) -> list[int | None]:
        """The batch dimension of every leaf of the arguments, None where it has none."""
        leaves = self._leaves
        spread = (
            [in_dims] * len(leaves)
            if isinstance(in_dims, int)
            else broadcast_prefix(in_dims, self._args)
        )
        if spread is None:
            raise ArgumentError(
                f"batched_jac(in_dims={in_dims!r}): its structure does not fit the call's "
                f"{len(self._args)} arguments. Give one int, or a tuple with an entry per argument."
            )
        dims: list[int | None] = []
        for leaf, dim in zip(leaves, spread, strict=True):
            if dim is None or not isinstance(leaf, Tensor):
                dims.append(None)
                continue
            if not isinstance(dim, int) or not -leaf.dim() <= dim < leaf.dim():
                raise ArgumentError(
                    f"batched_jac(in_dims={in_dims!r}): {dim!r} is no dimension of an argument of shape "
                    f"{tuple(leaf.shape)}. Use None for an argument without a batch dimension."
                )
            dims.append(dim % leaf.dim())
        return dims

    def _dims_of_primals(self) -> list[int | None]:
        if self.options.argnums == PARAMS:
            return [None] * len(self.primals)
        dims = iter(self._argument_dims)
        trees = [[next(dims) for _ in flatten(arg)[0]] for arg in self._args]
        return [dim for position in self._positions for dim in trees[position]]

    def _with_batch_first(self, primal: Tensor, dim: int | None) -> Tensor:
        if dim is None:
            raise ArgumentError(
                f"batched_jac(in_dims={self._in_dims!r}, per_sample=False): the samples share an argument "
                f"that is differentiated by, so there is no Jacobian per sample. Use per_sample=True."
            )
        return primal.movedim(dim, 0) if dim else primal

    def __call__(self, leaves: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        values, carried = super().__call__(leaves)
        for value in values:
            if value.dim() == 0 or value.shape[0] != self.batch_size:
                raise OutputTypeError(
                    f"batched_jac(per_sample=False): func returned an output of shape "
                    f"{tuple(value.shape)} for a batch of {self.batch_size}; expected the batch as dim 0. "
                    f"Use per_sample=True for a function of one sample."
                )
        return values, carried

    def _evaluate(self, leaves: Sequence[Tensor]) -> Any:
        return super()._evaluate(
            [
                leaf if dim is None else leaf.movedim(0, dim)
                for leaf, dim in zip(leaves, self._primal_dims, strict=True)
            ]
        )

    def signature(self) -> Hashable:
        """What makes another call the same as this one."""
        # Only here: a compiler, which wants no signature, cannot trace the text of a size.
        self._told_by = (type(self).__name__, repr(self._in_dims), self._randomness)
        return super().signature()


class _SampleCall(_BatchCall):
    """A call with a function of one sample, which vmap makes a function of the batch.

    An argument that the samples share and that is differentiated by is expanded: every sample gets a
    copy of its own (a view), and then it is batched like any other.
    """

    _one_by_one = False

    def _with_batch_first(self, primal: Tensor, dim: int | None) -> Tensor:
        if dim is None:
            return primal.expand(self.batch_size, *primal.shape)
        return super()._with_batch_first(primal, dim)

    def one_by_one(self, leaves: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The same function of the batch without vmap, for what cannot be vmapped."""
        if not self.batch_size:
            return self._without_samples(leaves)
        self._one_by_one = True
        return self(leaves)

    def _without_samples(
        self, leaves: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What vmap makes of no samples: under it even these have shapes."""
        try:
            return self(leaves)
        except (RuntimeError, IndexError) as error:
            raise ArgumentError(
                "batched_jac(per_sample=True): the batch is empty, and PyTorch cannot vmap this function, "
                "which alone could tell what it returns. Use per_sample=False, or skip empty batches."
            ) from error

    def _evaluate(self, leaves: Sequence[Tensor]) -> Any:
        # The differentiated leaves have their batch dimension first; the others are where they were.
        flat, spec = flatten(self._args)
        dims = self._argument_dims
        stacks = [leaf for leaf, dim in zip(flat, dims, strict=True) if dim is not None]
        places = [dim for dim in dims if dim is not None]
        template: list[Any] = []
        structure: list[TreeSpec] = []

        def sample(primals: Sequence[Tensor], slices: Sequence[Tensor]) -> list[Tensor]:
            source = iter(slices)
            args = [
                leaf if dim is None else next(source) for leaf, dim in zip(flat, dims, strict=True)
            ]
            returned, returned_spec = flatten(self._apply(primals, unflatten(args, spec)))
            # Only tensors get through vmap; what else there is is the same for all samples.
            template[:] = [_TENSOR if isinstance(x, Tensor) else x for x in returned]
            structure[:] = [returned_spec]
            return [x for x in returned if isinstance(x, Tensor)]

        evaluate = self._looped if self._one_by_one else self._vmapped
        stacked = iter(evaluate(sample, list(leaves), stacks, places))
        return unflatten([next(stacked) if x is _TENSOR else x for x in template], structure[0])

    def _vmapped(
        self, sample: _Sample, leaves: list[Tensor], stacks: list[Tensor], places: list[int]
    ) -> list[Tensor]:
        try:
            batched = torch.func.vmap(sample, (0, places), randomness=self._randomness)
            with uncompiled():
                return list(batched(leaves, stacks))
        except RuntimeError as error:
            if "randomness error mode" not in str(error):
                raise
            raise OptionError(
                "batched_jac(randomness='error'): func draws random numbers. Pass "
                "randomness='different' for a draw per sample, or 'same' for one that all share."
            ) from error

    def _looped(
        self, sample: _Sample, leaves: list[Tensor], stacks: list[Tensor], places: list[int]
    ) -> list[Tensor]:
        draw, rows = Draw(leaves), []
        for b in range(self.batch_size):
            if b and self._randomness == "same":
                draw.again()
            slices = [stack.select(dim, b) for stack, dim in zip(stacks, places, strict=True)]
            rows.append(sample([leaf[b] for leaf in leaves], slices))
        return [_stacked(column) for column in zip(*rows, strict=True)]


def _stacked(samples: Sequence[Tensor]) -> Tensor:
    for b, sample in enumerate(samples):
        if sample.shape != samples[0].shape:
            raise OutputTypeError(
                f"batched_jac: func returned a tensor of shape {tuple(samples[0].shape)} for sample 0 and "
                f"of shape {tuple(sample.shape)} for sample {b}; expected the same for every sample. Pad "
                f"them to one shape, or call jac for each sample."
            )
    return torch.stack(list(samples))
