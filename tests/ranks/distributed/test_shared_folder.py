"""A teacher's pass needs a folder that all ranks see: found out before the first utterance, not after the last."""

from pathlib import Path

import pytest
import torch

from ccts_dist.distributed import rank_facts
from ccts_dist.errors import TeacherError
from ccts_dist.shards.shard_set import open_shard_set
from ccts_dist.teacher import cache_teacher
from tests.helpers.models.small_teacher import build_small_shards, save_small_teacher
from tests.helpers.ranks.processes import run_on_ranks


def cache_in_own_folder(folder: Path, shards: Path) -> str:
    """As on hosts that each have a folder of that name for themselves."""
    ranks = rank_facts()
    out = folder / f"cache-of-{ranks.rank}"
    with pytest.raises(TeacherError) as refused:
        cache_teacher([folder / "teacher"], open_shard_set(shards), out, ranks=ranks, device=torch.device("cpu"))
    assert not list(out.glob("*.tar"))
    return str(refused.value)


def test_teachers_pass_into_a_folder_that_ranks_do_not_share_is_refused_before_it_begins(tmp_path):
    shard_set = build_small_shards(tmp_path / "corpus", {"Train": 12, "Development": 4})
    save_small_teacher(tmp_path / "teacher")
    first, second = run_on_ranks(cache_in_own_folder, 2, tmp_path, shard_set.root, timeout_s=300.0)
    assert first == second
    assert "rank 1 on " in first
    assert "does not see there what rank 0 wrote" in first
    assert str(tmp_path / "cache-of-1") in first
