"""Answers of a student and of its exports, as they are compared."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ccts_dist.model import LoadedModel
from ccts_dist.records import varied_target

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
    """Factor and offset of each target that bring 0..1 to the corpus's scale; a variance grows with the square."""
    low, high = loaded.scale
    varied = [varied_target(target) is not None for target in loaded.config.targets]
    factors = [(high - low) ** 2 if is_variance else high - low for is_variance in varied]
    return torch.tensor(factors), torch.tensor([0.0 if is_variance else low for is_variance in varied])
