"""The tables of a run file that change a model's input in training."""

from dataclasses import dataclass

from ccts_dist.config.ranges import Count, Decibels, Share, Speed


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """Augmentation of training audio alone; the cached teacher outputs are those of clean audio.

    In this order: speed, reverberation, noise. All is drawn from the run's seed, the epoch and the utterance's key.
    """

    speed: tuple[Speed, ...] = ()
    """Speed factors of which one is drawn for each utterance, 0.5 to 2 in steps of 0.01; empty for none. 1.1 is a tenth
    faster, and higher in pitch."""

    impulse_responses: tuple[str, ...] = ()
    """Folders of recorded or simulated impulse responses for reverberation (audio files of any format and rate,
    sub-folders included). The direct sound keeps its place, the utterance its length and energy."""

    reverb_probability: Share = 1.0
    """Share of the utterances that are reverberated, where there are ``impulse_responses``."""

    noises: tuple[str, ...] = ()
    """Sources of noise, each with equal probability: "white", "pink", "babble" (other utterances of the same shard), or
    a folder of audio files, sub-folders included."""

    noise_probability: Share = 1.0
    """Share of the utterances that get noise, where there are ``noises``."""

    snr_db: tuple[Decibels, ...] = (0.0, 20.0)
    """Lowest and highest signal-to-noise ratio, in decibels; drawn uniformly between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecAugmentConfig:
    """Masking of the speech encoder's frames and features in training (SpecAugment, Park et al. 2019).

    The defaults are wav2vec 2.0's. Masks are drawn from the run's seed, step, rank and micro-batch.
    """

    mask_time_prob: Share = 0.05
    """Share of the frames that would be masked if no two masks overlapped; 0 masks none."""

    mask_time_length: Count = 10
    """Length of a mask in frames; 50 frames are a second with HuBERT and similar encoders."""

    mask_feature_prob: Share = 0.0
    """Share of the features that would be masked if no two masks overlapped; 0 masks none."""

    mask_feature_length: Count = 10
    """Length of a mask in features."""
