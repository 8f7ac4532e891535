"""Derivatives as graphs of ATen operations: traced once, simplified, run or compiled."""
