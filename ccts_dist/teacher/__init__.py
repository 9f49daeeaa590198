"""A finished teacher's outputs for a shard set, and what is fitted on them."""

from ccts_dist.teacher.cache import CacheSummary, cache_teacher

__all__ = ["CacheSummary", "cache_teacher"]
