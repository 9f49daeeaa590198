"""Who is the champion: a candidate takes its place when it predicts the same utterances better by a stated margin."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ccts_dist.distributed import Ranks, broadcast_object, run_on_all_ranks
from ccts_dist.errors import ConfigError, RegistryError
from ccts_dist.redaction import redact
from ccts_dist.registry.model_uri import SCHEME, asking_the_server, check_alias, check_name, move_alias
from ccts_dist.registry.pull import pull_model_on_ranks
from ccts_dist.scoring import (
    MEAN,
    UAR,
    Difference,
    PredictionTable,
    few_speakers,
    gains_of,
    joined,
)
from ccts_dist.scoring.evaluator import Evaluator
from ccts_dist.tracking.mlflow_client import open_client
from ccts_dist.tracking.uri import resolve_tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION = "champion"
"""The alias."""

TAG = "promotion."
"""How the names of a version's tags begin that name how it was compared."""

Verdict = Literal["better", "not better", "first", "forced", "champion already"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PromotionRequest:
    """A request for promotion: model, shards and margin."""

    name: str
    """Name of the registered model."""

    shards: str
    splits: tuple[str, ...]
    """Whose utterances are taken together."""

    margin: float = 0.0
    """CCC that the whole 95 % interval of the gain must lie above."""

    target: str = ""
    """Whose CCC counts; "" for the mean over the targets that both predict. Models without targets are compared by the
    unweighted accuracy of their categories."""

    alias: str = "candidate"
    """Alias of the candidate."""

    reason: str = ""
    """Why the candidate is to be the champion whatever comes out; "" lets the figures decide."""

    def check(self) -> None:
        """Refuse what cannot be asked.

        Raises:
            ConfigError: a name or alias that cannot be, a margin that is negative or no number, or no split.
        """
        check_name(self.name, "model name")
        check_alias(self.alias)
        if not 0 <= self.margin < math.inf:
            raise ConfigError(f"--margin {self.margin}: must be a CCC of 0 or more. Give one.")
        if not self.splits:
            raise ConfigError("--splits: none is given, and models are compared on one or more. Name one.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Outcome of a request."""

    verdict: Verdict
    candidate: str
    """"NAME/3"."""

    champion: str
    """That the candidate was compared with; "" without one."""

    margin: float
    differences: tuple[Difference, ...] = ()
    """Candidate less champion; empty without a champion."""

    compared: Difference | None = None
    """The one that the margin is for; None where nothing was compared."""

    num_utterances: int = 0
    num_speakers: int = 0
    """Drawn from for the intervals; each utterance of an unknown one counts as one."""

    @property
    def is_champion(self) -> bool:
        """True if the candidate is the champion now."""
        return self.verdict != "not better"

    def words(self) -> str:
        """For people: the CCC of each target with what was gained, and what was made of it."""
        lines = [
            f"{one.target}: {'' if one.target == UAR else 'CCC '}{one.first:.4f}, the champion's {one.second:.4f}, "
            f"gain {one.gain.value:+.4f} ({one.gain.low:+.4f} to {one.gain.high:+.4f})"
            for one in self.differences
        ]
        if lines:
            lines.append(
                f"{self.num_utterances} utterances, {self.num_speakers} speakers drawn in pairs, 95 % intervals"
            )
            lines += [words] if (words := few_speakers(self.num_speakers)) else []
        return "\n".join([*lines, self._verdict_in_words()])

    def _verdict_in_words(self) -> str:
        is_now = f"{SCHEME}{self.candidate} is the champion"
        if self.verdict == "champion already":
            return f"{is_now} already; nothing was compared"
        if self.verdict == "first":
            return f"{is_now}, the first: there was none to compare it with"
        assert self.compared is not None
        low, what = self.compared.gain.low, self.compared.target
        found = f"the gain in {what} may be as low as {low:+.4f}, the margin is {self.margin:g}"
        if self.verdict == "better":
            return f"{is_now}: {found}"
        if self.verdict == "forced":
            return f"{is_now}, by force: {found}"
        return f"{SCHEME}{self.champion} stays the champion: {found}"


def promote(
    request: PromotionRequest,
    *,
    ranks: Ranks,
    tracking_uri: str = "",
    cache: Path | None = None,
    micro_batch_size: int = 16,
) -> Outcome:
    """Compare candidate and champion on the same utterances, and move the alias if the candidate has won.

    Every rank must call it. Both models are fetched and held against their digests first. How it came out is written
    into the candidate's tags; the alias moves last, and only if nobody else has moved it meanwhile.

    Raises:
        ConfigError: as ``PromotionRequest.check``, an unknown split, or a target that not both predict.
        RegistryError: no such candidate, a model that was altered, a server that fails, or an alias that moved.
        ShardError: shards that are absent or damaged.
    """
    run_on_all_ranks(request.check)
    uri = resolve_tracking_uri(tracking_uri)
    doing = f"promoting {request.name!r}"
    candidate = pull_model_on_ranks(f"{SCHEME}{request.name}@{request.alias}", ranks, tracking_uri=uri, cache=cache)

    def look() -> str:
        with asking_the_server(uri, doing):
            return _champion_of(open_client(uri), request.name)

    before = broadcast_object(run_on_all_ranks(lambda: look() if ranks.is_first else ""))
    if before == candidate.version:
        return Outcome(verdict="champion already", candidate=before, champion=before, margin=request.margin)
    digest, table = _predict(candidate.folder, request, ranks, micro_batch_size)
    found: tuple[Difference, ...] = ()
    if before:
        champion = pull_model_on_ranks(f"{SCHEME}{before}", ranks, tracking_uri=uri, cache=cache)
        other = _predict(champion.folder, request, ranks, micro_batch_size)[1]
        found = gains_of(table, other)
    compared = _decided(request, table, found)
    outcome = Outcome(
        verdict=_verdict(request, compared),
        candidate=candidate.version,
        champion=before,
        margin=request.margin,
        differences=found,
        compared=compared,
        num_utterances=len(table),
        num_speakers=table.num_speakers,
    )

    def record() -> None:
        with asking_the_server(uri, doing):
            _record(open_client(uri), request, outcome, digest)

    run_on_all_ranks(lambda: record() if ranks.is_first else None)
    return outcome


def _predict(
    folder: Path, request: PromotionRequest, ranks: Ranks, micro_batch_size: int
) -> tuple[str, PredictionTable]:
    """The shard set's digest, and a model's predictions of all splits."""
    evaluator = Evaluator(folder, request.shards, ranks=ranks, micro_batch_size=micro_batch_size)
    tables = [evaluator.split(split).table for split in request.splits]
    return evaluator.shard_set.digest, joined(tables)


def _decided(request: PromotionRequest, table: PredictionTable, found: Sequence[Difference]) -> Difference | None:
    known = [one.target for one in found] if found else [*table.targets, MEAN] if table.targets else [UAR]
    wanted = request.target or (MEAN if table.targets else UAR)
    if wanted not in known:
        raise ConfigError(
            f"--target {request.target!r}: must be predicted by candidate and champion. They have in common: "
            f"{', '.join(target for target in known if target != MEAN)}."
        )
    return next((one for one in found if one.target == wanted), None)


def _verdict(request: PromotionRequest, compared: Difference | None) -> Verdict:
    if compared is None:
        return "first"
    if compared.gain.low > request.margin:  # never so of an interval that is not known
        return "better"
    return "forced" if request.reason else "not better"


def _champion_of(client: "MlflowClient", name: str) -> str:
    """ "NAME/2", the champion's version; "" where there is none."""
    version = client.get_registered_model(name).aliases.get(CHAMPION, "")
    return f"{name}/{version}" if version else ""


def _record(client: "MlflowClient", request: PromotionRequest, outcome: Outcome, shard_set_digest: str) -> None:
    version = outcome.candidate.rpartition("/")[2]
    if outcome.is_champion and _champion_of(client, request.name) != outcome.champion:
        raise RegistryError(
            f"{SCHEME}{request.name}@{CHAMPION} is no longer {outcome.champion or 'unset'}, which {outcome.candidate} "
            "was compared with. Nothing was moved: compare again."
        )
    for name, value in _tags(request, outcome, shard_set_digest).items():
        client.set_model_version_tag(request.name, version, f"{TAG}{name}", value)
    if outcome.is_champion:
        move_alias(client, request.name, CHAMPION, version)


def _tags(request: PromotionRequest, outcome: Outcome, shard_set_digest: str) -> Mapping[str, str]:
    tags = {
        "verdict": outcome.verdict,
        "champion": outcome.champion,
        "shards": shard_set_digest,
        "splits": ",".join(request.splits),
        "margin": f"{request.margin:g}",
        "target": outcome.compared.target if outcome.compared else request.target or MEAN,
        "utterances": str(outcome.num_utterances),
        "speakers": str(outcome.num_speakers),
        "reason": redact(request.reason) if outcome.verdict == "forced" else "",
    }
    if outcome.compared is not None:
        gain = outcome.compared.gain
        tags |= {
            "ccc": f"{outcome.compared.first:.6f}",
            "champion_ccc": f"{outcome.compared.second:.6f}",
            "gain": f"{gain.value:.6f}",
            "gain_low": f"{gain.low:.6f}",
            "gain_high": f"{gain.high:.6f}",
        }
    return tags
