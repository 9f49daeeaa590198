"""A run in a few sentences, for the page of a tracker."""

from collections.abc import Mapping
from math import isfinite

from ccts_dist.config import speech_tables
from ccts_dist.train.experiment import Experiment


def describe_run(experiment: Experiment, test: Mapping[str, float] | None = None, uar: float | None = None) -> str:
    """Markdown: the model, its data and its sources; and with ``test`` how good it is.

    Args:
        experiment: the run.
        test: CCC of the test splits by target, once they are known.
        uar: likewise, unweighted accuracy of the categories.
    """
    run, manifest = experiment.run, experiment.shard_set.manifest
    model, distill = run.model, run.distill
    inputs = " and ".join(
        what for what, given in (("speech", speech_tables(model)), ("transcripts", model.text)) if given
    )
    kind = f"**Model of {inputs}, without a teacher.**" if distill is None else f"**Student of {inputs}.**"
    classes = f"the categories {', '.join(model.categories)}" if model.categories else ""
    lines = [f"{kind} It predicts {', and '.join(part for part in (', '.join(model.targets), classes) if part)}."]
    if test:  # near the top: MLflow folds what is below the first lines
        figures = ("-" if not isfinite(value) else f"{value:.3f}" for value in test.values())
        lines += [
            "",
            f"| {' | '.join(('test splits', *test))} |",
            f"|---|{'---:|' * len(test)}",
            f"| {' | '.join(('CCC', *figures))} |",
            "",
        ]
    if uar is not None:
        lines.append(f"Unweighted accuracy of the categories on the test splits: {uar:.3f}.")
    if distill is not None and experiment.teacher is not None:
        gate = experiment.gate_words or distill.gate
        lines.append(
            f"Distilled from {experiment.teacher.facts.name}: weight {distill.embedding_weight:g} of the "
            f"embedding, {distill.prediction_weight:g} of the prediction; gate {gate}."
        )
    splits = ", ".join(run.data.train_splits)
    count = sum(manifest.splits[name].num_utterances for name in run.data.train_splits)
    lines.append(
        f"Trained on {count:,} utterances of {manifest.title} ({splits}), {run.train.epochs} epochs at "
        f"most, {experiment.total_steps:,} steps, on {experiment.ranks.num_ranks} rank(s), seed {run.seed}."
    )
    return "\n".join(lines) + "\n"
