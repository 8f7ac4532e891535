"""From a contraction to its value: recall, choose a way, run it, fall back, check.

The exact answer and an estimate are the same sums over other seeds: one for every input, or for every
colour of a sparsity pattern, or random signs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchjac.errors import DerivativeMismatchWarning, TorchjacError
from torchjac.evaluation.engines import linearize
from torchjac.evaluation.forms import (
    Form,
    HessianForm,
    JacobianForm,
    LaplacianForm,
    ProductForm,
    contracted,
)
from torchjac.evaluation.functions import Jacobian
from torchjac.evaluation.surroundings import (
    Draw,
    compiling,
    exclusively,
    has_values,
    is_out_of_memory,
    out_of_inference,
)
from torchjac.foundations.groups import GroupSeeds
from torchjac.foundations.layout import Layout
from torchjac.foundations.seeds import IdentitySeeds, Seeds
from torchjac.planning.captured.traces import KeptTrace, can_trace, keep_trace
from torchjac.planning.chunks import bytes_per_pass, choose_chunk_size
from torchjac.planning.contractions.colors import Colors, find_colors
from torchjac.planning.contractions.contraction import (
    FORWARD_LAPLACIAN,
    Contraction,
    Findings,
    ForwardLaplacian,
    Marks,
    Remembered,
)
from torchjac.planning.contractions.estimates import (
    Estimate,
    hutch_plus_plus,
    hutchinson,
    random_signs,
    samples_of_vmap,
)
from torchjac.planning.contractions.witness import (
    check_along_a_line,
    colors_agree,
    is_telling,
    way_agrees,
)
from torchjac.planning.fallback import Refusals, warn_user
from torchjac.planning.look import evaluate_plainly, look
from torchjac.planning.sparsity import still_holds
from torchjac.planning.ways import Way, hessian_ways, jacobian_ways

__all__ = ["contract"]

# What the comparison of colours is noted as, beside those of ways.
_COLORS = "colors"


@dataclass
class _Call:
    """What one call has at hand."""

    asked: Contraction
    record: Remembered
    found: Findings
    layout: Layout
    signs: Tensor | None

    def marks(self, way: Way) -> Marks:
        """Where it is noted whether a way is right: a trace is one of the function as it is now."""
        return (self.found if isinstance(way, ForwardLaplacian) else self.record).marks


def contract(asked: Contraction) -> tuple[Estimate, Any]:
    """Compute what is asked for; also say how the function's outputs go back into trees."""
    problem = asked.problem
    if compiling() or torch._C._len_torch_dispatch_stack():
        return _traced(asked)
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False), torch.no_grad():
            return contract(asked)
    problem.primals = out_of_inference(problem.primals)
    layout = Layout(problem.primals)
    signs, draw = _signs(asked, layout), Draw(problem.primals)
    key = asked.key()
    record = problem.memory.recall(key)
    assert record is None or isinstance(record, Remembered)
    found = None if record is None else record.recalled(asked)
    if record is None or found is None:
        record, found = _look(asked, record, draw)
        problem.memory.remember(key, record)
    result = _first_that_works(_Call(asked, record, found, layout, signs), draw)
    if problem.order == 2:
        check_along_a_line(asked, record.line, draw)
    return result


def _signs(asked: Contraction, layout: Layout) -> Tensor | None:
    """The probes of an estimate, drawn before the function draws anything."""
    if asked.method == "exact":
        return None
    return random_signs(asked.num_samples, layout, asked.generator)


def _look(asked: Contraction, record: Remembered | None, draw: Draw) -> tuple[Remembered, Findings]:
    """See the function for the first time; what it raises here is its own and comes out as it is."""
    problem, values = asked.problem, list[Tensor]()

    def evaluate(primals: Sequence[Tensor]) -> Sequence[Tensor]:
        values[:] = problem.function(primals)[0]
        return values

    with draw.aside():
        counts, largest, _ = look(evaluate, problem.primals)
    asked.validate(values)
    description = asked.described()
    found = Findings(problem.outcome(), is_sure=description is not None)
    if asked.method == "exact" and not (record and record.is_dense):
        with draw.aside():
            found.colors = find_colors(problem, counts)
    if record is None:
        record = Remembered(counts, largest, _ways(asked, sum(counts)))
        record.samples, record.is_dense = samples_of_vmap(), found.colors is None
    record.keep(description, found)
    return record, found


