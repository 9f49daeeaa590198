"""A parent run's description, table and picture: the results of the runs below it, so that nobody has to open them."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ccts_dist.plotting import MODEL, color_of, drawing, legend_above
from ccts_dist.records import DIMENSIONS

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

NOTE = "mlflow.note.content"
"""Tag of a run's description."""

PARENT_ID = "mlflow.parentRunId"

UNFOLDED = {"mlflow.runType": "evaluation"}
"""Tag of a child for whose sake MLflow's list of runs opens unfolded."""

VIEW = "ccts-results"
"""Key of the experiment's saved view of runs with their scores as columns."""

TABLE_FILE, PICTURE_FILE = "results.csv", "results.svg"

_MOST_DRAWN = 60
"""Runs in a picture."""


def describe_parent(client: "MlflowClient", run: "Run") -> None:
    """Write the results of all runs below this run's parent into that: as description, ``results.csv`` and a picture.

    Nothing without a parent. The parent ends when the last of them has. Each of several runs that end at once writes
    all that it finds. The experiment gets a saved view of the same scores.
    """
    parent = run.data.tags.get(PARENT_ID)
    if not parent:
        return
    experiment = run.info.experiment_id
    children = client.search_runs(
        [experiment], f"tags.`{PARENT_ID}` = '{parent}'", order_by=["attributes.start_time ASC"]
    )
    scores = score_keys(children)
    client.set_tag(parent, NOTE, results_note(children, scores, parent=parent))
    ends = [child.info.end_time for child in children if child.info.end_time]
    client.set_terminated(parent, "FINISHED", end_time=max(ends, default=None))
    client.log_text(parent, results_csv(children, scores), TABLE_FILE)
    if scores:
        client.log_text(parent, draw_results(children, scores), PICTURE_FILE)
        view = _saved_view(list(scores.values()), run.info.end_time or 0)
        client.set_experiment_tag(experiment, f"mlflow.sharedViewState.{VIEW}", view)


def score_keys(runs: "Sequence[Run]") -> dict[str, str]:
    """Metric of each column: CCC by target and "UAR", of the test if any run was tested, else of the validation."""
    found = {key for run in runs for key in run.data.metrics}
    split = "test" if any(key.startswith(("test/ccc_", "test/uar")) for key in found) else "valid"
    prefix = f"{split}/ccc_"
    targets = sorted(key.removeprefix(prefix) for key in found if key.startswith(prefix))
    ordered = [one for one in DIMENSIONS if one in targets] + [one for one in targets if one not in DIMENSIONS]
    uar = {"UAR": f"{split}/uar"} if f"{split}/uar" in found else {}
    return {target: prefix + target for target in ordered} | uar


def results_note(runs: "Sequence[Run]", scores: Mapping[str, str], *, parent: str) -> str:
    """Status and scores of each run in Markdown, with links to the runs, and the picture."""
    split = "validation" if any(key.startswith("valid/") for key in scores.values()) else "test"
    what = "".join(f"{words} " for words, is_there in (
        ("CCC of each target", any(name != "UAR" for name in scores)),
        ("and unweighted accuracy (UAR)" if len(scores) > 1 else "Unweighted accuracy (UAR)", "UAR" in scores),
    ) if is_there)  # fmt: skip
    header = ("run", "status", *scores)
    rows = [
        (
            f"[{_plain(run.info.run_name or '')}](#/experiments/{run.info.experiment_id}/runs/{run.info.run_id})",
            run.info.status.lower(),
            *("-" if (value := run.data.metrics.get(key)) is None else f"{value:.3f}" for key in scores.values()),
        )
        for run in runs
    ]
    lines = [header, ("---", "---", *("---:" for _ in scores)), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    if not scores:
        return f"No run has a score yet.\n\n{table}"
    experiment = runs[0].info.experiment_id
    return (
        f"{what}on the {split} splits. Highest: {_highest(runs, scores)}. "
        f"[As a list of runs](#/experiments/{experiment}/runs?viewStateShareKey={VIEW}).\n\n{table}\n\n"
        f"![Scores of each run](get-artifact?path={PICTURE_FILE}&run_uuid={parent})"
    )


def results_csv(runs: "Sequence[Run]", scores: Mapping[str, str]) -> str:
    """The same as a table with a header: run, run_id, status, and the scores in full precision."""
    file = io.StringIO()
    lines = csv.writer(file, lineterminator="\n")
    lines.writerow(("run", "run_id", "status", *scores))
    for run in runs:
        values = (run.data.metrics.get(key, "") for key in scores.values())
        lines.writerow((run.info.run_name, run.info.run_id, run.info.status.lower(), *values))
    return file.getvalue()


def draw_results(runs: "Sequence[Run]", scores: Mapping[str, str]) -> str:
    """A mark for each score of each run, the first run on top, as an SVG file; of many runs the newest."""
    drawn = list(runs)[-_MOST_DRAWN:]
    with drawing("results", width=6.4, height=1.1 + 0.26 * len(drawn), page=False) as figure:
        axes = figure.subplots()
        for number, (name, key) in enumerate(scores.items()):
            places = [place for place, run in enumerate(drawn) if key in run.data.metrics]
            values = [drawn[place].data.metrics[key] for place in places]
            color = MODEL if name == "UAR" else color_of(name, number)
            axes.plot(values, places, "o", color=color, markersize=6, label=name)
        axes.set_yticks(range(len(drawn)), [(run.info.run_name or "")[:40] for run in drawn])
        axes.set_ylim(len(drawn) - 0.5, -0.5)
        axes.set_xlabel("UAR" if list(scores) == ["UAR"] else "CCC" if "UAR" not in scores else "CCC, UAR")
        legend_above(figure, axes, columns=len(scores))
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _highest(runs: "Sequence[Run]", scores: Mapping[str, str]) -> str:
    """Highest of each score, and in which run: MLflow folds a description after a few lines, and this stands in the
    first."""
    best = {name: max((run for run in runs if key in run.data.metrics), key=lambda run: run.data.metrics[key])
            for name, key in scores.items()}  # fmt: skip
    return ", ".join(
        f"{name} {run.data.metrics[scores[name]]:.3f} ({_plain(run.info.run_name or '')})" for name, run in best.items()
    )


def _saved_view(metrics: Sequence[str], time_ms: int) -> str:
    """A view of an experiment as MLflow 3 saves it: all runs, best first, with these metrics as columns.

    Sorted by a metric, MLflow shows all runs side by side.
    """
    best = next((key for key in metrics if key.endswith("ccc_valence")), metrics[0])
    state = {
        "searchFilter": "",
        "orderByKey": f"metrics.`{best}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": ["attributes.`Models`", *(f"metrics.`{key}`" for key in metrics)],
    }
    return json.dumps({"name": "Results", "createdAt": time_ms, "updatedAt": time_ms, "state": json.dumps(state)})


def _plain(name: str) -> str:
    """Without what would end a cell or a link."""
    return name.translate(str.maketrans({"|": "/", "[": "(", "]": ")", "\n": " "}))
