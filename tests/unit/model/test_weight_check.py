"""Weights of an encoder are held against its weight files."""

import pytest
import torch
from transformers import HubertConfig, HubertModel

from ccts_dist.errors import ConfigError
from ccts_dist.model.weight_check import check_loaded
from tests.helpers.models.model_shapes import SPEECH


def test_weights_in_several_files_are_held_against_the_encoder(tmp_path):
    encoder = HubertModel(HubertConfig(**{key: value for key, value in SPEECH.items() if key != "model_type"}))
    encoder.save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").stat().st_size
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="is not in its weight file"):
        check_loaded(encoder, str(tmp_path), reported_missing=encoder.state_dict())
    encoder.save_pretrained(tmp_path, max_shard_size=whole // 3)
    assert not (tmp_path / "model.safetensors").exists()
    check_loaded(encoder, str(tmp_path), reported_missing=encoder.state_dict())
    with torch.no_grad():
        next(encoder.parameters()).add_(1.0)
    with pytest.raises(ConfigError, match="is not what its weight file holds"):
        check_loaded(encoder, str(tmp_path))
