"""A finished teacher's outputs for a shard set, and what is fitted on them."""

from ccts_dist.teacher.build_cache import CacheSummary, cache_teacher

__all__ = ["CacheSummary", "cache_teacher"]
