"""Recovery by substitution: an entry is a product less the other entries in it, which are known already."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchjac.structure.pattern import Indices, SparsityPattern

if TYPE_CHECKING:
    from scipy import sparse

__all__ = ["Corrections", "no_corrections", "substitutions"]


class Corrections(NamedTuple):
    """What has to be added where an entry is not alone in its product; int64, one of each for a term.

    Entry ``entry[t]`` of the pattern takes ``sign[t]`` times the number at ``position[t]`` of the product
    with colour ``group[t]``, beside the one that it is read from.
    """

    entry: Tensor
    group: Tensor
    position: Tensor
    sign: Tensor

    @classmethod
    def of(cls, *arrays: Indices) -> Corrections:
        """From NumPy arrays."""
        return cls(*[torch.from_numpy(array.astype(np.int64)) for array in arrays])


def no_corrections() -> Corrections:
    """For a matrix whose entries all stand alone."""
    return Corrections.of(*[np.empty(0, dtype=np.int64)] * 4)


def substitutions(
    pattern: SparsityPattern, colors: Indices, most: int
) -> tuple[Indices, Indices, Corrections]:
    """Find how every entry of a symmetric matrix is put together from at most ``most`` products.

    Round by round: a sum in which one entry is open gives that entry. So the entries between two colours,
    which make trees, are found from the leaves inwards.

    Args:
        pattern: symmetric.
        colors: of its columns, from 0, or -1.
        most: the products that an entry may take.

    Returns:
        Of each entry the colour of the product that it is read from and the position there, and the
        corrections. The colour is -1 for an entry that cannot be found.
    """
    rows, cols = pattern.coo
    colored = colors[cols] >= 0
    lost, number = np.full(pattern.nnz, -1), int(colors.max(initial=-1)) + 1
    if not colored.any():
        return lost, np.zeros(pattern.nnz, dtype=np.int64), no_corrections()
    # H[i, j] and H[j, i] are one unknown; the sums are those of each row and colour.
    either = np.minimum(np.arange(pattern.nnz), pattern.csc[2])
    unknown = np.unique(either, return_inverse=True)[1]
    keys, sums = np.unique(rows[colored] * number + colors[cols[colored]], return_inverse=True)
    group, position = keys % number, keys // number
    read, made = _solved(sums, unknown[colored], (len(keys), int(unknown.max()) + 1), most)
    place, terms = read[unknown], made[unknown].tocoo()
    beside = terms.col != place[terms.row]
    entry, at, sign = terms.row[beside], terms.col[beside], terms.data[beside]
    order = np.lexsort((at, entry))
    corrections = Corrections.of(entry[order], group[at[order]], position[at[order]], sign[order])
    return np.where(place < 0, lost, group[place]), position[place], corrections


def _solved(
    sums: Indices, unknowns: Indices, shape: tuple[int, int], most: int
) -> tuple[Indices, sparse.csr_matrix]:
    """Solve ``sum of unknowns = known`` from the sums with a single open unknown onwards.

    Args:
        sums: for every summand the sum that it is in.
        unknowns: likewise the unknown that it is.
        shape: how many sums and unknowns there are.
        most: sums that an unknown may be made of.

    Returns:
        Of each unknown the sum that gave it, or -1; and a matrix of 1 and -1 with a row for every unknown
        and a column for every sum that it is made of.
    """
    from scipy import sparse

    ones, (_, count) = np.ones(len(sums), dtype=np.int64), shape
    members = sparse.csr_matrix((ones, (sums, unknowns)), shape=shape)
    made = sparse.csr_matrix(shape[::-1], dtype=np.int64)
    read, terms = np.full(count, -1), np.zeros(count, dtype=np.int64)
    while True:
        is_open = (read < 0).astype(np.int64)
        ready = np.flatnonzero(members @ is_open == 1)
        found, length = members[ready] @ (np.arange(count) * is_open), 1 + members[ready] @ terms
        # Of the sums that give one unknown that which takes the fewest, if these are not too many.
        order = np.lexsort((ready, length, found))
        order = order[np.diff(found[order], prepend=-1) > 0]
        order = order[length[order] <= most]
        if not len(order):
            return read, made
        ready, found = ready[order], found[order]
        read[found], terms[found] = ready, length[order]
        new = ones[: len(ready)], (found, np.arange(len(ready)))
        into = sparse.csr_matrix(new, shape=(count, len(ready)))
        # unknown = sum - what else is in it
        made = (made + into @ (_rows_of_identity(ready, shape[0]) - members[ready] @ made)).tocsr()


def _rows_of_identity(rows: Indices, size: int) -> sparse.csr_matrix:
    from scipy import sparse

    ones = np.ones(len(rows), dtype=np.int64)
    return sparse.csr_matrix((ones, (np.arange(len(rows)), rows)), shape=(len(rows), size))