def _ways(asked: Contraction, num_outputs: int) -> tuple[Way, ...]:
    problem = asked.problem
    vectorise = problem.chunk_size != 1
    if problem.order == 1:
        return jacobian_ways("auto", num_outputs, num_outputs, vectorise=vectorise)
    ways = hessian_ways("auto", num_outputs, vectorise=vectorise)
    return (FORWARD_LAPLACIAN, *ways) if asked.pushes and can_trace() else ways


def _first_that_works(call: _Call, draw: Draw) -> tuple[Estimate, Any]:
    """Take the best way that neither PyTorch nor a check has refused, and if it is refused, the next."""
    asked, record = call.asked, call.record
    refusals: Refusals | None = None
    for rank in range(record.refused, len(record.ways)):
        way = record.ways[rank]
        if way in call.marks(way).wrong or (refusals is not None and refusals.rule_out(way)):
            continue
        try:
            with exclusively(way.direction == "forward"):
                result = _run(call, way) if _may_take(call, way, draw) else None
        except TorchjacError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            draw.again()
            if refusals is None:
                _blame(asked, draw)
                refusals = Refusals(asked.problem.name, way, error)
            else:
                refusals.add(way, error)
            continue
        if result is None:
            if way in call.marks(way).wrong:
                _warn_of_wrong(asked, way)
            continue
        if refusals is not None:
            record.refused = rank
            passes = call.signs.shape[0] if call.signs is not None else call.layout.total
            refusals.warn(way, passes)
        return _with_right_colors(call, way, result, draw), _outcome(call, way)
    assert refusals is not None, "the last way is what the others are compared with"
    raise refusals.error() from refusals.first


def _outcome(call: _Call, way: Way) -> Any:
    """A trace has no outputs of its own; else they are those of the latest evaluation."""
    pushed = isinstance(way, ForwardLaplacian)
    return call.found.outcome if pushed else call.asked.problem.outcome()


def _blame(asked: Contraction, draw: Draw) -> None:
    """Evaluate the function plainly: if it raises there too, the exception is the function's own."""
    with draw.aside():
        asked.validate(evaluate_plainly(lambda primals: asked.function(primals)[0], asked.primals))


def _may_take(call: _Call, way: Way, draw: Draw) -> bool:
    """Whether a way can be taken here, and is right as far as a random probe can tell."""
    asked, marks = call.asked, call.marks(way)
    real = has_values(asked.primals)
    if isinstance(way, ForwardLaplacian):
        if torch._C._is_any_autocast_enabled() or not asked.lies_plain:
            return False  # it was not traced so
        if not call.found.lasts:
            return False  # it would be traced for this call alone
        # Where something holds derivatives back, what the trace gives can be right for values that have
        # been compared; of its own derivatives nothing is known.
        if not _trace(call).run.is_plain and not (real and _is_final(call)):
            return False
    if way in marks.checked or not real or way == way.trusted:
        return True
    size = None if way.vectorised else 1
    with draw.aside():
        form = _form(call, way)
    agrees, telling = way_agrees(asked, form, call.layout, size, draw)
    if agrees:
        marks.settle(way, telling=telling)
    else:
        marks.wrong.add(way)
    return agrees


def _warn_of_wrong(asked: Contraction, way: Way) -> None:
    warn_user(
        f"{asked.problem.name}: {way} disagrees with plain backward passes. Either the function holds a "
        f"derivative back, or a rule that is used is wrong: of a custom autograd.Function, or one of "
        f"PyTorch's own. Another way is taken, here and at later calls with such arguments.",
        DerivativeMismatchWarning,
    )


def _is_final(call: _Call) -> bool:
    """Whether nobody can differentiate the result."""
    problem, captured = call.asked.problem, _trace(call).captured() or []
    others = problem.others()[0] if problem.others else []
    return not torch.is_grad_enabled() or not any(
        tensor.requires_grad for tensor in (*problem.primals, *others, *captured)
    )


def _form(call: _Call, way: Way) -> Form:
    """The function, ready for seeds."""
    problem, kind = call.asked.problem, call.asked.kind
    if isinstance(way, ForwardLaplacian):
        trace = _trace(call)
        captured = trace.captured()
        assert captured is not None
        others = problem.others()[0] if problem.others else []
        tensors = [tensor.contiguous() for tensor in (*problem.primals, *others)]
        return LaplacianForm(trace.run, tensors, captured)
    if problem.order == 1:
        return JacobianForm(linearize(problem.function, problem.primals, way.direction), kind)
    gradient = Jacobian(problem.function, "reverse", vectorise=way.vectorised)
    return HessianForm(gradient, problem.primals, way.direction, kind)


