"""Silence for padded frames where a speech encoder convolves over time and transformers leaves something in them."""

from typing import cast

from torch import Tensor, nn
from transformers import PreTrainedModel


class ZeroPadding:
    """A forward pre-hook that silences padded frames; a plain object, so that a copied model copies it too."""

    def __init__(self) -> None:
        self.real: Tensor | None = None
        """[batch frames]: which frames are real in the pass at hand."""

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        assert self.real is not None
        return (inputs[0].masked_fill(~self.real[:, None], 0.0), *inputs[1:])


def zero_before_convolutions(encoder: PreTrainedModel) -> ZeroPadding | None:
    """Silence padding before those convolutions over time that would carry it into real frames; None if there are none.

    transformers zeroes padded frames once, before the positional convolution. data2vec then convolves five times, some
    HuBERTs apply batch norm first, and a conformer convolves within every layer: in all of them the padding is no
    longer zero where the convolution meets it.
    """
    inner = cast(nn.Module, encoder.encoder)
    if not hasattr(inner, "pos_conv_embed"):
        return None
    positions = cast(nn.Module, inner.pos_conv_embed)
    convolutions: list[nn.Module] = [module for module in positions.modules() if isinstance(module, nn.Conv1d)]
    has_batch_norm = any(isinstance(module, nn.BatchNorm1d) for module in positions.modules())
    if len(convolutions) == 1 and not has_batch_norm:
        convolutions = []
    convolutions += [module for name, module in inner.named_modules() if name.endswith("conv_module.depthwise_conv")]
    if not convolutions:
        return None
    hook = ZeroPadding()
    for convolution in convolutions:
        convolution.register_forward_pre_hook(hook)
    return hook
