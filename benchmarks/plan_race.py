"""One race of plans: torchjac, its plans, and what PyTorch and JAX compile, verified, timed in turn.

What each costs before its first answer is noted as well.
"""

from __future__ import annotations

import functools
import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import hessian, jacfwd, jacrev, vmap

import torchjac

from .peers import batched_grad, summed_jacrev
from .plan_workloads import WAIST, PlanWorkload
from .race import Effort, Entrant, disagreement, one_line, spread
from .workloads import Func

EAGER, PLAN, TUNED = "torchjac", "plan", "tuned plan"
COMPILED, COMPILED_TUNED = "compiled plan", "compiled tuned plan"
ASDEX, BY_HAND, FLOOR = "asdex, jitted", "factored by hand", "bare matrix chain"
# Nobody picks by hand the mode that takes so many times as many passes as the other one.
HOPELESS = 4

Run = Callable[[], Any]


@dataclass(frozen=True)
class Setting:
    """How every race of a run is held.

    Args:
        effort: How long to time.
        with_jax: Whether JAX is there to take part.
        all_modes: Whether PyTorch compiles every mode, which takes longest of all, or the first alone.
        clock: Of turns, in seconds.
    """

    effort: Effort
    with_jax: bool
    all_modes: bool
    clock: Callable[[], float]


@dataclass
class Row:
    """What one race found.

    Args:
        workload: What was raced.
        inputs: Elements of the argument, of one sample where there is a batch.
        outputs: Elements of the output, likewise.
        chosen: The way that every plan takes.
        seconds: Median time of each entrant that gave the right answer.
        spreads: Interquartile range over the median, of each.
        first: Seconds before the first answer; of a plan that is what making it took, and of a
            compiled one what compiling it took on top.
        raised: Who raised, and what.
        differs: Who gave another answer, and how far off.
    """

    workload: PlanWorkload
    inputs: int = 0
    outputs: int = 0
    chosen: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, float] = field(default_factory=dict)
    first: dict[str, float] = field(default_factory=dict)
    raised: dict[str, str] = field(default_factory=dict)
    differs: dict[str, str] = field(default_factory=dict)

    def best(self, names: Sequence[str]) -> str | None:
        """The fastest of those named, if any of them ran."""
        ran = [name for name in names if name in self.seconds]
        return min(ran, key=self.seconds.__getitem__, default=None)

    def ratio(self, mine: str, theirs: str | None) -> float | None:
        if mine not in self.seconds or theirs not in self.seconds:
            return None
        return self.seconds[mine] / self.seconds[theirs]


# --- who takes part ------------------------------------------------------------------------------


def transformed(workload: PlanWorkload, func: Func) -> Any:
    """What torchjac makes of a function, with every option left alone."""
    match workload.kind:
        case "hessian":
            return torchjac.hessian(func)
        case "batched":
            return torchjac.batched_jac(func, per_sample=False)
        case "sparse":
            return torchjac.jac(func, sparsity="detect", layout=torch.sparse_coo)
    return torchjac.jac(func)


def torch_peers(row: Row, func: Func, *, all_modes: bool) -> dict[str, Callable[[Tensor], Tensor]]:
    """The ways of `torch.func`, and those of them that are compiled as well."""
    kind, n, m = row.workload.kind, row.inputs, row.outputs
    match kind:
        case "sparse":
            return {}
        case "hessian":
            made = {"hessian": hessian(func), "jacrev(jacrev)": jacrev(jacrev(func))}
        case "batched":
            made = {"vmap(jacrev)": vmap(jacrev(func))}
        case _:
            made = {"jacrev": jacrev(func)} if m <= HOPELESS * n else {}
            made |= {"jacfwd": jacfwd(func)} if n <= HOPELESS * m else {}
    peers: dict[str, Any] = {**made}
    for name in list(made)[: None if all_modes else 1]:
        peers[f"compile({name})"] = torch.compile(made[name], dynamic=False)
    if kind == "jac" and m <= HOPELESS * n:
        peers["is_grads_batched"] = functools.partial(batched_grad, func)
    if kind == "batched":
        peers["summed jacrev"] = functools.partial(summed_jacrev, func)
    return peers


def jax_peers(row: Row) -> dict[str, Callable[[Any, Any], Any]]:
    """The ways of JAX, each made from a function and its argument."""
    import jax

    match row.workload.kind:
        case "sparse":
            return {ASDEX: asdex_jacobian}
        case "hessian":
            return {"jit(hessian)": lambda twin, _: jax.hessian(twin)}
        case "batched":
            return {"jit(vmap(jacrev))": lambda twin, _: jax.vmap(jax.jacrev(twin))}
    peers: dict[str, Callable[[Any, Any], Any]] = {}
    if row.outputs <= HOPELESS * row.inputs:
        peers["jit(jacrev)"] = lambda twin, _: jax.jacrev(twin)
    if row.inputs <= HOPELESS * row.outputs:
        peers["jit(jacfwd)"] = lambda twin, _: jax.jacfwd(twin)
    return peers


def asdex_jacobian(twin: Any, at: Any) -> Any:
    import asdex

    pattern = asdex.jacobian_sparsity(twin, at)
    return asdex.jacobian_from_coloring(twin, asdex.jacobian_coloring_from_sparsity(pattern))


def jitted(row: Row, way: Callable[[Any, Any], Any], func: Func, x: Tensor) -> Run:
    """A call of the same formula through JAX, whose whole result is waited for."""
    import jax

    twin, at = row.workload.twin(func), jax.numpy.asarray(x.numpy())
    compiled = jax.jit(way(twin, at))
    return lambda: compiled(at).block_until_ready()


