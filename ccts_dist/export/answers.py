"""Answers of a student and of its exports, as they are compared."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ccts_dist.model import LoadedModel
from ccts_dist.records import factor_and_offset

Answers = dict[str, Tensor]
"""By name: "rating" on the corpus's scale, "embedding", and "probability" of each category."""

Exported = Callable[[Tensor, Tensor], Answers]
"""An export at work: padded audio and numbers of samples to answers."""


def answers_of(
    loaded: LoadedModel, audio: Float[Tensor, "batch samples"], num_samples: Int64[Tensor, " batch"]
) -> Answers:
    """Predictions of torch itself."""
    with torch.inference_mode():
        output = loaded.model(audio, num_samples)
    factor, offset = scale_of(loaded)
    answers = {"rating": output.prediction * factor + offset, "embedding": output.embedding}
    if output.categories is not None:
        answers["probability"] = output.categories.softmax(dim=1)
    return answers


def scale_of(loaded: LoadedModel) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    """``factor_and_offset`` of each target."""
    pairs = torch.tensor([factor_and_offset(target, loaded.scale) for target in loaded.config.targets])
    factor, offset = pairs.reshape(-1, 2).T
    return factor, offset
