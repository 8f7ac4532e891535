"""Where the nonzeros of a Jacobian are, and how few passes can tell them apart."""
