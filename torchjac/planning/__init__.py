"""Decide how: the mode, the chunks, what was learnt before, and what to do when PyTorch says no."""
