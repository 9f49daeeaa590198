"""Modified CPC (Riviere et al., arXiv 2002.02848): convolutions that see zeros beyond both ends, and LSTMs above them.

transformers has no such encoder, so here is one in its form, which AutoModel opens once this module is imported. The
published checkpoint is one file that torch pickled; made into a folder, it is named in a run file like any other:

    python -m ccts_dist.model.speech.modified_cpc 60k_epoch4-d0f474de.pt FOLDER
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast, no_type_check

import torch
from huggingface_hub.dataclasses import strict
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from ccts_dist.errors import ConfigError, run_main
from ccts_dist.model.pooling import real_positions
from ccts_dist.model.precision import widened
from ccts_dist.model.speech.published import READ_ERRORS, refuse_existing, run_converter, save_folder

MODEL_TYPE = "modified-cpc"


@no_type_check  # run-time checkers would hold its constructor to the fields; transformers passes more
@strict
class ModifiedCpcConfig(PreTrainedConfig):
    """The shape of a Modified CPC encoder; as published by default: a frame each 10 ms, 256 features."""

    model_type = MODEL_TYPE

    hidden_size: int = 256
    """Features of the LSTMs, and of the last convolution: all layers' frames are equally wide."""

    num_hidden_layers: int = 2
    """LSTMs, one above the other."""

    conv_dim: list[int] | tuple[int, ...] = (256,) * 5
    conv_kernel: list[int] | tuple[int, ...] = (10, 8, 4, 4, 4)
    conv_stride: list[int] | tuple[int, ...] = (5, 4, 2, 2, 2)
    conv_padding: list[int] | tuple[int, ...] = (3, 2, 1, 1, 1)
    """Zeros before the first and after the last position that a convolution reads."""

    channel_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    apply_spec_augment: bool = False
    """Must stay false: the encoder was published without, and has none."""

    mask_time_prob: float = 0.0
    mask_time_length: int = 10
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10

    def validate_architecture(self) -> None:
        """Called by the decorator."""
        lists = (self.conv_dim, self.conv_kernel, self.conv_stride, self.conv_padding)
        if not self.conv_dim or len({len(one) for one in lists}) != 1:
            raise ValueError("conv_dim, conv_kernel, conv_stride and conv_padding must be equally long and not empty.")
        if self.conv_dim[-1] != self.hidden_size:
            raise ValueError(f"conv_dim must end in hidden_size = {self.hidden_size}, not in {self.conv_dim[-1]}.")