def _trace(call: _Call) -> KeptTrace:
    asked, found = call.asked, call.found
    if found.trace is None or found.trace.captured() is None:
        found.trace = keep_trace(asked.problem, asked.reached, portable=asked.portable)
    return found.trace


def _run(call: _Call, way: Way) -> Estimate:
    form = _form(call, way)
    found = _summed(call, way, form)
    if form.outputs and not compiling():
        # Their shapes may be other ones than those that were seen first.
        call.asked.validate(form.outputs)
    return found


def _summed(call: _Call, way: Way, form: Form) -> Estimate:
    asked, signs, layout = call.asked, call.signs, call.layout
    if signs is None:
        seeds = _exact_seeds(call)
        size = _chunk_size(asked, way, call.record, seeds.total)
        return Estimate(contracted(form, seeds, size, shown=asked.problem.shown))
    size = _chunk_size(asked, way, call.record, len(signs))
    how: Any = {"with_error": asked.return_error, "shown": asked.problem.shown}
    if asked.method == "hutchinson":
        return hutchinson(form, signs, layout, size, **how)
    assert isinstance(form, ProductForm)
    return hutch_plus_plus(form, signs, layout, size, **how)


def _exact_seeds(call: _Call) -> Seeds:
    colors, layout = call.found.colors, call.layout
    if colors is not None and (has_values(call.asked.primals) or _is_settled(call, colors)):
        return GroupSeeds(layout, colors.colors)
    if layout.total:
        return IdentitySeeds(layout)
    return GroupSeeds(layout, torch.empty(0, dtype=torch.int64))


def _is_settled(call: _Call, colors: Colors) -> bool:
    """Whether colours are certainly those of the function as it is now."""
    return call.found.is_sure and still_holds(colors.compression, call.asked.primals)


def _with_right_colors(call: _Call, way: Way, result: Estimate, draw: Draw) -> Estimate:
    """The result; made again with a seed for every input where the colours have turned out wrong.

    They depend on numbers that the function captured, and not all can be told by a signature.
    """
    asked, found, colors = call.asked, call.found, call.found.colors
    if colors is None or not has_values(asked.primals):
        return result
    if _COLORS in found.marks.checked and _is_settled(call, colors):
        return result
    size = _chunk_size(asked, way, call.record, int(colors.witnesses.max()) + 1)
    with draw.aside(), exclusively(way.direction == "forward"):
        if colors_agree(asked, way, colors.witnesses, size, result.leaves):
            found.marks.settle(_COLORS, telling=is_telling(result.leaves))
            return result
    found.colors = None
    call.record.drop(found)
    draw.again()
    with exclusively(way.direction == "forward"):
        return _run(call, way)


def _chunk_size(asked: Contraction, way: Way, record: Remembered, total: int) -> int | None:
    problem = asked.problem
    if not way.vectorised:
        return 1
    if problem.chunk_size != "auto":
        return problem.chunk_size
    n, m = sum(primal.numel() for primal in problem.primals), sum(record.output_counts)
    itemsize = max(primal.element_size() for primal in problem.primals)
    # The shapes of a signature are those of a sample; the memory is that of all.
    samples = samples_of_vmap()
    largest = record.largest * samples // record.samples
    n, m = n * samples, m * samples
    held = bytes_per_pass(largest, n + m, itemsize)
    if isinstance(way, ForwardLaplacian):
        # No graph is kept: the derivatives of an operation and of the one after it, of one direction.
        held = bytes_per_pass(largest // 2, n, itemsize)
    elif problem.order == 2:
        # The gradient's intermediate results too, once for every row of an inner vmap.
        held = bytes_per_pass(2 * largest, n, itemsize) * max(m // samples, 1)
    return choose_chunk_size(total, held, problem.primals[0].device)


def _traced(asked: Contraction) -> tuple[Estimate, Any]:
    """Compute under a compiler or a dispatch mode: nothing to remember, compare or fall back on."""
    problem = asked.problem
    layout = Layout(problem.primals)
    signs = _signs(asked, layout)
    values = problem.function(problem.primals)[0]
    asked.validate(values)
    ways = _ways(asked, sum(value.numel() for value in values))
    way = next(way for way in ways if not isinstance(way, ForwardLaplacian))
    record = Remembered((), 0, ways)
    if problem.chunk_size == "auto":
        problem.chunk_size = None
    call = _Call(asked, record, Findings(), layout, signs)
    return _run(call, way), problem.outcome()
