"""Attention masks that the host makes without a look at the device.

transformers asks the mask of every pass whether it masks anything at all: where nothing does, attention has faster
kernels. The answer lies on the GPU, and the host waits for it. Here who knows the lengths reports so beforehand: a
batch without padding comes without a mask, and any mask that comes is taken for one that masks.
"""

from typing import Any

from jaxtyping import Int64
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.utils.import_utils import is_tracing

_NAME = "sdpa_given_mask"

_ASKING_TYPES = (
    "hubert",
    "wav2vec2",
    "data2vec-audio",
    "unispeech",
    "unispeech-sat",
    "bert",
    "albert",
    "electra",
    "xlm-roberta",
)
"""Model types whose encoder asks, and computes the same without a mask as with one that masks nothing."""


def _mask(*, attention_mask: Tensor | None = None, allow_is_bidirectional_skip: bool = False, **how: Any) -> Any:
    del allow_is_bidirectional_skip
    return None if attention_mask is None else sdpa_mask(attention_mask=attention_mask, **how)


AttentionInterface.register(_NAME, sdpa_attention_forward)
AttentionMaskInterface.register(_NAME, _mask)


def trust_masks(encoder: PreTrainedModel) -> bool:
    """Have the encoder take masks as they come; False for one that does so by itself, and needs one in any case."""
    config = encoder.config
    if config.model_type not in _ASKING_TYPES or config._attn_implementation not in ("sdpa", _NAME):
        return False
    config._attn_implementation = _NAME
    return True


def on_host(lengths: Int64[Tensor, " batch"]) -> Int64[Tensor, " batch"] | None:
    """Lengths whose numbers can be read without waiting; None where they are on a device, or have no numbers yet."""
    return lengths if lengths.device.type == "cpu" and not is_tracing(lengths) else None
