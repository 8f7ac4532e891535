"""Whether two functions are told apart."""

from torchjac.planning.signature import of_function


def same(one, other):
    (a, _), (b, _) = of_function(one), of_function(other)
    return a == b and hash(a) == hash(b)
