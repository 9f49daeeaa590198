"""Fit, choose and score a linear probe per layer: each utterance is processed once, for all layers.

The training split becomes second moments, the validation split CCC's sums for every strength of the penalty, the test
split CCC's sums per speaker. All of them add over batches and ranks, in float64: the result does not depend on how many
ranks there are, or on how the utterances are cut into batches.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ccts_dist.batches import Batch
from ccts_dist.config import BatchConfig, DataConfig
from ccts_dist.distributed import Ranks, lockstep, run_on_all_ranks, sum_over_ranks
from ccts_dist.errors import ConfigError
from ccts_dist.loader.loader import Loader
from ccts_dist.probe.encoders import Encoders, Layer
from ccts_dist.probe.ridge import STRENGTHS, RidgeFits, fit_ridge, moments_of, predict
from ccts_dist.probe.splits import ProbeSplits, speakers_by_key, target_rows
from ccts_dist.progress import Progress
from ccts_dist.records import is_rating
from ccts_dist.scoring import add_by_cluster, bootstrap
from ccts_dist.scoring.measures import SUM_ROWS, ccc_of, row_sums
from ccts_dist.shards.shard_set import ShardSet

Group = tuple[int, ...]
"""Places of targets whose labelled training rows are the same, and which share moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScore:
    """How well one layer's probe predicts one target."""

    layer: Layer
    target: str
    ccc: float
    """On the test split."""

    interval: tuple[float, float] | None
    """95 %, speakers drawn with replacement; None where all is spoken by one speaker."""

    valid_ccc: float
    """On the validation split, which the strength was chosen by."""

    strength: float
    """Strength of the penalty; see ``ridge``."""

    num_features: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """Result of a probe of all layers."""

    scores: tuple[LayerScore, ...]
    """Layer by layer in the encoders' order, and target by target."""

    targets: tuple[str, ...]
    splits: ProbeSplits
    num_labels: Mapping[str, Mapping[str, int]]
    """By role ("train", "valid", "test") and target."""


def probe_layers(
    encoders: Encoders,
    shard_set: ShardSet,
    splits: ProbeSplits,
    targets: Sequence[str] = (),
    *,
    ranks: Ranks,
    device: torch.device,
    micro: int = 16,
    workers: int = 1,
) -> ProbeResult:
    """Probe every layer of frozen encoders; the same result on every rank.

    Every rank must call it. Its memory holds a square of (1 + features + targets) float64 numbers per layer: 0.2 GB for
    the mean frames of HuBERT-large, and as much again for each target whose labelled rows are others.

    Args:
        targets: labels that are probed; empty for all ratings of the shard set.
        micro: utterances of one forward pass on one rank.
        workers: threads per rank that read and decode.

    Raises:
        ConfigError: an unknown split or target, a split with two roles, fewer than two labels, or frames that are not
            finite.
        ShardError: a shard is damaged.
    """
    targets = tuple(dict.fromkeys(targets)) or tuple(filter(is_rating, shard_set.manifest.targets))
    sweeps = run_on_all_ranks(
        lambda: _Sweeps(encoders, shard_set, splits, targets, ranks=ranks, device=device, micro=micro, workers=workers)
    )
    with sweeps.progress:
        fits = sweeps.fit()
        chosen = sweeps.choose(fits)
        return sweeps.score(chosen)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """A layer's probes at their best strengths."""

    fits: RidgeFits
    """One "strength": the best of each target."""

    strengths: tuple[float, ...]
    valid_ccc: tuple[float, ...]


