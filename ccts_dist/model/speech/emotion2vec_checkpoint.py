"""Published checkpoints of emotion2vec, made into folders that a run file names like any other encoder:

    python -m ccts_dist.model.speech.emotion2vec_checkpoint emotion2vec_base.pt FOLDER

They are files of fairseq (emotion2vec_base.pt) or of FunASR (model.pt of emotion2vec_base and of the emotion2vec+
models). The decoder of pretraining, its moving average and the classifier of the emotion2vec+ models are omitted.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ccts_dist.errors import ConfigError, run_main
from ccts_dist.model.speech.emotion2vec import Emotion2vecConfig, Emotion2vecModel, alibi_slopes
from ccts_dist.model.speech.published import READ_ERRORS, read_tensors, refuse_existing, run_converter, save_folder

_AUDIO = "modality_encoders.AUDIO."
_LEFT_OUT = re.compile(r"proj\.|_ema($|\.)|modality_encoders\.AUDIO\.decoder\.")
_BLOCK = r"(?:modality_encoders\.AUDIO\.context_encoder\.)?blocks\.(\d+)\."
_CONV = r"modality_encoders\.AUDIO\.local_encoder\.conv_layers\.(\d+)\."

_RENAMED = {
    _CONV + r"0\.(.*)": r"feature_extractor.conv_layers.\1.conv.\2",
    _CONV + r"2\.1\.(.*)": r"feature_extractor.conv_layers.\1.layer_norm.\2",
    r"modality_encoders\.AUDIO\.project_features\.1\.(.*)": r"feature_projection.layer_norm.\1",
    r"modality_encoders\.AUDIO\.project_features\.2\.(.*)": r"feature_projection.projection.\1",
    r"modality_encoders\.AUDIO\.context_encoder\.norm\.(.*)": r"encoder.layer_norm.\1",
    r"modality_encoders\.AUDIO\.extra_tokens": "encoder.extra_tokens",
}
"""Names in the checkpoint, as patterns, and ours."""


def convert(checkpoint: Path, folder: Path) -> None:
    """Make a folder that a run file can name out of a published checkpoint; runs no code of the file.

    Raises:
        ConfigError: no such file, or no such checkpoint; or the folder is there already.
    """
    refuse_existing(folder)
    try:
        published = _encoder_weights(read_tensors(checkpoint))
        tensors, num_context = _renamed(published)
        model = Emotion2vecModel(_shape_of(published, num_context))
        model.load_state_dict(tensors)
    except READ_ERRORS as error:
        words = " ".join(str(error).split())[:240]
        raise ConfigError(
            f"{checkpoint}: no emotion2vec checkpoint: {words}. Give emotion2vec_base.pt, or model.pt of an "
            "emotion2vec+ model."
        ) from error
    save_folder(model, folder, do_normalize=True)


def _encoder_weights(stored: object) -> dict[str, Tensor]:
    """The tensors that computing frames takes, by their names in emotion2vec_base."""
    state = stored.get("model", stored) if isinstance(stored, Mapping) else None
    if not isinstance(state, Mapping):
        raise LookupError("it holds no weights by name")
    named = {name.removeprefix("d2v_model."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in named.items() if not _LEFT_OUT.match(name)}


def _shape_of(published: Mapping[str, Tensor], num_context: int) -> Emotion2vecConfig:
    """The shape that the weights have; strides are not in them, and are the published ones."""
    convolutions = _numbered(published, _AUDIO + "local_encoder.conv_layers.{}.0.weight")
    positions = _numbered(published, _AUDIO + "relative_positional_encoder.{}.0.weight", first=1)
    size = published[_AUDIO + "project_features.2.weight"].shape[0]
    scale = published[_AUDIO + "alibi_scale"]
    # One number for all heads would leave open how many they are.
    if scale.dim() < 3 or scale.numel() != scale.shape[-3] or scale.numel() == 1:
        raise LookupError(f"alibi_scale of shape {list(scale.shape)} is not one number a head")
    return Emotion2vecConfig(
        hidden_size=size,
        num_hidden_layers=num_context + len(_numbered(published, "blocks.{}.norm1.weight")),
        num_attention_heads=scale.numel(),
        intermediate_size=published["blocks.0.mlp.fc1.weight"].shape[0],
        num_extra_tokens=published[_AUDIO + "extra_tokens"].shape[1],
        conv_dim=[len(weight) for weight in convolutions],
        conv_kernel=[weight.shape[2] for weight in convolutions],
        num_conv_pos_embeddings=len(positions),
        conv_pos_kernel_size=positions[0].shape[2],
        num_conv_pos_embedding_groups=size // positions[0].shape[1],
    )


def _numbered(published: Mapping[str, Tensor], name: str, *, first: int = 0) -> list[Tensor]:
    """The tensors of names that differ by a number, which counts up from ``first``."""
    found: list[Tensor] = []
    while (tensor := published.get(name.format(first + len(found)))) is not None:
        found.append(tensor)
    if not found:
        raise LookupError(f"it has no {name.format(first)}")
    return found


def _renamed(published: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """All tensors under our names, and how many layers the context encoder has, which are our lowest."""
    num_context = len(_numbered(published, _AUDIO + "context_encoder.blocks.{}.norm1.weight"))
    tensors = {}
    for name, tensor in published.items():
        if block := re.match(_BLOCK, name):
            number = int(block[1]) + (0 if name.startswith(_AUDIO) else num_context)
            rest = name[block.end() :].replace("attn.", "attention.").removeprefix("mlp.")
            tensors[f"encoder.layers.{number}.{rest}"] = tensor
        elif positions := re.fullmatch(r"modality_encoders\.AUDIO\.relative_positional_encoder\.(\d+)\.0\.(.*)", name):
            tensors[f"encoder.pos_conv_embed.layers.{int(positions[1]) - 1}.{positions[2]}"] = tensor
        elif name == _AUDIO + "alibi_scale":
            # Theirs is a factor for fixed slopes, and counts as 0 below; ours are the slopes.
            scale = tensor.flatten().clamp(min=0.0)
            tensors["encoder.distance_slopes"] = scale * torch.tensor(alibi_slopes(len(scale)))
        else:
            ours = [re.sub(theirs, to, name) for theirs, to in _RENAMED.items() if re.fullmatch(theirs, name)]
            if not ours:
                raise LookupError(f"unknown weight {name}")
            tensors[ours[0]] = tensor
    return tensors, num_context


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    example = "python -m ccts_dist.model.speech.emotion2vec_checkpoint emotion2vec_base.pt encoders/emotion2vec"
    file = "emotion2vec_base.pt, or model.pt of an emotion2vec+ model"
    return run_converter(argv, convert, of="emotion2vec", file=file, example=example)


if __name__ == "__main__":
    raise SystemExit(run_main(main))