def factored_by_hand(model: Any, x: Tensor) -> Run:
    """The Jacobian of a network with a waist in the middle, as the product of its halves' Jacobians."""
    half = len(model) // 2

    def run() -> Tensor:
        return jacfwd(model[half:])(model[:half](x)) @ jacrev(model[:half])(x)

    return run


def matrix_chain(model: Any) -> Run:
    """The products of the weights alone, narrow ones first: what no way can do without."""
    first, second, third, fourth = (layer.weight.detach() for layer in model[::2])
    return lambda: (fourth @ third) @ (second @ first)


# --- the race ------------------------------------------------------------------------------------


def race(workload: PlanWorkload, setting: Setting) -> Row:
    """Build the workload, verify everybody, time everybody."""
    torch.manual_seed(0)
    torch.compiler.reset()  # what one row compiled must not count against the next
    func, (x,) = workload.build()
    row = Row(workload)
    with torch.set_grad_enabled(workload.grad_mode):
        samples = x.shape[0] if workload.kind == "batched" else 1
        row.inputs, row.outputs = x.numel() // samples, func(x).numel() // samples
        entrants = list(verified(row, func, x, setting))
        take_turns(entrants, setting)
    row.seconds = {entrant.name: statistics.median(entrant.seconds) for entrant in entrants}
    row.spreads = {entrant.name: spread(entrant.seconds) for entrant in entrants}
    return row


def verified(row: Row, func: Func, x: Tensor, setting: Setting) -> Iterator[Entrant]:
    """Those that answer as the first one does that answers; the row notes why others do not."""
    expected: Tensor | None = None
    row.raised |= row.workload.crashes
    for name, make in makers(row, func, x, setting):
        if name in row.raised:
            continue
        start = time.perf_counter()
        try:
            run = make()
            returned = run()
        except Exception as error:
            row.raised[name] = one_line(error)
            continue
        row.first.setdefault(name, time.perf_counter() - start)
        actual = as_tensor(returned, x)
        expected = actual if expected is None else expected
        if name != FLOOR and (difference := disagreement(actual, expected)):
            row.differs[name] = difference
            continue
        yield Entrant(name, run, cold=0.0)  # how long it takes when warm is yet to be seen


def as_tensor(returned: Any, x: Tensor) -> Tensor:
    """An answer to compare: of a sparse one its product with a fixed vector is enough."""
    vector = torch.randn(x.numel(), generator=torch.Generator().manual_seed(1))
    if isinstance(returned, Tensor):
        return returned @ vector if returned.is_sparse else returned.detach()
    import jax

    if not isinstance(returned, jax.Array):
        returned = returned @ jax.numpy.asarray(vector.numpy())
    return torch.from_numpy(jax.device_get(returned).copy())


def makers(
    row: Row, func: Func, x: Tensor, setting: Setting
) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Everybody by name, and what makes a call of theirs; torchjac comes first."""
    workload = row.workload
    yield EAGER, lambda: lambda: transformed(workload, func)(x)
    yield from plan_makers(row, transformed(workload, func), x)
    for name, call in torch_peers(row, func, all_modes=setting.all_modes).items():
        yield name, functools.partial(functools.partial, call, x)
    if workload.name.startswith(WAIST):
        yield BY_HAND, lambda: factored_by_hand(func, x)
        yield FLOOR, lambda: matrix_chain(func)
    if setting.with_jax:
        for name, way in jax_peers(row).items():
            yield name, functools.partial(jitted, row, way, func, x)


def plan_makers(row: Row, transform: Any, x: Tensor) -> Iterator[tuple[str, Callable[[], Run]]]:
    """The plans, and those of them compiled that are not the same one."""
    plans: dict[str, Any] = {}

    def planned(name: str, make: Callable[[], Any]) -> Run:
        start = time.perf_counter()
        plan = plans[name] = make()
        row.first[name] = time.perf_counter() - start
        row.chosen[name] = choice(plan)
        return functools.partial(plan, x)

    def plan(name: str, tune: bool) -> Callable[[], Run]:
        return lambda: planned(name, lambda: transform.plan(x, tune=tune))

    yield PLAN, plan(PLAN, tune=False)
    yield TUNED, plan(TUNED, tune=True)
    if PLAN in plans:
        yield COMPILED, lambda: planned(COMPILED, plans[PLAN].compile)
    if len({row.chosen.get(PLAN), row.chosen.get(TUNED)} - {None}) == 2:
        yield COMPILED_TUNED, lambda: planned(COMPILED_TUNED, plans[TUNED].compile)


def choice(plan: Any) -> str:
    """What a plan says of its choice; mode and passes cannot tell a traced way from another one."""
    return repr(plan).partition(": ")[2].rstrip(">").removeprefix("compiled, ")


def take_turns(entrants: list[Entrant], setting: Setting) -> None:
    """Time everybody round by round, shuffled, quick ones after a call that is not timed.

    Whoever comes after a large result finds cold caches and memory that was just given back; that must
    not always be the same one.
    """
    effort, clock = setting.effort, setting.clock
    for entrant in entrants:
        entrant.warm_up(effort)
    order = random.Random(0)
    gc.collect()
    gc.disable()
    try:
        for turn in range(effort.rounds):
            for entrant in order.sample(entrants, len(entrants)):
                if turn * entrant.turns % effort.rounds < entrant.turns:
                    if entrant.repeat > 1:
                        entrant.run()
                    start = clock()
                    for _ in range(entrant.repeat):
                        entrant.run()
                    entrant.seconds.append((clock() - start) / entrant.repeat)
    finally:
        gc.enable()
