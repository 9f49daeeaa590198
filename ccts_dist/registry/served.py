"""The former name of ``serving.handler``, which models registered before 0.2.0 import."""

from ccts_dist.serving.handler import open_served

__all__ = ["open_served"]
