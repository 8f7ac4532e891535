"""Run seeds through a function: one evaluator, and the engines behind it."""
