"""Speed of a training: throughput, FLOPs, cost of a step, scaling over ranks, profiles."""
