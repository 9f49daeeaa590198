"""Shapes and types in ``ccts_dist`` signatures are checked while tests run, and only then."""

from hypothesis import settings
from jaxtyping import install_import_hook

install_import_hook("ccts_dist", "beartype.beartype")

# Shared machines are slow at times; how long an example takes is measured in tests/bench, never asserted.
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
