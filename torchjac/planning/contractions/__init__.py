"""Sums over seeds: divergences, Laplacians and diagonals, exactly or from random probes."""
