"""The layers of a transformers encoder: which are there, used, mixed, trained, and recomputed."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ccts_dist.config import layer_number, num_trainable_layers
from ccts_dist.errors import ConfigError
from ccts_dist.model.precision import widened
from ccts_dist.model.speech.conv_padding import ZeroPadding


class LayerMixture(nn.Module):
    """A learnt mean of what leaves an encoder's layers: softmax weights, equal at first; in float32 at least."""

    def __init__(self, num_states: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(num_states))

    def forward(
        self, states: Sequence[Float[Tensor, "batch frames features"]]
    ) -> Float[Tensor, "batch frames features"]:
        weights = widened(self.scores).softmax(dim=0)
        mixed = widened(states[0]) * weights[0]
        for state, weight in zip(states[1:], weights[1:], strict=True):
            mixed = mixed + widened(state) * weight
        return mixed


@dataclass(frozen=True, slots=True)
class ChosenLayers:
    """Choice of an encoder's frames: those that leave it, unless one of these sets another."""

    mixture: LayerMixture | None = None
    number: int | None = None
    """Number of a layer, in an encoder that cannot be cut there."""

    @property
    def is_last(self) -> bool:
        """Nothing but what leaves the encoder is needed."""
        return self.mixture is None and self.number is None


class LayerFrames(NamedTuple):
    """Frames that leave one layer of an encoder."""

    frames: Tensor
    """[batch frames features]."""

    num_frames: Tensor
    """[batch]: how many of each row's frames are real."""


class EncoderLayers:
    """An encoder's transformer layers; knows where each family of encoders keeps them."""

    def __init__(self, encoder: PreTrainedModel, *, table: str, is_known: bool = True) -> None:
        """In an encoder that is not known here, what it names after its layers is taken for what lies above them.

        Args:
            table: the encoder's in the run file, for errors.
            is_known: whether it is of a family of speech encoders that is known here, or reads text.
        """
        self._encoder, self._table, self._is_known = encoder, table, is_known
        if table == "model.text":
            self._layers = _text_layers(encoder)
        else:
            self._layers = _speech_layers(encoder) if is_known else named_layers(encoder)

    def choose(self, layers: str) -> ChosenLayers:
        """Make the encoder compute what ``layers`` names and no more.

        Raises:
            ConfigError: no such layer.
        """
        if layers == "last":
            return ChosenLayers()
        if hasattr(self._encoder.config, "squeeze_factor"):
            raise ConfigError(
                f"{self._table}.layers = {layers!r}: must be 'last' for a {self._encoder.config.model_type} encoder, "
                "whose layers have fewer frames than what leaves it. Leave it out."
            )
        if self._layers is None and not self._is_known:
            raise ConfigError(
                f"{self._table}.layers = {layers!r}: must be 'last' for a {self._encoder.config.model_type} encoder, "
                "whose layers are not found under any usual name. Leave it out."
            )
        number = layer_number(layers)
        if number is None:
            return ChosenLayers(mixture=LayerMixture(self._num_layers + 1))
        # An encoder with shared layers would keep them untrained; DeBERTa's fails without any.
        # emotion2vec's learnt tokens reach no frame without one.
        needs_one = self._encoder.config.model_type.startswith(("deberta", "emotion2vec"))
        lowest = 1 if self._layers is None or needs_one else 0
        if not lowest <= number <= self._num_layers:
            raise ConfigError(
                f"{self._table}.layers = {layers!r}: the encoder has layers {lowest} to {self._num_layers}. Name one."
            )
        if number == self._num_layers:
            return ChosenLayers()
        if self._layers is None:
            return ChosenLayers(number=number)
        self._cut(self._layers, number)
        return ChosenLayers()

    def set_trainable(self, trainable: str) -> None:
        """Let ``requires_grad`` name what is trained: everything, nothing, or the N top layers and what lies above.

        Raises:
            ConfigError: "top:N" of an encoder with fewer layers.
        """
        num_top = num_trainable_layers(trainable)
        if num_top is None:
            self._encoder.requires_grad_(True)
            for module in self._unused():
                module.requires_grad_(False)  # ZeRO waits for a gradient of all that is trained
            return
        self._encoder.requires_grad_(False)
        layers = list(self._layers or ())
        if num_top > len(layers):
            raise ConfigError(
                f"{self._table}.trainable = {trainable!r}: the encoder has {len(layers)} layers of its own. "
                "Name fewer, or 'all'."
            )
        if num_top:
            for module in (*layers[len(layers) - num_top :], *self._above()):
                module.requires_grad_(True)

    @property
    def _num_layers(self) -> int:
        if not self._is_known:  # the configuration of an encoder with a decoder may count the layers of either
            return len(self._layers or ())
        settings = self._encoder.config
        return settings.num_hidden_layers * getattr(settings, "inner_group_num", 1)

    def _above(self) -> list[nn.Module]:
        """Modules that an encoder applies after its top layer: a last norm, SEW's way back to all frames."""
        if not self._is_known:
            return list(_named_after(self._encoder, self._layers))
        parts = [getattr(self._encoder, name, None) for name in ("final_norm", "LayerNorm")]
        inner = getattr(self._encoder, "encoder", None)
        parts.append(getattr(inner, "upsample", None))
        if _ends_in_norm(self._encoder):
            parts.append(getattr(inner, "layer_norm", None))
        return [part for part in parts if part is not None]

    def _unused(self) -> list[nn.Module]:
        """Parts with weights that no forward pass uses."""
        if self._encoder.config.model_type == "wav2vec2-conformer":
            return [cast(Any, self._encoder.encoder).pos_conv_embed]
        return []

    def _cut(self, layers: nn.ModuleList, number: int) -> None:
        """Take away what is above layer ``number``, the norm at the end of the encoder included."""
        above = self._above()
        del layers[number:]
        for owner in (self._encoder, getattr(self._encoder, "encoder", None)):
            for name, part in list(owner.named_children()) if isinstance(owner, nn.Module) else ():
                if any(part is one for one in above):
                    # w2v-BERT adds half of what this gives, if it is there.
                    setattr(owner, name, None if name == "intermediate_ffn" else nn.Identity())


