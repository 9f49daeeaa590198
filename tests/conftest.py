"""Shapes and types in ``ccts_dist`` signatures are checked while tests run, and only then."""

from jaxtyping import install_import_hook

install_import_hook("ccts_dist", "beartype.beartype")
