import math

import pytest
import torch

from ccts_dist.losses.ccc import concordance
from ccts_dist.losses.distill import embedding_distance, prediction_loss, squared_differences, standardize


def test_squared_distance_is_the_mean_over_the_embedding():
    student = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    teacher = torch.tensor([[4.0, 6.0], [0.0, 2.0]])
    assert embedding_distance(student, teacher, distance="mse").tolist() == [12.5, 2.0]  # (9 + 16) / 2, 4 / 2


def test_norm_is_the_euclidean_distance():
    student = torch.tensor([[1.0, 2.0]])
    assert embedding_distance(student, torch.tensor([[4.0, 6.0]]), distance="l2").tolist() == [5.0]


def test_cosine_distance_is_one_minus_the_cosine_whatever_the_lengths():
    student = torch.tensor([[3.0, 4.0], [30.0, 40.0], [1.0, 0.0], [1.0, 0.0]])
    teacher = torch.tensor([[4.0, 3.0], [0.4, 0.3], [0.0, 2.0], [-3.0, 0.0]])
    # cos = 24/25, the same for longer and shorter vectors, then 0 and -1.
    expected = [1 / 25, 1 / 25, 1, 2]
    assert embedding_distance(student, teacher, distance="cosine").tolist() == pytest.approx(expected, abs=1e-6)


