"""How far a student is from its teacher, row by row."""

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ccts_dist.losses.constants import moved

Distance = Literal["mse", "l2", "cosine"]
"""Names of the distances between embeddings, as run files spell them."""

SMALLEST_DEVIATION = 1e-6
"""Features of a teacher that vary less than this are constant, and are compared unscaled."""

SMALLEST_NORM = 1e-8
"""A shorter vector has no direction: what torch takes for it in ``cosine_similarity``."""


def standardize(
    embedding: Float[Tensor, "batch hidden"],
    mean: Float[Tensor, " hidden"],
    std: Float[Tensor, " hidden"],
) -> Float[Tensor, "batch hidden"]:
    """The embedding in units of ``mean`` and ``std`` per feature; a constant feature is only centred."""
    scale = moved(std, embedding)
    scale = torch.where(scale > SMALLEST_DEVIATION, scale, 1.0)
    return (embedding - moved(mean, embedding)) / scale


def embedding_distance(
    student: Float[Tensor, "batch hidden"],
    teacher: Float[Tensor, "batch hidden"],
    *,
    distance: Distance,
) -> Float[Tensor, " batch"]:
    """Distance of each row's embeddings; no gradient reaches the teacher's.

    Args:
        student: may be of half precision; the distance is taken in float32 at least.
        teacher: as cached.
        distance: "mse" is the mean over the embedding of the squared difference; "l2" the Euclidean distance,
            whose gradient at distance 0 is taken as 0; "cosine" 1 - the cosine of the angle between the two, which
            knows nothing of their lengths: 1, without gradient, where one of them has no length.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    student, teacher = student.to(dtype), teacher.detach().to(dtype)
    if distance == "cosine":
        return _cosine_distance(student, teacher)
    difference = student - teacher
    if distance == "mse":
        return difference.square().mean(1)
    # vector_norm's backward gives 0 at 0, where sqrt's would give NaN.
    return torch.linalg.vector_norm(difference, dim=1)


def _cosine_distance(
    student: Float[Tensor, "batch hidden"], teacher: Float[Tensor, "batch hidden"]
) -> Float[Tensor, " batch"]:
    own, other = torch.linalg.vector_norm(student, dim=1), torch.linalg.vector_norm(teacher, dim=1)
    # torch's cosine_similarity divides by a bound instead, and at 0 has a gradient of 1e8. Written so that a vector
    # that is not finite has a direction: its distance must not be a number.
    directed = ~((own < SMALLEST_NORM) | (other < SMALLEST_NORM))
    lengths = torch.where(directed, own * other, 1.0)
    return 1 - torch.where(directed, (student * teacher).sum(1) / lengths, 0.0)


def prediction_loss(
    student: Float[Tensor, "batch dim"], teacher: Float[Tensor, "batch dim"]
) -> Float[Tensor, " batch"]:
    """Mean over the targets of the squared difference of each row's predictions; none reaches the teacher's."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    return (student.to(dtype) - teacher.detach().to(dtype)).square().mean(1)


def squared_differences(
    student: Float[Tensor, "batch dim"], teacher: Float[Tensor, "batch dim"], chosen: Bool[Tensor, "batch dim"]
) -> Float[Tensor, "batch dim"]:
    """Squared difference of each prediction; 0 where it is not chosen, whatever stands there."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    difference = student.to(dtype) - teacher.detach().to(dtype)
    return torch.where(chosen, difference, 0.0).square()