def run_encoder(encoder: nn.Module, chosen: ChosenLayers, inputs: dict[str, Tensor], *, frozen: bool) -> Tensor:
    """The chosen frames [batch frames features]; without a graph below them if the encoder is ``frozen``."""
    wanted = {} if chosen.is_last else {"output_hidden_states": True}
    with torch.no_grad() if frozen else nullcontext():
        output = encoder(**inputs, **wanted)
    if chosen.is_last:
        return output.last_hidden_state
    states = states_of(output)
    if chosen.mixture is not None:
        return chosen.mixture(states)
    assert chosen.number is not None
    return states[chosen.number]


def run_every_layer(encoder: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Frames that enter the first layer, and what leaves each, the lowest first [batch frames features]; without a
    graph."""
    with torch.no_grad():
        return states_of(encoder(**inputs, output_hidden_states=True))


def states_of(output: Any) -> tuple[Tensor, ...]:
    """Frames that enter an encoder's first layer, and what leaves each, out of what the encoder gave.

    Raises:
        ConfigError: it does not report.
    """
    if getattr(output, "hidden_states", None) is None:
        raise ConfigError(
            "this encoder does not report what leaves each of its layers: layers must be 'last', and no probe reads it."
        )
    # What leaves the top layer has not yet passed the encoder's last norm, and what leaves the encoder has.
    return (*output.hidden_states[:-1], output.last_hidden_state)


class StillBatchNorm(nn.BatchNorm1d):
    """Batch norm by the statistics that it came with, in training too.

    Those of a batch would depend on padding and on the cut into ranks. In float32 at least: bf16 training rounds its
    weights and not its statistics, and torch takes no mixture.
    """

    def forward(self, input: Float[Tensor, "batch features frames"]) -> Float[Tensor, "batch features frames"]:
        parts = (self.running_mean, self.running_var, self.weight, self.bias)
        wide = [None if part is None else widened(part) for part in parts]
        return nn.functional.batch_norm(widened(input), *wide, training=False, eps=self.eps).to(input.dtype)


def still_batch_norms(encoder: nn.Module) -> None:
    """Let each batch norm keep its statistics."""
    for module in encoder.modules():
        if type(module) is nn.BatchNorm1d:
            module.__class__ = StillBatchNorm


def hold_still(encoder: nn.Module, *, frozen: bool) -> None:
    """Keep a frozen encoder in evaluation mode."""
    if frozen:
        encoder.eval()


def recompute_layers(*parts: nn.Module, padding: ZeroPadding | None = None) -> None:
    """Recompute the transformers layers within ``parts`` in the backward pass.

    Not re-entrant: the re-entrant kind loses the gradient above frozen layers.

    Args:
        padding: silences padding within the layers, and must do so in the backward pass as in its own forward pass.
    """

    def recompute(function, *args):  # type: ignore[no-untyped-def]
        if padding is None:
            return checkpoint(function, *args, use_reentrant=False)
        silence, real = padding, padding.real

        def with_its_own_padding(*inputs):  # type: ignore[no-untyped-def]
            silence.real = real
            return function(*inputs)

        return checkpoint(with_its_own_padding, *args, use_reentrant=False)

    for part in parts:
        for name, module in part.named_modules():
            if name.rpartition(".")[0].endswith("albert_layers"):  # transformers does not recompute ALBERT's by itself
                module.__class__ = type(type(module).__name__, (GradientCheckpointingLayer, type(module)), {})
            if hasattr(module, "gradient_checkpointing"):
                module._gradient_checkpointing_func = recompute  # type: ignore[assignment]
                module.gradient_checkpointing = True  # type: ignore[assignment]


def _speech_layers(encoder: PreTrainedModel) -> nn.ModuleList:
    inner = cast(Any, encoder.encoder)
    return inner.layers if hasattr(inner, "layers") else inner.encoder.layer  # SEW-D wraps DeBERTa's encoder


def named_layers(encoder: PreTrainedModel) -> nn.ModuleList | None:
    """The layers of an encoder that is not known here; None if they have none of the usual names."""
    for owner in (encoder, getattr(encoder, "encoder", None)):
        for name in ("layers", "layer", "blocks"):
            layers = getattr(owner, name, None)
            if isinstance(layers, nn.ModuleList):
                return layers
    return None


def _named_after(owner: nn.Module, part: nn.Module | None) -> Iterator[nn.Module]:
    """Modules with weights after ``part`` among the children of ``owner``, and of the child that holds it."""
    is_past = False
    for child in owner.children():
        if is_past and any(True for _ in child.parameters()):
            yield child
        elif child is part:
            is_past = True
        elif not is_past and any(one is part for one in child.children()):
            yield from _named_after(child, part)
            is_past = True


def _text_layers(encoder: PreTrainedModel) -> nn.ModuleList | None:
    """None where layers share their weights (ALBERT)."""
    num_layers = encoder.config.num_hidden_layers
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return module
    return None


def _ends_in_norm(encoder: PreTrainedModel) -> bool:
    settings = encoder.config
    return getattr(settings, "do_stable_layer_norm", False) or settings.model_type == "wav2vec2-conformer"
