"""A split's scores as tables for people."""

from math import nan

from ccts_dist.report.markdown_table import format_table
from ccts_dist.scoring.predict_split import Scores

HEADER = ("target", "CCC", "Pearson", "Spearman", "MAE", "labels")
"""Column names of the rows that ``scores_to_rows`` gives; with bins one more, ``RECALL``."""

RECALL = "unweighted recall"


def scores_to_text(scores: Scores) -> str:
    """The targets' table, and that of the categories where there are any; in Markdown."""
    header = (*HEADER, RECALL) if scores.unweighted_recall else HEADER
    tables = [format_table(header, scores_to_rows(scores))] if scores.num_labels else []
    if scores.categories:
        tables.append(format_table(("category", "recall", "labels"), categories_to_rows(scores)))
    return "\n\n".join(tables)


def scores_to_rows(scores: Scores) -> list[tuple[str | int, ...]]:
    """One row per target: name, CCC, Pearson, Spearman, MAE on 0..1, number of labels; and recall, where bins were
    asked for."""
    figures = (scores.ccc, scores.pearson, scores.spearman, scores.mae)
    return [
        (
            target,
            *(f"{figure[target]:.4f}" for figure in figures),
            count,
            *([f"{scores.unweighted_recall.get(target, nan):.4f}"] if scores.unweighted_recall else []),
        )
        for target, count in scores.num_labels.items()
    ]


def categories_to_rows(scores: Scores) -> list[tuple[str | int, ...]]:
    """One row per category: name, recall, number of utterances; then those of the accuracies and F1."""
    rows: list[tuple[str | int, ...]] = []
    for number, (category, predicted) in enumerate(scores.confusion.items()):
        total = sum(predicted)
        rows.append((category, f"{predicted[number] / total:.4f}" if total else "-", int(total)))
    num = int(sum(map(sum, scores.confusion.values())))
    rows += [(figure.replace("_", " "), f"{value:.4f}", num) for figure, value in scores.categories.items()]
    return rows