def test_vector_without_length_has_cosine_distance_one_and_no_gradient():
    student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], requires_grad=True)
    teacher = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 2.0]])
    distance = embedding_distance(student, teacher, distance="cosine")
    assert distance.tolist() == [1, 1, 0]
    distance.sum().backward()
    assert student.grad is not None
    assert student.grad.tolist() == [[0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_cosine_distance_of_what_is_not_finite_is_no_number(value: float):
    student = torch.tensor([[value, 1.0]])
    assert embedding_distance(student, torch.ones(1, 2), distance="cosine").isnan().all()


def test_gradient_of_the_norm_is_zero_where_student_and_teacher_agree():
    student = torch.tensor([[1.0, 2.0], [1.0, 2.0]], requires_grad=True)
    embedding_distance(student, torch.tensor([[1.0, 2.0], [4.0, 6.0]]), distance="l2").sum().backward()
    assert student.grad is not None
    torch.testing.assert_close(student.grad, torch.tensor([[0.0, 0.0], [-0.6, -0.8]]))


@pytest.mark.parametrize("distance", ["mse", "l2", "cosine"])
def test_distance_passes_gradcheck_and_gives_the_teacher_no_gradient(distance):
    student = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    teacher = torch.rand(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: embedding_distance(s, teacher, distance=distance), student)
    embedding_distance(student, teacher, distance=distance).sum().backward()
    assert teacher.grad is None


def test_distance_of_a_half_precision_student_is_taken_in_float32():
    student = torch.zeros(1, 3, dtype=torch.bfloat16)
    result = embedding_distance(student, torch.full((1, 3), 1 + 2**-12), distance="mse")
    assert result.dtype == torch.float32
    assert result.item() == pytest.approx((1 + 2**-12) ** 2, abs=1e-7)


def test_distance_of_no_rows_is_empty_and_still_reaches_the_student():
    student = torch.rand(2, 3, requires_grad=True)
    embedding_distance(student[:0], torch.rand(0, 3), distance="l2").sum().backward()
    assert student.grad is not None
    assert student.grad.abs().sum() == 0


def test_prediction_distance_is_the_mean_square_over_the_targets():
    student = torch.tensor([[0.5, 0.0, 1.0]])
    assert prediction_loss(student, torch.tensor([[0.0, 0.0, 0.5]])).item() == pytest.approx(0.5 / 3)


def test_squared_differences_are_zero_where_they_are_not_chosen_whatever_stands_there():
    student = torch.tensor([[0.5, math.inf], [math.nan, 1.0]], requires_grad=True)
    chosen = torch.tensor([[True, False], [False, True]])
    squares = squared_differences(student, torch.tensor([[0.0, 0.0], [0.0, 3.0]]), chosen)
    assert squares.tolist() == [[0.25, 0], [0, 4]]
    squares.sum().backward()
    assert student.grad is not None
    assert student.grad.tolist() == [[1, 0], [0, -4]]


def test_standardise_gives_mean_zero_and_deviation_one():
    embedding = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    mean, residual_std = torch.tensor([2.0, 5.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    # The second feature never varies: it is centred and left at its own scale.
    assert standardize(embedding, mean, residual_std).tolist() == [[-1.0, 0.0], [1.0, 0.0]]
    assert standardize(embedding + 1, mean, residual_std).tolist() == [[0.0, 1.0], [2.0, 1.0]]
    assert math.isfinite(standardize(embedding, mean, residual_std).sum().item())


FEATURES, ROWS = 128, 32


def demo_like(distance: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings of a student and its teacher, the head that reads them, and labels, as the demo's are.

    A teacher varies mostly in the directions that its head reads; rows differ by a third in their distance.
    """
    generator = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    head = torch.linalg.qr(normal(FEATURES, 3))[0].T
    teacher = 2 * normal(ROWS, 3) @ head + 0.05 * normal(ROWS, FEATURES)
    label = 0.5 + 0.1 * (teacher @ head.T) + 0.1 * normal(ROWS, 3)
    off = torch.nn.functional.normalize(normal(ROWS, FEATURES), dim=1)
    student = teacher + off * distance * (1 + normal(ROWS, 1) / 3).clamp(0.2, 1.8)
    return student, teacher, head, label


def gradient_sizes(distance: float, weight: float) -> tuple[float, float, float, float]:
    """Of L_CCC, and of ``weight`` times each distance, for the student's embedding; and the mean Euclidean distance."""
    student, teacher, head, label = demo_like(distance)
    student.requires_grad_(True)
    ccc = (1 - concordance(0.5 + 0.1 * student @ head.T, label)).mean()
    terms = [weight * embedding_distance(student, teacher, distance=name).mean() for name in ("l2", "mse")]
    sizes = [float(torch.autograd.grad(term, student, retain_graph=True)[0].norm()) for term in (ccc, *terms)]
    return sizes[0], sizes[1], sizes[2], float((student - teacher).detach().norm(dim=1).mean())


@pytest.mark.parametrize(("distance", "low", "high"), [(3.4, 16, 20), (0.88, 60, 75)])
def test_gradient_of_the_norm_is_many_times_that_of_the_mean_square_at_one_lambda(distance, low, high):
    ccc, norm, squared, apart = gradient_sizes(distance, 30.0)
    assert norm > 40 * ccc, "at lambda 30 the norm outweighs the CCC by far"
    assert low < norm / squared < high
    # Equal distances would give H / (2 d); of unequal ones the mean square weighs the farther ones more.
    assert norm / squared == pytest.approx(FEATURES / (2 * apart), rel=0.15)


def test_norm_pulls_as_strongly_near_the_teacher_as_far_from_it_and_the_mean_square_does_not():
    (_, near, near_squared, _), (_, far, far_squared, _) = gradient_sizes(0.88, 30.0), gradient_sizes(3.4, 30.0)
    assert near == pytest.approx(30 / ROWS**0.5)
    assert far == pytest.approx(near)
    assert near_squared == pytest.approx(far_squared * 0.88 / 3.4)


def test_lambda_that_the_reference_names_makes_the_gradients_equal():
    student, teacher, _, _ = demo_like(0.5)
    student = teacher + 0.5 * torch.nn.functional.normalize(student - teacher, dim=1)
    student.requires_grad_(True)
    norm = 30.0 * embedding_distance(student, teacher, distance="l2").mean()
    squared = 30.0 * FEATURES / (2 * 0.5) * embedding_distance(student, teacher, distance="mse").mean()
    first, second = (torch.autograd.grad(term, student)[0] for term in (norm, squared))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=0)
