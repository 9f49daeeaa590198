"""Schema of run files: frozen dataclasses, one per table.

Every field's docstring gives its meaning, unit and range; the range itself stands in the annotation and is enforced
by ``config.reader``. Nothing is built, read or rewritten here.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ccts_dist.config.augment import AugmentConfig
from ccts_dist.config.extra_shards import ExtraShardsConfig
from ccts_dist.config.model_schema import ModelConfig
from ccts_dist.config.optim_schema import OptimConfig
from ccts_dist.config.ranges import Between, Count, CountOrZero, NotNegative, Positive, Share
from ccts_dist.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Utterances: where they are, their order, and how they are read."""

    shards: str
    """Folder or address (s3://, gs://, https://) of the shard set."""

    extra_shards: tuple[ExtraShardsConfig, ...] = ()

    train_splits: tuple[str, ...] = ("Train",)
    """Splits that the model is trained on."""

    valid_splits: tuple[str, ...] = ("Development",)
    """Splits that select the best model."""

    test_splits: tuple[str, ...] = ("Test1",)
    """Splits that are scored once after training, each by itself, with the best model; may be empty. For several splits
    the CCC of their pooled predictions is given as well."""

    teacher_cache: str = ""
    """Folder or address of the teacher cache; "merged" when the shards carry the teacher's outputs; "" for none."""

    shuffle_buffer_size: Count = 65_536
    """Number of utterances that are shuffled together; it bounds the sampler's memory."""

    bucket_batches: Count = 1
    """Number of batches within which utterances are sorted by duration; 1 for batches of random composition. Above 1 it
    saves padding and harms every loss that is a statistic of a batch, such as CCC. In a batch of one duration the
    number of letters predicts the speaking rate. ``batch.micro_batch_seconds`` saves padding without harm."""

    num_partitions: Count = 1
    """Number of parts of the shards, each with an equal share of every batch. When the number of nodes divides it, each
    node reads its own parts alone, and need not fetch the whole corpus. The order depends on this key, not on the
    number of nodes."""

    pad_multiple_s: NotNegative | None = None
    """Multiple of seconds that padded audio is rounded up to; 0 for the longest utterance's own length. A GPU keeps a
    plan for each length that its convolutions meet, and makes it in the first pass of that length. Absent for 0.5 on
    GPUs and 0 on CPUs. Added frames are masked. Dropout is drawn for them too, so its values change."""

    num_workers: CountOrZero = 1
    """Number of threads per rank that read and decode; 0 reads in the training thread."""

    on_corrupt: Literal["raise", "skip"] = "raise"
    """Handling of a damaged utterance. "raise": stop on all ranks. "skip": continue with it at weight 0, and count it.
    """

    max_corrupt: CountOrZero = 100
    """Most damaged utterances of an epoch with ``on_corrupt`` = "skip"; one more stops the run."""

    max_duration_s: NotNegative = 0.0
    """Longest part of an utterance that is trained on, in seconds; 0 for all of it. A longer one is cropped to a
    window, whose place is drawn anew in every epoch. Its transcript and the teacher's cached output remain those of the
    whole. Validation, test and prediction use utterances whole."""

    feature_cache: str = ""
    """Folder, shared by all ranks, for the frames of frozen encoders; "" for none. Missing frames are made before
    training starts. Later epochs and runs read them instead of running the encoders. It is for encoders with
    ``trainable`` = "none" and without weighted layers; if all speech encoders are such, no audio is decoded. Speech
    frames are not cached where epochs differ: with [augment] or ``max_duration_s``."""

    feature_cache_dtype: Literal["float32", "float16"] = "float32"
    """Number type of cached frames. Most encoders make 50 frames a second: 1024 features take 0.7 GB an hour in
    float32, half of that in float16. The rounding of float16 (3 digits) enters training."""

    shard_cache: str = ""
    """Folder on this node for shards from a store; "" for the user's cache folder. Unused for local shards."""

    shard_cache_gb: Positive = 100.0
    """Largest size of that folder in gigabytes (10^9 bytes); the longest unused shards are removed first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """Batches: size of the global batch and its micro-batches (gradient accumulation)."""

    global_batch_size: Count = 32
    """Utterances per optimizer step, over all ranks."""

    micro_batch_size: Count = 32
    """Most utterances per forward pass on one rank; further ones are left to gradient accumulation."""

    labelled_share: Annotated[float, Between(0.001, 0.999)] | None = None
    """Share of labelled utterances in a training batch, where some have no label. With few labels a random batch has so
    few labelled ones that its CCC is noise. The kind that takes more steps to be used once sets the epoch. The other
    kind is repeated, in another order each time. Absent: every utterance is used once, in random batches."""

    balanced: bool = False
    """Give each of ``model.categories`` as many utterances of every training batch. The category that takes most steps
    sets the epoch; the others are repeated, in another order each time. Utterances of none of them are not trained on.
    Validation and test have every utterance once."""

    micro_batch_seconds: Positive | None = None
    """Most seconds of padded audio in a micro-batch on one rank: utterances times the longest one's duration. The
    global batch is then sorted by duration and split into as many micro-batches per rank as make the step shortest.
    Their number differs from step to step and is the same on all ranks. Longer utterances are not trained on;
    validation takes them one at a time. Absent: as few micro-batches as ``micro_batch_size`` allows, the same number in
    every step."""

    micro_batch_overhead_seconds: Annotated[float, Between(0.01, 1_000_000)] = 3.0
    """Fixed cost of a forward and backward pass, in seconds of padded audio that take as long; with
    ``micro_batch_seconds``. A larger value makes fewer, larger micro-batches. About 3 on a CPU; 50 and more on a GPU,
    which has to be kept busy."""

    forward_rounds: Literal["auto", "one", "two"] = "auto"
    """Rounds of forward passes per step, with ``loss.scope`` = "global" and several micro-batches in a step. "one": the
    graphs of all of them are kept until the loss is known. "two": a first round without gradient computes the loss, and
    each pass is then repeated with its graph. That takes the memory of one graph and the time of one more forward pass.
    "auto": one round in each step whose graphs fit in memory by the forecast. ZeRO-3 takes two. The loss is the same.
    """

    def gradient_accumulation_steps(self, num_ranks: int, largest_batch: int | None = None) -> int:
        """Fewest forward passes per optimizer step on each rank; refuses more ranks than utterances."""
        if self.global_batch_size < num_ranks:
            raise ConfigError(
                f"batch.global_batch_size={self.global_batch_size} leaves some of {num_ranks} ranks without an "
                f"utterance. Use at least {num_ranks}, or fewer ranks."
            )
        size = self.global_batch_size if largest_batch is None else largest_batch
        return -(-size // (self.micro_batch_size * num_ranks))


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """CCC loss: sum over targets of weight * (1 - CCC), plus the weighted cross-entropy of the categories."""

    target_weights: tuple[float, ...] = ()
    """Weight of each target; empty for 1 / number of targets each."""

    category_weight: NotNegative = 1.0
    """Weight of the cross-entropy over ``model.categories``, in nats. It is the mean over the utterances of the global
    batch whose category is one of them. Unused without categories."""

    class_weights: tuple[Positive, ...] = ()
    """Weight of each of ``model.categories``, in their order; empty for 1 each. The cross-entropy becomes the mean
    weighted by them, such as by the inverse of each category's frequency. Validation and test report it unweighted."""

    focal_gamma: Annotated[float, Between(0, 10)] = 0.0
    """Exponent of the focal loss (Lin 2017); 0 for plain cross-entropy, 2 is usual. Each utterance's cross-entropy is
    multiplied by (1 - p)^focal_gamma, p the probability of its own category. Utterances that are recognized already
    then count less."""

    category_target: Literal["category", "votes"] = "category"
    """Target of the cross-entropy. "category": the category of each utterance. "votes": the distribution of
    its raters' votes over ``model.categories`` (soft labels), from the labels NAME.share, or those of the categories'
    names, such as CREMA-D's. Shares are scaled to add up to 1; utterances without votes for any are ignored. The
    categories "valence.1" to "valence.7" learn the density of a target's grades; no utterance then has a category, and
    there is no accuracy. Class weights and focal factor apply to each category's term. Validation and test stay by
    category, and add ``category_kl_to_votes``."""

    scope: Literal["global", "micro-batch"] = "global"
    """Utterances over which the CCC is computed. "global": the global batch, exactly, whatever the number of ranks and
    micro-batches; see ``batch.forward_rounds`` for several micro-batches. "micro-batch": each micro-batch of each rank,
    averaged over those with at least two labels. The latter needs one graph at a time, and its value depends on the
    split of the batch."""


