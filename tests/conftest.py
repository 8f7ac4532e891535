"""The Hypothesis profiles, and a deterministic start for every test."""

import os

import pytest
import torch
from hypothesis import settings

from torchjac.planning.memory import forget_everything

# A test that wants more or fewer examples than others scales `settings.default.max_examples`.
EXAMPLES = 25

settings.register_profile("default", max_examples=EXAMPLES, deadline=None, derandomize=True)
settings.register_profile("ci", settings.get_profile("default"), print_blob=True)
settings.register_profile("deep", max_examples=20 * EXAMPLES, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("TORCHJAC_PROFILE", "default"))

# Several small processes share the cores better than several threads share a small tensor.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _fresh_start():
    """Nothing remembered and one seed, so that what a first call costs can be counted."""
    forget_everything()
    torch.manual_seed(0)
