"""The demo study's tables: systems, paired differences, shares of wrong transcripts, whom the condition rejects."""

import math
from collections.abc import Mapping, Sequence

from ccts_dist.records import DIMENSIONS
from ccts_dist.report.markdown_table import format_table
from ccts_dist.report.paired_intervals import Estimate, estimate, paired
from ccts_dist.report.study.plan import Study
from ccts_dist.report.study.results import Results

WORDS = {
    "text": "text only",
    "speech": "speech only, no teacher",
    "teacher": "teacher: speech + text",
    "ts": "T/S",
    "cts": "cT/S",
}
DIFFERENCES = (
    ("text", "speech"),
    ("teacher", "speech"),
    ("ts", "speech"),
    ("cts", "speech"),
    ("cts", "ts"),
    ("teacher", "cts"),
)
MOST_BELOW = 0.02
"""CCC that a teacher may be below the better of its branches: more is a fault of its training, not of its data."""

COMPARED = "valence"
"""Targets that words carry and voices do not, so where a teacher that reads can help."""


def study_tables(results: Results, study: Study) -> str:
    """All tables in Markdown, of the runs that are there; each with its number of seeds."""
    first = study.percents[0]
    parts = [
        f"CCC on the test split of the spoken demo corpus, {first} % wrong transcripts: mean and standard deviation "
        f"over n seeds.\n\n{_systems(results, first)}",
        teacher_check(results, first),
        f"Differences of the same seed's runs: mean and 95 % interval (Student's t).\n\n{_differences(results, first)}",
        f"The same on {COMPARED}, by share of wrong transcripts; speech only reads none, so it is the same at every "
        f"share.\n\n{_by_share(results, study)}",
        "What the condition rejects of the training utterances: of all, of those with another one's transcript, "
        f"and of the others.\n\n{_rejected(results, study)}",
    ]
    return "\n\n".join(part for part in parts if part)


def teacher_check(results: Results, percent: int) -> str:
    """Check that each seed's teacher is at most ``MOST_BELOW`` below the better branch on every dimension; "" for
    no seed.

    A teacher can read off either branch, so one that is worse has not been trained to its end.
    """
    apart = {
        (seed, dimension): ccc - max(branches[seed] for branches in both)
        for dimension in DIMENSIONS
        for both in [[results.ccc(percent, branch, dimension) for branch in ("text", "speech")]]
        for seed, ccc in results.ccc(percent, "teacher", dimension).items()
        if all(seed in branches for branches in both)
    }
    if not apart:
        return ""
    seeds = {seed for seed, _ in apart}
    failed = {seed for (seed, _), value in apart.items() if value < -MOST_BELOW}
    seed, dimension = min(apart, key=lambda one: apart[one])
    return (
        f"Check of the teacher: {'failed' if failed else 'passed'}. In {len(seeds - failed)} of {len(seeds)} seeds it "
        f"is at most {MOST_BELOW:.2f} below the better of text only and speech only on every dimension; the lowest "
        f"difference is {apart[seed, dimension]:+.3f} ({dimension}, seed {seed})."
    )


def difference(
    results: Results, percent: int, system: str, less: str, dimension: str, *, first: int
) -> Estimate | None:
    """Difference of two systems over the seeds that both have; the system without a teacher is the one of the first
    share."""
    return estimate(
        paired(_ccc(results, percent, system, dimension, first), _ccc(results, percent, less, dimension, first))
    )


def _ccc(results: Results, percent: int, system: str, dimension: str, first: int) -> Mapping[int, float]:
    return results.ccc(first if system in ("speech", "text") else percent, system, dimension)


def _systems(results: Results, percent: int) -> str:
    rows = []
    for system, words in WORDS.items():
        estimates = [estimate(list(results.ccc(percent, system, dimension).values())) for dimension in DIMENSIONS]
        fractions = [
            run.distilled_fraction
            for run in results.runs
            if (run.percent, run.system) == (percent, system) and run.distilled_fraction is not None
        ]
        rejected = estimate([1 - share for share in fractions])
        rows.append(
            (words, *map(spread, estimates), "-" if rejected is None else f"{rejected.mean:.1%}", _count(estimates[0]))
        )
    return format_table(("system", *DIMENSIONS, "rejected", "n"), rows)


def _differences(results: Results, percent: int) -> str:
    rows = []
    for system, less in DIFFERENCES:
        estimates = [difference(results, percent, system, less, dimension, first=percent) for dimension in DIMENSIONS]
        rows.append((f"{_short(system)} - {_short(less)}", *map(_interval, estimates), _count(estimates[0])))
    return format_table(("difference", *DIMENSIONS, "n"), rows)


def _by_share(results: Results, study: Study) -> str:
    rows = []
    alone = results.ccc(study.percents[0], "speech", COMPARED)
    for percent in sorted(study.percents):
        teacher, ts, cts = (results.ccc(percent, system, COMPARED) for system in ("teacher", "ts", "cts"))
        # A seed that is still under way would give the columns different n.
        whole = [seed for seed in cts if seed in teacher and seed in ts]
        teacher, ts, cts = ({seed: ccc[seed] for seed in whole} for ccc in (teacher, ts, cts))
        values = [estimate(list(ccc.values())) for ccc in (teacher, ts, cts)]
        apart = [estimate(paired(*both)) for both in ((ts, alone), (cts, alone), (cts, ts))]
        rows.append((f"{percent} %", *map(spread, values), *map(_interval, apart), len(whole)))
    header = ("wrong", "teacher", "T/S", "cT/S", "T/S - speech only", "cT/S - speech only", "cT/S - T/S", "n")
    return format_table(header, rows)


def _rejected(results: Results, study: Study) -> str:
    rows = []
    for percent in sorted(study.percents):
        counted = [one for one in results.gate_counts if one.percent == percent]
        shares = (
            [(one.wrong_rejected + one.right_rejected, one.num_wrong + one.num_right) for one in counted],
            [(one.wrong_rejected, one.num_wrong) for one in counted],
            [(one.right_rejected, one.num_right) for one in counted],
        )
        rows.append((f"{percent} %", *map(_share, shares), len(counted)))
    return format_table(("wrong", "of all", "of the wrong ones", "of the right ones", "n"), rows)


def _share(counts: Sequence[tuple[int | float, int]]) -> str:
    shares = estimate([part / whole for part, whole in counts if whole])
    return "-" if shares is None else f"{shares.mean:.1%}"


def spread(value: Estimate | None) -> str:
    """Mean and standard deviation."""
    if value is None:
        return "-"
    return f"{value.mean:.3f}" + ("" if math.isnan(value.std) else f" ± {value.std:.3f}")


def _interval(value: Estimate | None) -> str:
    return "-" if value is None else value.in_words()


def _count(value: Estimate | None) -> int:
    return 0 if value is None else value.count


def _short(system: str) -> str:
    return WORDS[system].split(",")[0].split(":")[0]
