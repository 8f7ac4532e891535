"""What a race of plans leaves behind: tables in Markdown, and a picture of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from .plan_race import ASDEX, BY_HAND, COMPILED, COMPILED_TUNED, EAGER, FLOOR, PLAN, TUNED, Row
from .plan_workloads import ARM, KINDS, WAIST
from .report import header, mean, readable

# Hand-picked ways by kind: called as they are, compiled by PyTorch, compiled by JAX.
PEERS = {
    "jac": (
        ("jacrev", "jacfwd", "is_grads_batched"),
        ("compile(jacrev)", "compile(jacfwd)"),
        ("jit(jacrev)", "jit(jacfwd)"),
    ),
    "hessian": (
        ("hessian", "jacrev(jacrev)"),
        ("compile(hessian)", "compile(jacrev(jacrev))"),
        ("jit(hessian)",),
    ),
    "batched": (
        ("vmap(jacrev)", "summed jacrev"),
        ("compile(vmap(jacrev))",),
        ("jit(vmap(jacrev))",),
    ),
    "sparse": ((), (), (ASDEX,)),
}

NOISY = 0.5  # of a spread: turns differ by half of what they take
LEAST = 0.01  # of a ratio that is drawn where it is

INTRODUCTION = """\
Times are medians of one interleaved run, with one thread of the processor's time, and belong to the
machine; ratios, *to* somebody, are the time of torchjac over theirs: below 1 torchjac is the faster one.
± is the interquartile range of the turns of the plan to its left over their median: where it is large the
machine was busy, and the row is worth little. The *compiled plan* is that of the plan as counted,
`tune=False`; where tuning chooses otherwise, what it compiles to stands below the table. Everything runs
under `torch.no_grad`, but for the rows in *grad mode*."""

FIRST = """\
Seconds before the first answer, on an empty compiler cache: *plan* is `.plan(x, tune=False)`, *compile* is
`.compile()` on top; *torch.compile* and *jax.jit* are the first calls of whichever is fastest later. *Pays
after* is the number of calls after which planning and compiling have paid for themselves: against the best
peer that is not compiled, and against the best of `torch.compile`, whose own first call is deducted."""


def summary(row: Row) -> str:
    """Return one line to watch a run by."""
    name = f"{row.workload.name:26}"
    if not row.seconds:
        return f"{name} {next(iter(row.raised.values()), 'nobody ran')}"
    eager, torch_compiled, jitted = PEERS[row.workload.kind]
    ratios = [
        f"{ratio:.2f} of {theirs}"
        for mine, names in ((TUNED, eager), (COMPILED, torch_compiled), (COMPILED, jitted))
        if (ratio := row.ratio(mine, theirs := row.best(names))) is not None
    ]
    mine = [readable(row.seconds[at]) for at in (PLAN, COMPILED) if at in row.seconds]
    return f"{name} {', '.join(mine):20} {', '.join(ratios)}"


def markdown(rows: Sequence[Row], threads: int, *, quick: bool = False) -> str:
    """Return the whole report."""
    parts = ["# Plans, side by side", header(threads) + ", a quick run" * quick, INTRODUCTION]
    parts += ["## Targets", targets(rows)]
    for kind, title in KINDS.items():
        plain = [row for row in rows if row.workload.kind == kind and not row.workload.grad_mode]
        if plain:
            parts += [f"## {title}", table(plain), *remarks(plain)]
    if graded := [row for row in rows if row.workload.grad_mode]:
        parts += ["## Grad mode", table(graded), *remarks(graded)]
    if not quick:  # compilers used their caches there
        parts += ["## The first call", FIRST, first_calls(rows)]
    return "\n\n".join(parts) + "\n"


def lines_of(cells: Iterable[Sequence[str]], words: int = 1) -> str:
    """Lay a table out, its first columns being words."""
    head, *body = map(list, cells)
    rule = ["---"] * words + ["--:"] * (len(head) - words)
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *body])


# --- calls ---------------------------------------------------------------------------------------


def table(rows: Sequence[Row]) -> str:
    """Return one table: own times, then tuned plans to eager peers and compiled ones to compiled."""
    eager, *compiled = PEERS[rows[0].workload.kind]
    compiled_names = [name for names in compiled for name in names]
    versus = [(TUNED, name) for name in eager] + [(COMPILED, name) for name in compiled_names]
    if any(BY_HAND in row.seconds for row in rows):
        versus += [(TUNED, BY_HAND), (COMPILED, FLOOR)]
    own = [EAGER, PLAN, TUNED, COMPILED]
    head = ["workload", "chosen", "n", "m", EAGER, PLAN, TUNED, "±", COMPILED, "±"]
    head += [f"{mine.removesuffix(' plan')} to {theirs}" for mine, theirs in versus]
    body = []
    for row in rows:
        cells = [row.workload.name, row.chosen.get(PLAN, ""), str(row.inputs), str(row.outputs)]
        for name in own:
            cells.append(time_of(row, name))
            if name in (TUNED, COMPILED):
                cells.append(f"{row.spreads[name]:.0%}" if name in row.spreads else "")
        body.append(cells + [ratio_of(row, mine, theirs) for mine, theirs in versus])
    ratios = [[row.ratio(mine, theirs) for row in rows] for mine, theirs in versus]
    means = [mean(ratio for ratio in column if ratio is not None) for column in ratios]
    return lines_of([head, *body, ["geometric mean", *[""] * 9, *means]], words=2)


def time_of(row: Row, name: str) -> str:
    return readable(row.seconds[name]) if name in row.seconds else why_not(row, name)


def ratio_of(row: Row, mine: str, theirs: str) -> str:
    ratio = row.ratio(mine, theirs)
    return why_not(row, theirs) if ratio is None else f"{ratio:.2g}"


def why_not(row: Row, name: str) -> str:
    return "raised" if name in row.raised else "differs" if name in row.differs else ""


def remarks(rows: Sequence[Row]) -> list[str]:
    """Return what the cells had no room for."""
    bullets = []
    for row in rows:
        where = row.workload.name
        bullets += [f"- {where}, {name} raised: {why}" for name, why in row.raised.items()]
        bullets += [f"- {where}, {name} differs: {why}" for name, why in row.differs.items()]
        if row.chosen.get(TUNED) != row.chosen.get(PLAN):
            bullets.append(f"- {where}: tuning chose {row.chosen.get(TUNED)}" + compiled_too(row))
    return ["\n".join(bullets)] if bullets else []


def compiled_too(row: Row) -> str:
    ratio = row.ratio(COMPILED_TUNED, COMPILED)
    return "" if ratio is None else f"; compiled, {ratio:.2g} of the time of the counted one"


# --- first calls ---------------------------------------------------------------------------------


def first_calls(rows: Sequence[Row]) -> str:
    head = ["workload", "plan", "tuned plan", "compile", "torch.compile", "jax.jit"]
    head += ["pays after, eager", "pays after, torch.compile"]
    body = []
    for row in rows:
        eager, torch_compiled, jitted = PEERS[row.workload.kind]
        rivals = [row.best(torch_compiled), row.best(jitted)]
        seconds = [row.first.get(name or "") for name in (PLAN, TUNED, COMPILED, *rivals)]
        cells = ["" if at is None else readable(at) for at in seconds]
        plain = row.best((*eager, EAGER))
        body.append([row.workload.name, *cells, pays(row, plain, 0.0), pays(row, rivals[0])])
    return lines_of([head, *body])


def pays(row: Row, theirs: str | None, their_first: float | None = None) -> str:
    """After how many calls a compiled plan, made for them, is ahead of somebody."""
    if COMPILED not in row.seconds or theirs not in row.seconds:
        return ""
    if their_first is None:
        their_first = row.first[theirs]
    spent = row.first[PLAN] + row.first[COMPILED] - their_first
    saved = row.seconds[theirs] - row.seconds[COMPILED]
    if saved <= 0:
        return "never"
    return "at once" if spent <= 0 else f"{math.ceil(spent / saved):,}"


# --- targets -------------------------------------------------------------------------------------


def targets(rows: Sequence[Row]) -> str:
    """Return what was aimed at, what was measured, and whether that holds."""
    named = {row.workload.name: row for row in rows}
    body = []

    def aim(what: str, most: float, row: Row | None, mine: str, against: Sequence[str]) -> None:
        theirs = row.best(against) if row else None
        ratio = row.ratio(mine, theirs) if row else None
        if row is None or theirs is None or ratio is None:
            return
        noisy = ", noisy" if max(row.spreads[mine], row.spreads[theirs]) > NOISY else ""
        held = ("yes" if ratio <= most else "**no**") + noisy
        body.append([f"{row.workload.name}: {what}", f"≤ {most:g}", f"{ratio:.3g}", held])

    modes, _, jitted = PEERS["jac"]
    for arm in (named.get(ARM), named.get("7-joint arm")):
        aim("compiled to compile(jacrev)", 0.25, arm, COMPILED, ["compile(jacrev)"])
        aim("compiled to the faster jax.jit", 1.0, arm, COMPILED, jitted)
    aim("compiled to the faster jax.jit", 1.2, named.get("tiny"), COMPILED, jitted)
    waist = named.get(WAIST)
    aim("plan to the better of jacrev and jacfwd", 0.15, waist, PLAN, modes[:2])
    aim("compiled to the better of jacrev and jacfwd", 0.07, waist, COMPILED, modes[:2])
    hessian, batch = named.get("MLP Hessian"), named.get("batch of 512")
    aim("compiled to jit(hessian)", 1.05, hessian, COMPILED, PEERS["hessian"][2])
    aim("compiled to jit(vmap(jacrev))", 1.0, batch, COMPILED, PEERS["batched"][2])
    for size in (64, 256):
        aim("compiled to asdex", 1.0, named.get(f"Brusselator N={size}"), COMPILED, [ASDEX])
    if by_hand := {
        r: row for row in rows if (r := row.ratio(TUNED, best_by_hand(row))) is not None
    }:
        what = f"tuned plan to the best way by hand, the worst of {len(by_hand)} rows"
        row = by_hand[max(by_hand)]
        aim(what, 1.1, row, TUNED, PEERS[row.workload.kind][0])
    return lines_of([["what", "target", "measured", "held?"], *body])


def best_by_hand(row: Row) -> str | None:
    return row.best(PEERS[row.workload.kind][0])


# --- the picture ---------------------------------------------------------------------------------


def save_plot(rows: Sequence[Row], path: Path, subtitle: str) -> None:
    """Draw compiled plans against each group of peers, one line of dots per workload."""
    from matplotlib import pyplot as plt

    from .plot import COLORS, INK, PALE

    series = [
        ("plan to the best way by hand", PLAN, "o", 0),
        ("compiled to torch.compile", COMPILED, "s", 1),
        ("compiled to jax.jit", COMPILED, "^", 2),
    ]
    heights = range(len(rows), 0, -1)
    figure, axis = plt.subplots(figsize=(8, 0.28 * len(rows) + 1.5), layout="constrained")
    axis.set_xscale("log")
    axis.axvline(1, color=INK, linewidth=1, zorder=1)
    axis.hlines(heights, LEAST, 4, color=PALE, linewidth=1, zorder=0)
    for label, mine, marker, group in series:
        peers = [row.best(PEERS[row.workload.kind][group]) for row in rows]
        ratios = [row.ratio(mine, peer) for row, peer in zip(rows, peers, strict=True)]
        drawn = [math.nan if ratio is None else max(ratio, LEAST) for ratio in ratios]
        axis.scatter(
            drawn, heights, s=30, marker=marker, color=COLORS[group], label=label, zorder=2
        )
    axis.set_yticks(list(heights), [row.workload.name for row in rows], fontsize=8)
    axis.set_xlabel(
        "time of torchjac / time of the peer  (left of 1: torchjac is faster; 0.01: or less)",
        fontsize=8,
    )
    axis.tick_params(axis="both", length=0, labelsize=8)
    axis.grid(axis="x", color=PALE, linewidth=0.5)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)
    axis.legend(loc="upper left", bbox_to_anchor=(0, -0.07), ncols=3, frameon=False, fontsize=8)
    figure.suptitle(f"Plans against their peers\n{subtitle}", fontsize=8, color=INK)
    figure.savefig(path, dpi=130)
    plt.close(figure)