class _Sweeps:
    """The three sweeps, over splits that are known to have what is asked of them."""

    def __init__(
        self,
        encoders: Encoders,
        shard_set: ShardSet,
        splits: ProbeSplits,
        targets: Sequence[str],
        *,
        ranks: Ranks,
        device: torch.device,
        micro: int,
        workers: int,
    ) -> None:
        splits.check()
        if micro < 1:
            raise ConfigError(f"--batch-size {micro}: must be at least 1 utterance per forward pass. Give more.")
        self._encoders, self._device = encoders, device
        self.splits, self.targets = splits, tuple(targets)
        roles = {"train": splits.train, "valid": splits.valid, "test": splits.test}
        # Loaders first: they refuse unknown names.
        self._loaders = {
            role: Loader(
                shard_set,
                names,
                batch=BatchConfig(global_batch_size=micro * ranks.num_ranks, micro_batch_size=micro),
                data=DataConfig(shards=str(shard_set.root), num_workers=workers),
                targets=self.targets,
                seed=0,
                ranks=ranks,
                encode_text=encoders.encode_text,
                shuffle=False,
            )
            for role, names in roles.items()
        }
        rows = {role: target_rows(shard_set, names, targets, f"--{role}") for role, names in roles.items()}
        self.num_labels = {role: those.num_labels for role, those in rows.items()}
        self._groups: tuple[Group, ...] = rows["train"].groups
        self._speakers = speakers_by_key(shard_set, splits.test)
        steps = sum(loader.steps_per_epoch for loader in self._loaders.values())
        self.progress = Progress(steps, "probing", unit="batches", visible=ranks.is_first)

    def fit(self) -> dict[Layer, RidgeFits]:
        """The fits of every strength, by layer, from the training split; those of all targets side by side."""
        sums: dict[Layer, dict[Group, Tensor]] = {}
        for batch, vectors in self._sweep("train"):
            for layer, features in vectors.items():
                of_layer = sums.setdefault(layer, {})
                for group in self._groups:
                    labels = batch.labels[:, list(group)]
                    rows = (batch.weight > 0) & ~labels.isnan().any(dim=1)
                    moments = moments_of(features[rows], labels[rows])
                    # In place: they are the largest of all there is here.
                    of_layer[group] = of_layer[group].add_(moments) if group in of_layer else moments
        fits = {}
        for layer in list(sums):
            of_layer = {group: sum_over_ranks(moments) for group, moments in sums.pop(layer).items()}
            _refuse_unless_finite(layer, *of_layer.values())
            fits[layer] = self._side_by_side({group: fit_ridge(one, len(group)) for group, one in of_layer.items()})
        return fits

    def choose(self, fits: Mapping[Layer, RidgeFits]) -> dict[Layer, _Choice]:
        """Each layer and target at the strength with the highest CCC on the validation split."""
        num_strengths = len(STRENGTHS)
        sums = {layer: self._zeros(len(SUM_ROWS), num_strengths * len(self.targets)) for layer in fits}
        for batch, vectors in self._sweep("valid"):
            labels = batch.labels.repeat(1, num_strengths)
            for layer, features in vectors.items():
                predicted = predict(features, fits[layer]).flatten(1)
                sums[layer] += row_sums(predicted, labels, batch.weight).sum(0)
        choices = {}
        for layer, one in sums.items():
            one = sum_over_ranks(one)
            _refuse_unless_finite(layer, one)
            ccc = ccc_of(one).unflatten(0, (num_strengths, -1))
            best = ccc.argmax(dim=0)
            places = torch.arange(len(self.targets), device=best.device)
            choices[layer] = _Choice(
                fits=RidgeFits(
                    fits[layer].weights.transpose(1, 2)[best, places].T[None], fits[layer].intercept[best, places][None]
                ),
                strengths=tuple(STRENGTHS[place] for place in best.tolist()),
                valid_ccc=tuple(ccc[best, places].tolist()),
            )
        return choices

    def score(self, choices: Mapping[Layer, _Choice]) -> ProbeResult:
        """The chosen probes on the test split."""
        num_columns = len(choices) * len(self.targets)
        total = self._zeros(1 + max(self._speakers.values()), len(SUM_ROWS), num_columns)
        for batch, vectors in self._sweep("test"):
            predicted = torch.cat([predict(vectors[layer], choices[layer].fits)[:, 0] for layer in choices], dim=1)
            speakers = torch.tensor([self._speakers[key] for key in batch.keys], device=self._device)
            add_by_cluster(total, speakers, row_sums(predicted, batch.labels.repeat(1, len(choices)), batch.weight))
        total = sum_over_ranks(total).cpu()
        for number, layer in enumerate(choices):
            _refuse_unless_finite(layer, total[:, :, number * len(self.targets) : (number + 1) * len(self.targets)])
        intervals = bootstrap(total, ccc_of)
        scores = []
        for number, (layer, choice) in enumerate(choices.items()):
            for place, target in enumerate(self.targets):
                one = intervals[number * len(self.targets) + place]
                scores.append(
                    LayerScore(
                        layer=layer,
                        target=target,
                        ccc=one.value,
                        interval=(one.low, one.high) if one.is_known else None,
                        valid_ccc=choice.valid_ccc[place],
                        strength=choice.strengths[place],
                        num_features=choice.fits.weights.shape[1],
                    )
                )
        return ProbeResult(scores=tuple(scores), targets=self.targets, splits=self.splits, num_labels=self.num_labels)

    def _sweep(self, role: str) -> Iterator[tuple[Batch, Mapping[Layer, Tensor]]]:
        """This rank's batches of a split, with what each layer makes of them."""
        loader = self._loaders[role]
        try:
            for step in lockstep(loader.epoch(0), loader.steps_per_epoch):
                for batch in step.micro_batches:
                    moved = batch.to(self._device)
                    with torch.no_grad():
                        yield moved, self._encoders.vectors(moved)
                self.progress.advance()
        finally:
            loader.close()

    def _side_by_side(self, by_group: Mapping[Group, RidgeFits]) -> RidgeFits:
        """The targets in their own order, whatever group they were fitted in."""
        order = [place for group in by_group for place in group]
        back = sorted(range(len(order)), key=order.__getitem__)
        weights = torch.cat([fits.weights for fits in by_group.values()], dim=2)
        intercept = torch.cat([fits.intercept for fits in by_group.values()], dim=1)
        return RidgeFits(weights[:, :, back], intercept[:, back])

    def _zeros(self, *size: int) -> Tensor:
        return torch.zeros(*size, dtype=torch.float64, device=self._device)


def _refuse_unless_finite(layer: Layer, *sums: Tensor) -> None:
    """All ranks have the same sums, and so the same answer."""
    if not all(bool(one.isfinite().all()) for one in sums):
        raise ConfigError(
            f"layer {layer.number} of the {layer.encoder} encoder gives frames that are not finite, so no probe can "
            "be fitted. Name another model."
        )