DEFAULT_THRESHOLD = 2.0
"""The paper's ``distill.threshold``."""

THRESHOLD_GATES = ("any-dimension", "per-dimension")
"""Gates that compare residuals with a threshold."""

RESIDUAL_GATES = (*THRESHOLD_GATES, "soft")
"""Gates that look at residuals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """Knowledge distillation: the terms that a student learns from the teacher cache, and the gate. An utterance
    without ratings is distilled, and enters no CCC."""

    embedding_weight: NotNegative = 30.0
    """Weight of the embedding term, the paper's lambda."""

    embedding_loss: Literal["mse", "l2", "cosine"] = "l2"
    """Distance of the student's and the teacher's embeddings, averaged over distilled utterances. "l2": Euclidean
    distance, the paper's formula. "mse": mean over the H features of the squared difference. "cosine": 1 - cosine of
    their angle, whatever their lengths. At distance d an utterance's gradient is proportional to lambda with "l2", and
    to lambda * 2 d / H with "mse". The two are equal where lambda of "mse" is H / (2 d) times that of "l2". With H =
    128 that is 19 times at d = 3.4, as in an untrained student of the demo. It is 73 times at d = 0.88, as in a
    distilled one. So lambda = 30 with "mse" is no stronger than 0.4 to 1.6 with "l2", below the paper's 3 to 50."""

    standardize: bool = False
    """Compare embeddings in units of the cache's mean and standard deviation per feature, instead of raw."""

    prediction_weight: NotNegative = 0.0
    """Weight of the prediction term, between student's and teacher's predictions."""

    prediction_loss: Literal["mse", "ccc"] = "mse"
    """Loss of the prediction term. "mse": mean squared difference over targets and distilled utterances. "ccc": sum
    over targets of weight * (1 - CCC of student and teacher) over the distilled utterances of the global batch,
    exactly. Its weights are ``loss.target_weights``. Not with ``loss.scope`` = "micro-batch"."""

    gate: Literal["none", "any-dimension", "per-dimension", "soft", "random", "keys", "confidence"] = "any-dimension"
    """Rule that selects the utterances to distil. "none": every utterance. "any-dimension": those whose every residual
    is within the threshold. "per-dimension": in the prediction term each dimension whose own residual is within it; the
    embedding term takes every utterance. "soft": every utterance, weighted in both terms by exp(-max_j r_j^2 / (2
    s_j^2)), r its residuals and s their standard deviations. Each term is then the weighted mean over the global batch.
    A missing label counts as a residual of 0. Three gates need no label. "random": a control, which rejects utterances
    with probability ``reject_fraction`` by a hash of ``seed`` and key, the same in every epoch. "keys": those whose
    keys are listed in ``gate_keys``. "confidence": those whose transcript was recognized with ``min_confidence``."""

    gate_targets: tuple[str, ...] = ()
    """Targets whose residuals the gates "any-dimension", "per-dimension" and "soft" use; empty for all."""

    residual_scale: Literal["std", "robust"] = "std"
    """Estimate of w, b and the standard deviation s of the residuals r = w p + b - y, for the same gates. "std":
    the least-squares fit stored with the teacher cache; its standard deviation widens with every outlier. "robust": the
    fit without residuals beyond 3 s, repeated until none changes sides, with s = 1.4826 times the median absolute
    residual. It is computed before training from the cached predictions, and recorded with the model. A threshold of 3
    is usual with it."""

    gate_keys: str = ""
    """Text file in UTF-8 with one key per line, for gate = "keys"; all other utterances are not distilled."""

    min_confidence: Share | None = None
    """Least confidence of the recognizer, 0..1, for gate = "confidence", as ``shards/transcribe.py`` wrote it. An
    utterance with a transcript of another source passes."""

    threshold: Positive | None = None
    """Largest residual that passes, in standard deviations; for "any-dimension" and "per-dimension". Absent for 2, or
    for the value that follows from ``reject_fraction``. With ``reject_fraction`` only that value is accepted, as in the
    run files that trainings write."""

    reject_fraction: Annotated[float, Between(0, 0.99)] = 0.0
    """Share of the labelled training utterances that "any-dimension" rejects, instead of a ``threshold``; 0 for none.
    "per-dimension" then rejects some dimension of that share. The threshold is the (1 - reject_fraction) quantile of
    max_j |r_j| / s_j over the training splits. It is computed before training from the cached predictions, and recorded
    as ``threshold`` in run.toml, checkpoints and tracker. With gate = "random" it is the probability of rejection.
    There 0 stands for the share that "any-dimension" would reject with the same ``threshold``, ``residual_scale`` and
    ``gate_targets``, recorded as ``reject_fraction``."""

    @property
    def threshold_or_default(self) -> float:
        """``threshold``, or the default where the run file leaves it open."""
        return DEFAULT_THRESHOLD if self.threshold is None else self.threshold


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Training: length, precision, validation, checkpoints and limits of time."""

    epochs: Count = 50
    """Number of epochs, each over every training utterance once."""

    max_steps: CountOrZero = 0
    """Number of steps after which training stops; 0 for no such limit."""

    eval_steps: CountOrZero = 0
    """Steps between validations that select the best model, besides those at the end of every epoch; 0 for none within
    an epoch."""

    early_stopping_patience: CountOrZero = 0
    """Early stopping: training ends after so many validations in a row without a better model; 0 for never."""

    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Precision of forward and backward passes; the optimizer's weights and the predictions are float32 in all. "bf16"
    is mixed precision with bfloat16. "fp32" is never rounded to TF32 on a GPU. "tf32" rounds matrix products and
    convolutions of training steps to three digits, which is several times as fast on GPUs. The head, the norms, the
    filter bank and validation remain exact."""

    ema_decay: Annotated[float, Between(0, 0.99999)] = 0.0
    """Decay of an exponential moving average (EMA) of the trained weights; 0 for none. The average begins with the
    weights after the first step. Each further step makes it ema_decay * average + (1 - ema_decay) * weights. The model
    of the average is the one that is validated, selected and saved, as best/ and last/. With 0.999 it reaches back some
    1,000 steps. Statistics of batch norms are not averaged. It takes 4 bytes per trained parameter, divided by the
    ranks from ZeRO-1 on."""

    torch_compile: bool = False
    """Compile each encoder layer that has attention with torch (inductor). It makes fewer and larger kernels, for GPUs
    where the host launches them too slowly. The first steps take minutes, and numbers change by rounding. It needs a
    C++ compiler, and does not work under ZeRO-3."""

    deepspeed: str = "ds_configs/zero2.json"
    """JSON file of DeepSpeed; keys that this run file owns are "auto" or absent there. A name that the working
    directory lacks is looked up in the package."""

    save_steps: CountOrZero = 0
    """Steps between checkpoints; 0 for none within an epoch."""

    save_epochs: Count = 1
    """Epochs between checkpoints at an epoch's end; the end of training always has one."""

    async_save: bool = True
    """Write checkpoints in a thread while training continues. Steps then wait only for a copy of weights and optimizer
    state in rank 0's host memory. false: steps wait until the checkpoint is complete."""

    save_minutes: NotNegative = 0.0
    """Minutes without a checkpoint after which one is written, by rank 0's clock; 0 for no such limit."""

    save_total_limit: Count = 2
    """Number of newest checkpoints that are kept, besides the best model."""

    nonfinite_patience: Count = 20
    """Consecutive steps skipped for a loss or gradient that is not finite, after which training stops: the model has
    diverged."""

    comm_timeout_s: Annotated[float, Between(1, 1_000_000)] = 600.0
    """Longest wait of a rank for its peers, in seconds, after which all ranks end; no step may take longer either."""

    peak_tflops: NotNegative = 0.0
    """Peak of a rank's device in ``precision``, in 10^12 floating-point operations per second (dense, without
    sparsity). ``throughput/mfu`` is the share of it that the model used. 0 for the known value of its GPU."""

    profile: tuple[Count, ...] = ()
    """First and last step, counted from 1, that rank 0 records with torch.profiler; empty for none. [50, 55] writes the
    trace and a table of the step by part into the run folder's ``profile/``."""

    stop_grace_s: Annotated[float, Between(1, 1_000_000)] = 120.0
    """Longest time from a request to stop to a complete checkpoint, in seconds. A step (two where they take less than a
    second) and the saving must fit. Keep it below the cluster's time between its signal and the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """Tracking: the server, and the name under which it lists the run."""

    backend: Literal["mlflow", "tensorboard", "mlflow+tensorboard", "none"] = "mlflow"
    """Tracking backend. TensorBoard's event files are written to ``tensorboard/`` of the run folder. "none" writes the
    history to the run folder alone."""

    every_steps: Count = 1
    """Steps between two reports of training metrics to the tracker; the history in the run folder has every step."""

    tracking_uri: str = ""
    """Address of the tracking server. "" for MLFLOW_TRACKING_URI, and without that the SQLite file ``mlflow.db`` in the
    working directory."""

    experiment_name: str = "ccts"
    """MLflow experiment that the run belongs to."""

    parent_run_name: str = ""
    """Name of the parent run that lists this one; it is created in the experiment if it is not there. "" for none."""

    registered_model_name: str = ""
    """Name under which the best model is registered after training, with alias "candidate"; "" does not register."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Metrics of validation and test splits besides CCC; none of them selects the best model. Pearson's and Spearman's
    correlations of the test splits are always tracked and written to ``summary.json``. ``launch/evaluate.py`` reports
    them for each split."""

    bins: tuple[float, ...] = ()
    """Edges on the corpus's own scale, rising, of classes of ratings and predictions; empty for none. The mean recall
    of the classes (unweighted average recall) is reported for each target. A rating on an edge belongs to the class
    farther from the middle of the scale. So [2, 4] on 1..5 makes [1, 2], (2, 4) and [4, 5]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """Run: name, folder and seed."""

    run_name: str
    """Name of the run, for people."""

    output_dir: str
    """Folder for checkpoints and the best model; on storage that all ranks share."""

    seed: CountOrZero = 0
    """Seed of new weights, the order of utterances, and dropout."""

    data: DataConfig
    model: ModelConfig
    batch: BatchConfig = field(default_factory=BatchConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    distill: DistillConfig | None = None
    augment: AugmentConfig | None = None
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
