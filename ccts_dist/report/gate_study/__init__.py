"""The gate study: what conditional distillation gains, against a random gate of equal share and an oracle."""
