"""Plans: a function looked into once, every way to its derivative counted, and the cheapest kept."""
