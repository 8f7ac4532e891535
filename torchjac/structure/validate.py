"""Is a colouring right? Checked by the definitions, slowly, with nothing shared with what made it.

Source:
    Gebremedhin, Manne & Pothen, *What Color Is Your Jacobian?* (2005), on structurally orthogonal
    columns, on star and on acyclic colouring; Coleman & Moré (1984); Montoison, Dalle & Gebremedhin (2025) on
    neutral vertices.
"""

from __future__ import annotations

import random
from collections import defaultdict
from itertools import combinations

from torchjac.errors import PatternError
from torchjac.structure.coloring import Coloring

__all__ = ["check_coloring"]


def check_coloring(coloring: Coloring) -> None:
    """Refuse a colouring from which some entry cannot be recovered.

    First by its definition in terms of graphs, then by doing what it is for: a random integer matrix
    with this pattern has to come back exactly out of its products.

    Args:
        coloring: any `Coloring`.

    Raises:
        PatternError: the colouring is wrong; the message names columns, rows or entries.

    Example:
        >>> import torch, torchjac
        >>> from torchjac.structure.validate import check_coloring
        >>> pattern = torchjac.SparsityPattern.from_dense(torch.ones(2, 2))
        >>> check_coloring(torchjac.color(pattern, by="rows"))
        >>> check_coloring(torchjac.Coloring(pattern, "rows", row_colors=[0, 0]))
        Traceback (most recent call last):
        ...
        torchjac.errors.PatternError: check_coloring: rows 0 and 1 have colour 0 and share column 0.
    """
    entries = list(zip(coloring.pattern.rows.tolist(), coloring.pattern.cols.tolist(), strict=True))
    columns = None if coloring.column_colors is None else coloring.column_colors.tolist()
    rows = None if coloring.row_colors is None else coloring.row_colors.tolist()
    for what, colors in (("column", columns), ("row", rows)):
        _no_color_is_empty(what, colors)
    if coloring.by == "columns":
        _orthogonal(entries, columns, "column", "row")
    elif coloring.by == "rows":
        _orthogonal([(j, i) for i, j in entries], rows, "row", "column")
    elif coloring.by == "symmetric":
        names = {vertex: f"column {vertex}" for vertex in range(len(columns or ()))}
        holds = _star if coloring.max_terms == 1 else _acyclic
        holds(entries, dict(enumerate(columns or ())), names)
    else:
        _bidirectional_star(entries, columns or [], rows or [])
    _recovers(coloring, entries, columns, rows)


def _wrong(what: str) -> PatternError:
    return PatternError(f"check_coloring: {what}.")


def _no_color_is_empty(what: str, colors: list[int] | None) -> None:
    missing = set(range(max(colors or [-1], default=-1) + 1)) - set(colors or [])
    if missing:
        raise _wrong(f"no {what} has colour {min(missing)}, which costs a pass all the same")


def _orthogonal(
    entries: list[tuple[int, int]], colors: list[int] | None, what: str, other: str
) -> None:
    """No two columns of one colour have an entry in the same row, and each with an entry has a colour."""
    assert colors is not None
    in_line = defaultdict(list)
    for i, j in entries:
        in_line[i].append(j)
        if colors[j] < 0:
            raise _wrong(f"{what} {j} has an entry in {other} {i} and no colour")
    for i, members in in_line.items():
        for j, k in combinations(members, 2):
            if colors[j] == colors[k]:
                raise _wrong(f"{what}s {j} and {k} have colour {colors[j]} and share {other} {i}")


def _star(edges: list[tuple[int, int]], colors: dict[int, int], names: dict[int, str]) -> None:
    """A star colouring with neutral vertices.

    A vertex with a loop (a diagonal entry) has a colour; of two neighbours one has a colour at least,
    and two colours differ; the neighbours of a neutral vertex all differ; and no path on four vertices
    has only two colours.
    """
    around = _proper(edges, colors, names)
    for v, neighbours in around.items():
        if colors[v] < 0:
            for w, x in combinations(sorted(neighbours), 2):
                if colors[w] == colors[x]:
                    raise _wrong(
                        f"{names[w]} and {names[x]} have colour {colors[w]} and meet at {names[v]}, "
                        f"which has none"
                    )
    for v, w in edges:
        _no_path_of_two_colors(v, w, around, colors, names)


