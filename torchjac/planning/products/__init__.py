"""Products with a Jacobian that nobody holds: operators, Gram matrices, blocks."""
