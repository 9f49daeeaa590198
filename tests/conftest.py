"""Shapes and types in ``ccts_dist`` signatures are checked while tests run, and only then."""

import os

from hypothesis import settings
from jaxtyping import install_import_hook

# Before torch: several tests run at once, and threads that spin for one another's cores took twice the time of one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

install_import_hook("ccts_dist", "beartype.beartype")

# Shared machines are slow at times; how long an example takes is measured in tests/bench, never asserted.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
