"""Shard sets and teacher caches: their format, building, reading, checking and merging."""

from ccts_dist.shards.format.index import MemberPlaces, ShardRows
from ccts_dist.shards.format.schema import Manifest, ShardEntry, TeacherFacts
from ccts_dist.shards.shard_set import ShardSet, open_shard_set, read_member
from ccts_dist.shards.teacher_cache import TeacherCache, open_merged_teacher, open_teacher_cache

__all__ = [
    "Manifest",
    "MemberPlaces",
    "ShardEntry",
    "ShardRows",
    "ShardSet",
    "TeacherCache",
    "TeacherFacts",
    "open_merged_teacher",
    "open_shard_set",
    "open_teacher_cache",
    "read_member",
]
