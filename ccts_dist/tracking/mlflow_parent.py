"""A parent run's description: the results of the runs below it, so that nobody has to unfold them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

NOTE = "mlflow.note.content"
"""Tag of a run's description."""

PARENT_ID = "mlflow.parentRunId"
_TEST, _VALID = "test/ccc_", "valid/ccc_"


def describe_parent(client: "MlflowClient", run: "Run") -> None:
    """Write the table of all runs below this run's parent into the parent's description; nothing without a parent.

    The parent ends when the last of them has. Each of several runs that end at once writes all that it finds.
    """
    parent = run.data.tags.get(PARENT_ID)
    if not parent:
        return
    children = client.search_runs(
        [run.info.experiment_id], f"tags.`{PARENT_ID}` = '{parent}'", order_by=["attributes.start_time ASC"]
    )
    client.set_tag(parent, NOTE, results_table(children))
    ends = [child.info.end_time for child in children if child.info.end_time]
    client.set_terminated(parent, "FINISHED", end_time=max(ends, default=None))


def results_table(runs: "Sequence[Run]") -> str:
    """Name, status and CCC by target of each run, on test if any run has been tested, else on validation; Markdown."""
    prefix = _TEST if any(key.startswith(_TEST) for run in runs for key in run.data.metrics) else _VALID
    targets = dict.fromkeys(
        key.removeprefix(prefix) for run in runs for key in sorted(run.data.metrics) if key.startswith(prefix)
    )
    rows = [
        (
            run.info.run_name,
            run.info.status.lower(),
            *(f"{value:.3f}" if (value := run.data.metrics.get(prefix + one)) is not None else "-" for one in targets),
        )
        for run in runs
    ]
    where = "the test splits" if prefix == _TEST else "the validation splits"
    lines = [("run", "status", *targets), ("---", "---", *("---:" for _ in targets)), *rows]
    return f"CCC on {where}:\n\n" + "\n".join(
        f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines
    )
