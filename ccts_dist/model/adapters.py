"""Low-rank adapters (LoRA, Hu et al., arXiv 2106.09685) in the attention of an encoder, by peft; and their merging.

An adapted layer computes ``W x + B A x``: ``W`` stays as pretrained, ``A`` [rank in] and ``B`` [out rank] are trained,
and ``B`` begins at zero. Only training has adapters: saved models have ``W + B A`` in place of ``W``.
"""

from collections.abc import Mapping

from torch import Tensor, nn
from transformers import PreTrainedModel

from ccts_dist.config import lora_rank
from ccts_dist.errors import ConfigError

ATTENTION = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("query_proj", "value_proj"),
    ("linear_q", "linear_v"),
    ("q_lin", "v_lin"),
    ("qkv",),
)
"""Names that families of encoders have for their projections to queries and values. Of one that projects to queries,
keys and values at once it is the name of that."""

FEED_FORWARD = {"wavlm": ("intermediate_dense", "output_dense")}
"""Names of feed-forward layers, by model type: attention of these families reads the weights of its projections without
calling them, so that adapters there would do nothing."""

_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.weight", ".lora_B.default.weight"


def add_adapters(encoder: PreTrainedModel, trainable: str, *, table: str) -> None:
    """Put adapters into an encoder whose ``trainable`` is "lora:R"; nothing for any other value.

    Nothing but the adapters is trained from then on. Their weights are drawn from torch's global generator.

    Args:
        table: the encoder's in the run file, for errors.

    Raises:
        ConfigError: an encoder without known attention.
        ModuleNotFoundError: peft is not installed.
    """
    rank = lora_rank(trainable)
    if rank is None:
        return
    targets = _targets(encoder)
    if not targets:
        raise ConfigError(
            f"{table}.trainable = {trainable!r}: no attention projections are found in an encoder of type "
            f"{encoder.config.model_type!r}. Set 'none', 'top:N' or 'all'."
        )
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds, and only adapters need it

    encoder.requires_grad_(False)
    # The scale alpha / rank is 1, so that what is merged is B A itself.
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets), encoder)


def merged_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model without adapters that computes what the one of ``state`` does; others as they are."""
    merged: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.endswith((_DOWN, _UP)):
            continue
        layer, found, kind = name.partition(_BASE)
        if found and kind == "weight":
            tensor = tensor + (state[layer + _UP].double() @ state[layer + _DOWN].double()).to(tensor.dtype)
        merged[f"{layer}.{kind}" if found else name] = tensor
    return merged


def _targets(encoder: PreTrainedModel) -> list[str]:
    """Full names of the layers that get adapters."""
    known = FEED_FORWARD.get(encoder.config.model_type)
    linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    for names in ATTENTION if known is None else (known,):
        if found := [name for name in linear if name.rpartition(".")[2] in names]:
            return found
    return []
