"""Events on disk until a tracking server has them."""
