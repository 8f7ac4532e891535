"""Where a linear map given as code can have nonzeros, for all values of what it is taken at."""

from torchjac.structure.detection.trace import Detected, linear_pattern

__all__ = ["Detected", "linear_pattern"]
