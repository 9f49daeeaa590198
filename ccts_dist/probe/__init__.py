"""Labels predicted from each layer of a frozen encoder: one linear probe per layer, fitted in closed form."""

from ccts_dist.probe.encoders import Encoders, FrozenEncoders, Layer, open_encoders
from ccts_dist.probe.layer_probe import LayerScore, ProbeResult, probe_layers
from ccts_dist.probe.splits import ProbeSplits

__all__ = [
    "Encoders",
    "FrozenEncoders",
    "Layer",
    "LayerScore",
    "ProbeResult",
    "ProbeSplits",
    "open_encoders",
    "probe_layers",
]