def _proper(
    edges: list[tuple[int, int]], colors: dict[int, int], names: dict[int, str]
) -> dict[int, set[int]]:
    """The neighbours of each vertex, which have another colour; one with a loop has some colour."""
    around: dict[int, set[int]] = defaultdict(set)
    for v, w in edges:
        if v == w and colors[v] < 0:
            raise _wrong(f"{names[v]} has a diagonal entry and no colour")
        if v != w:
            around[v].add(w)
    for v, neighbours in around.items():
        for w in neighbours:
            if colors[v] == colors[w]:
                has = "no colour" if colors[v] < 0 else f"colour {colors[v]}"
                raise _wrong(f"{names[v]} and {names[w]} have {has} and an entry in common")
    return around


def _acyclic(edges: list[tuple[int, int]], colors: dict[int, int], names: dict[int, str]) -> None:
    """An acyclic colouring: all vertices have colours, neighbours differ, no cycle has two colours only."""
    around = _proper(edges, colors, names)
    for v in around:
        if colors[v] < 0:
            raise _wrong(f"{names[v]} has an entry and no colour")
    reached: dict[tuple[int, int], int] = {}
    for start, its in ((v, colors[v]) for v in around):
        for other in {colors[w] for w in around[start]}:
            # Walk over the tree of these two colours; whoever is met twice lies on a cycle.
            if (start, other) in reached:
                continue
            reached[start, other] = start
            walk = [(start, start)]
            while walk:
                v, before = walk.pop()
                opposite = other if colors[v] == its else its
                for w in around[v]:
                    if w == before or colors[w] != opposite:
                        continue
                    if (w, colors[v]) in reached:
                        raise _wrong(f"{names[w]} is on a cycle of two colours, {its} and {other}")
                    reached[w, colors[v]] = v
                    walk.append((w, v))


def _bidirectional_star(
    entries: list[tuple[int, int]], columns: list[int], rows: list[int]
) -> None:
    """A star colouring of [[0, Jᵀ], [J, 0]] with a palette for either side."""
    n, first_row = len(columns), max(columns, default=-1) + 1
    # Columns are vertices 0 to n - 1, rows n to n + m - 1.
    colors = dict(enumerate(columns))
    colors |= {n + i: c + first_row if c >= 0 else -1 for i, c in enumerate(rows)}
    names = {vertex: f"column {vertex}" for vertex in range(n)}
    names |= {n + i: f"row {i}" for i in range(len(rows))}
    edges = [(n + i, j) for i, j in entries]
    _star(edges + [(j, i) for i, j in edges], colors, names)


def _no_path_of_two_colors(
    v: int, w: int, around: dict[int, set[int]], colors: dict[int, int], names: dict[int, str]
) -> None:
    """No u - v - w - x with colours a, b, a, b."""
    if v == w or colors[v] < 0 or colors[w] < 0:
        return
    before = [u for u in around[v] if u != w and colors[u] == colors[w]]
    after = [x for x in around[w] if x != v and colors[x] == colors[v]]
    if before and after:
        path = " - ".join(names[at] for at in (before[0], v, w, after[0]))
        raise _wrong(f"the path {path} has two colours, {colors[v]} and {colors[w]}")


def _recovers(
    coloring: Coloring,
    entries: list[tuple[int, int]],
    columns: list[int] | None,
    rows: list[int] | None,
) -> None:
    """The operational definition: products of a random integer matrix give back the matrix."""
    draw = random.Random(0)
    values: dict[tuple[int, int], int] = {}
    for i, j in entries:
        mirrored = values.get((j, i)) if coloring.by == "symmetric" else None
        values[i, j] = mirrored if mirrored is not None else draw.randrange(1, 2**40)
    by_columns: dict[tuple[int, int], int] = defaultdict(int)
    by_rows: dict[tuple[int, int], int] = defaultdict(int)
    for (i, j), value in values.items():
        if columns is not None and columns[j] >= 0:
            by_columns[columns[j], i] += value
        if rows is not None and rows[i] >= 0:
            by_rows[rows[i], j] += value
    places = zip(
        coloring.from_columns.tolist(),
        coloring.group.tolist(),
        coloring.position.tolist(),
        strict=True,
    )
    added: dict[int, list[int]] = defaultdict(list)
    for entry, group, position, sign in zip(
        *(part.tolist() for part in coloring.corrections), strict=True
    ):
        added[entry].append(sign * by_columns[group, position])
    for k, ((i, j), (from_columns, group, position)) in enumerate(
        zip(entries, places, strict=True)
    ):
        read = (by_columns if from_columns else by_rows)[group, position]
        if read + sum(added[k]) != values[i, j]:
            raise _wrong(f"entry ({i}, {j}) does not come back")
        if 1 + len(added[k]) > coloring.max_terms:
            raise _wrong(f"entry ({i}, {j}) takes more than {coloring.max_terms} products")
