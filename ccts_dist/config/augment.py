"""What a run file can say about changing the input of a model while it is trained."""

from dataclasses import dataclass

from ccts_dist.config.ranges import Count, Decibels, Share, Speed


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentConfig:
    """What is done to the audio that is trained on, and to no other: the cached teacher heard it clean.

    In this order: speed, reverberation, noise. All is drawn from the run's seed, the epoch and the utterance's key.
    """

    speed: tuple[Speed, ...] = ()
    """Factors of which one is drawn for each utterance, 0.5 to 2: 1.1 is a tenth faster, and higher in pitch; empty
    leaves the speed alone. In steps of 0.01."""

    impulse_responses: tuple[str, ...] = ()
    """Folders of recorded or simulated impulse responses (audio files of any format and rate, sub-folders included)
    that utterances are reverberated with; the direct sound keeps its place, the utterance its length and energy."""

    reverb_probability: Share = 1.0
    """Share of the utterances that are reverberated, where there are ``impulse_responses``."""

    noises: tuple[str, ...] = ()
    """Sources of noise, each as likely as the other: "white", "pink", "babble" (other utterances of the same shard), or
    a folder of audio files, sub-folders included."""

    noise_probability: Share = 1.0
    """Share of the utterances that get noise, where there are ``noises``."""

    snr_db: tuple[Decibels, ...] = (0.0, 20.0)
    """Lowest and highest signal-to-noise ratio, in decibels; drawn evenly between them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecAugmentConfig:
    """Masking of the speech encoder's frames and features while it is trained (SpecAugment, Park et al. 2019).

    The defaults are wav2vec 2.0's. Drawn from the run's seed, step, rank and pass.
    """

    mask_time_prob: Share = 0.05
    """Share of the frames that would be masked if no two masks overlapped; 0 masks none."""

    mask_time_length: Count = 10
    """Frames of a mask; 50 frames are a second with HuBERT and its kin."""

    mask_feature_prob: Share = 0.0
    """Share of the features that would be masked if no two masks overlapped; 0 masks none."""

    mask_feature_length: Count = 10
    """Features of a mask."""
