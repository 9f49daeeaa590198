"""Memory of a training: estimate, forecast, peak, recomputation, and running out of it."""
