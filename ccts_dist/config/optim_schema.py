"""Run-file keys of the optimizer: the table [optim]."""

from dataclasses import dataclass
from typing import Literal

from ccts_dist.config.ranges import CountOrZero, NotNegative, Positive, Share


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """Optimizer and learning-rate schedule."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """Optimizer of torch. "adamw" decouples the weight decay from the gradient; "sgd" has no momentum."""

    learning_rate: Positive = 5e-4
    """Learning rate of everything but the encoders; the highest one of a schedule that rises."""

    encoder_lr_scale: NotNegative = 0.25
    """Learning rate of the encoders as a multiple of ``learning_rate``."""

    speech_lr_scale: NotNegative | None = None
    """Multiple for the speech encoders alone; absent for ``encoder_lr_scale``."""

    text_lr_scale: NotNegative | None = None
    """Multiple for the text encoder alone; absent for ``encoder_lr_scale``."""

    weight_decay: NotNegative = 0.0
    """Weight decay, as the optimizer defines it."""

    decay_norms_and_biases: bool = False
    """Apply ``weight_decay`` to norms, biases and other parameters of one dimension too; usually they are spared."""

    max_grad_norm: NotNegative = 0.0
    """Largest norm of the global gradient (gradient clipping); 0 does not clip."""

    lr_scheduler: Literal["plateau", "onecycle", "constant", "linear", "cosine"] = "plateau"
    """Learning-rate schedule. "plateau": times ``plateau_factor`` when the validation loss has not fallen for more than
    ``plateau_patience`` validations. "onecycle": from 1/25 of the learning rate up to all of it over 30 % of training,
    then down to almost 0 (torch's OneCycleLR). "constant": no change. "linear" and "cosine": down to 0 at the end of
    training, along a line and half a cosine."""

    warmup_steps: CountOrZero = 0
    """Steps over which the learning rate rises from its ``warmup_steps``-th part to the whole; with "constant",
    "linear" and "cosine"."""

    plateau_factor: Share = 0.75
    """Factor by which "plateau" multiplies the learning rates."""

    plateau_patience: CountOrZero = 2
    """Validations without a lower loss that "plateau" tolerates."""
