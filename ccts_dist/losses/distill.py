"""How far a student is from its teacher, row by row."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

SMALLEST_DEVIATION = 1e-6
"""Features of a teacher that vary less than this are constant, and are compared unscaled."""


def standardise(
    embedding: Float[Tensor, "batch hidden"],
    mean: Float[Tensor, " hidden"],
    deviation: Float[Tensor, " hidden"],
) -> Float[Tensor, "batch hidden"]:
    """The embedding in units of ``mean`` and ``deviation`` per feature; a constant feature is only centred."""
    scale = torch.where(deviation > SMALLEST_DEVIATION, deviation, torch.ones_like(deviation))
    return (embedding - mean.to(embedding)) / scale.to(embedding)


def embedding_distance(
    student: Float[Tensor, "batch hidden"],
    teacher: Float[Tensor, "batch hidden"],
    *,
    distance: Literal["squared", "norm"],
) -> Float[Tensor, " batch"]:
    """Distance of each row's embeddings; no gradient reaches the teacher's.

    Args:
        student: may be of half precision; the difference is taken in float32 at least.
        teacher: as cached.
        distance: "squared" is the mean over the embedding of the squared difference; "norm" the Euclidean distance,
            whose gradient at distance 0 is taken as 0.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    difference = student.to(dtype) - teacher.detach().to(dtype)
    if distance == "squared":
        return difference.square().mean(1)
    # vector_norm's backward gives 0 at 0, where sqrt's would give NaN.
    return torch.linalg.vector_norm(difference, dim=1)


def prediction_distance(
    student: Float[Tensor, "batch dim"], teacher: Float[Tensor, "batch dim"]
) -> Float[Tensor, " batch"]:
    """Mean over the targets of the squared difference of each row's predictions; none reaches the teacher's."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    return (student.to(dtype) - teacher.detach().to(dtype)).square().mean(1)