class ChannelNorm(nn.Module):
    """Zero mean and unit variance over the channels of each position; the variance divides by their number less one."""

    def __init__(self, num_channels: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, num_channels, 1))
        self.bias = nn.Parameter(torch.zeros(1, num_channels, 1))
        self.eps = eps

    def forward(self, hidden: Float[Tensor, "batch channels frames"]) -> Float[Tensor, "batch channels frames"]:
        wide = widened(hidden)
        variance, mean = torch.var_mean(wide, dim=1, keepdim=True, correction=1)
        return ((wide - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias).to(hidden.dtype)


class PaddedConvLayer(nn.Module):
    """A convolution with zeros beyond both ends, the norm over channels, and a ReLU.

    Given how many of each row's positions are real, it hands on zeros after them: the next layer must see beyond a
    row's end what it would see there if the row were alone.
    """

    def __init__(self, config: ModifiedCpcConfig, number: int) -> None:
        super().__init__()
        channels = 1 if number == 0 else config.conv_dim[number - 1]
        self.kernel, self.stride, self.padding = (
            shape[number] for shape in (config.conv_kernel, config.conv_stride, config.conv_padding)
        )
        self.conv = nn.Conv1d(channels, config.conv_dim[number], self.kernel, stride=self.stride, padding=self.padding)
        self.norm = ChannelNorm(config.conv_dim[number], config.channel_norm_eps)

    def forward(
        self, hidden: Float[Tensor, "batch channels positions"], num_frames: Int64[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch features frames"]:
        hidden = F.relu(self.norm(self.conv(hidden)))
        if num_frames is None:
            return hidden
        return hidden.masked_fill(~real_positions(num_frames, hidden.shape[2])[:, None], 0.0)

    def num_frames(self, num_positions: Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
        """Frames that come of so many positions."""
        steps = torch.div(num_positions + 2 * self.padding - self.kernel, self.stride, rounding_mode="floor")
        return (steps + 1).clamp(min=0)


class _Convolutions(nn.Module):
    def __init__(self, config: ModifiedCpcConfig) -> None:
        super().__init__()
        self.conv_layers = nn.ModuleList(PaddedConvLayer(config, number) for number in range(len(config.conv_dim)))

    def forward(self, audio: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch features frames"]:
        hidden = audio[:, None]
        for layer in self.conv_layers:
            hidden = layer(hidden)
        return hidden


class _Lstm(GradientCheckpointingLayer, nn.LSTM):
    """One that can be recomputed in the backward pass."""


class _Lstms(nn.Module):
    def __init__(self, config: ModifiedCpcConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.layers = nn.ModuleList(_Lstm(size, size, batch_first=True) for _ in range(config.num_hidden_layers))

    def forward(self, hidden: Float[Tensor, "batch frames features"]) -> list[Float[Tensor, "batch frames features"]]:
        """Frames that leave each, the lowest first, after what came in."""
        states = [hidden]
        for layer in self.layers:
            states.append(layer(states[-1].to(cast(nn.LSTM, layer).all_weights[0][0].dtype))[0])
        return states


class ModifiedCpcModel(PreTrainedModel):
    """Waveforms to frames. The LSTMs read forwards only, so that padding after a row's end cannot reach its frames."""

    config_class = ModifiedCpcConfig
    base_model_prefix = "modified_cpc"
    main_input_name = "input_values"

    def __init__(self, config: ModifiedCpcConfig) -> None:
        super().__init__(config)
        self.feature_extractor = _Convolutions(config)
        self.encoder = _Lstms(config)
        self.post_init()

    def forward(
        self,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> BaseModelOutput:
        """``input_values`` are samples [batch samples], or frames [batch features frames] if the convolutions were
        taken out; ``attention_mask`` is of no account (see the class)."""
        states = self.encoder(self.feature_extractor(input_values).transpose(1, 2))
        hidden_states = cast(Any, tuple(states)) if output_hidden_states else None
        return BaseModelOutput(last_hidden_state=states[-1], hidden_states=hidden_states)

    def _get_feat_extract_output_lengths(self, num_samples: Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"]:
        settings = self.config
        shapes = zip(settings.conv_kernel, settings.conv_stride, settings.conv_padding, strict=True)
        for kernel, stride, padding in shapes:
            num_samples = torch.div(num_samples + 2 * padding - kernel, stride, rounding_mode="floor") + 1
        return num_samples


AutoConfig.register(MODEL_TYPE, ModifiedCpcConfig)
AutoModel.register(ModifiedCpcConfig, ModifiedCpcModel)


def convert(checkpoint: Path, folder: Path) -> None:
    """Make a folder that a run file can name out of a checkpoint of facebookresearch's CPC_audio.

    The file is read without unpickling anything but tensors and plain values.

    Raises:
        ConfigError: no such file, not such a checkpoint, or of a kind other than layer norm and LSTM; or the folder is
            there already.
    """
    refuse_existing(folder)
    try:
        published = torch.load(checkpoint, map_location="cpu", weights_only=True)["weights"]
        config, tensors = _shape_of(published), _renamed(published)
        model = ModifiedCpcModel(config)
        model.load_state_dict(tensors)
    except READ_ERRORS as error:
        words = " ".join(str(error).split())[:240]
        raise ConfigError(
            f"{checkpoint}: no Modified CPC checkpoint with layer norm and LSTMs: {words}. Give the one that "
            "facebookresearch's CPC_audio names."
        ) from error
    save_folder(model, folder, do_normalize=False)  # it was trained on waves as they are


def _shape_of(published: Mapping[str, Tensor]) -> ModifiedCpcConfig:
    convolutions = [published[f"gEncoder.conv{number}.weight"] for number in range(5)]
    first, num_lstms = published["gAR.baseNet.weight_hh_l0"], 1
    if first.shape[0] != 4 * first.shape[1]:
        raise LookupError("its recurrent layers are no LSTMs")
    while f"gAR.baseNet.weight_hh_l{num_lstms}" in published:
        num_lstms += 1
    return ModifiedCpcConfig(
        hidden_size=first.shape[1],
        num_hidden_layers=num_lstms,
        conv_dim=[len(weight) for weight in convolutions],
        conv_kernel=[weight.shape[2] for weight in convolutions],
    )


def _renamed(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = {}
    for name, tensor in published.items():
        part, _, rest = name.partition(".")
        if part == "gEncoder":
            module, _, kind = rest.partition(".")
            number, ours = module[-1], "conv" if module.startswith("conv") else "norm"
            tensors[f"feature_extractor.conv_layers.{number}.{ours}.{kind}"] = tensor
        elif part == "gAR":
            kind, _, number = rest.removeprefix("baseNet.").rpartition("_l")
            tensors[f"encoder.layers.{number}.{kind}_l0"] = tensor
        else:
            raise LookupError(f"unknown weight {name}")
    return tensors


def main(argv: list[str] | None = None) -> int:
    """The exit code."""
    example = "python -m ccts_dist.model.speech.modified_cpc 60k_epoch4-d0f474de.pt msp/encoders/modified-cpc"
    file = "file of facebookresearch's CPC_audio"
    return run_converter(argv, convert, of="Modified CPC", file=file, example=example)


if __name__ == "__main__":
    raise SystemExit(run_main(main))
