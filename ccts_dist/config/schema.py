"""What a run file can say: frozen dataclasses, one per table.

Every field's docstring gives its meaning, unit and range; the range itself stands in the annotation and is enforced
by ``config.reader``. Nothing is built, read or rewritten here.
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ccts_dist.config.augment import AugmentConfig
from ccts_dist.config.model_schema import ModelConfig
from ccts_dist.config.ranges import Between, Count, CountOrZero, NotNegative, Positive, Share
from ccts_dist.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Which utterances, in which order, read how."""

    shards: str
    """Folder or address (s3://, gs://, https://) of the shard set."""

    train_splits: tuple[str, ...] = ("Train",)
    """Splits that are trained on."""

    valid_splits: tuple[str, ...] = ("Development",)
    """Splits that choose the best model."""

    test_splits: tuple[str, ...] = ("Test1",)
    """Splits that are scored once, each by itself, with the best model, after training; may be empty. Of several the
    pooled CCC is given as well, which is that of none of them."""

    teacher_cache: str = ""
    """Folder or address of the teacher cache, "merged" when the shards carry the teacher's outputs, "" for none."""

    shuffle_buffer_size: Count = 65_536
    """Utterances that are shuffled together; bounds the plan's memory."""

    bucket_batches: Count = 1
    """Batches within which utterances are sorted by duration; 1 for batches of random composition. Above 1 it saves
    padding and harms every loss that is a statistic of a batch, such as CCC: in a batch of one duration the number of
    letters predicts how fast somebody spoke. ``batch.micro_batch_seconds`` saves padding without harm."""

    num_partitions: Count = 1
    """Parts of the shards that give equal shares of every batch. When the nodes divide them, each node reads its own
    and no others, so that it need not fetch the whole corpus; the order depends on it, not on the nodes."""

    pad_multiple_s: NotNegative | None = None
    """Padded audio is as long as the next multiple of so many seconds; 0 for the longest utterance's own length. A GPU
    keeps a plan for each length that its convolutions meet, and makes it in the first pass of that length. Absent for
    0.5 on GPUs and 0 on CPUs. Added frames are masked: only dropout, which is drawn for them too, then draws otherwise.
    """

    num_workers: CountOrZero = 1
    """Threads per rank that read and decode; 0 reads in the training thread."""

    on_corrupt: Literal["raise", "skip"] = "raise"
    """What to do about an utterance that is damaged: stop on all ranks, or go on with it at weight 0, counted."""

    max_corrupt: CountOrZero = 100
    """With damaged = "skip": most damaged utterances of an epoch; one more stops the run."""

    max_duration_s: NotNegative = 0.0
    """Longest stretch of an utterance that is trained on, in seconds; 0 for all of it. A longer one is cut to a window,
    whose place is drawn anew in every epoch; its transcript and the teacher's cached output stay those of the whole.
    Validation and test hear utterances whole, as whoever predicts does."""

    feature_cache: str = ""
    """Folder on storage that all ranks share where the frames of frozen encoders are kept: what is not there yet is
    made before training starts, and later epochs and runs read it instead of running the encoders. For encoders with
    ``trainable`` = "none" that are not mixed of weighted layers; where all speech encoders are such, no audio is
    decoded. Speech is not kept with what makes every epoch hear something else: [augment], ``max_duration_s``. "" for
    none."""

    feature_cache_dtype: Literal["float32", "float16"] = "float32"
    """How frames are kept. A second of audio has 50 frames in most encoders: 1024 features make 0.7 GB an hour in
    float32, and half of that in float16, whose rounding (3 digits) the training then sees."""

    shard_cache: str = ""
    """Folder of this node for shards from a store; "" for the user's cache folder. Unused for local shards."""

    shard_cache_gb: Positive = 100.0
    """Most gigabytes (10^9 bytes) in that folder; the longest unused shards make room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchConfig:
    """How a global batch is cut into micro-batches."""

    global_batch_size: Count = 32
    """Utterances per optimizer step, over all ranks."""

    micro_batch_size: Count = 32
    """Most utterances per forward pass on one rank."""

    labelled_share: Annotated[float, Between(0.001, 0.999)] | None = None
    """Share of a training batch's utterances that have a label, where some have none: with few labels a random batch
    has so few labelled ones that its CCC is noise. The kind that takes more steps to come once sets the epoch, and the
    other comes again, in another order each time. Absent: every utterance comes once, in random batches."""

    micro_batch_seconds: Positive | None = None
    """Most seconds of padded audio in a micro-batch on one rank: utterances times the longest one's duration. The
    global batch is then sorted by duration and cut into as many micro-batches per rank as make the step shortest, which
    differs from step to step and is the same on all ranks. Training takes no utterance that is longer; validation takes
    a longer one alone. Absent: as few micro-batches as ``micro_batch_size`` allows, the same number in every step."""

    micro_batch_overhead_seconds: Annotated[float, Between(0.01, 1_000_000)] = 3.0
    """With ``micro_batch_seconds``: seconds of padded audio that take as long as what a forward and backward pass costs
    whatever it is given. More of it makes fewer, larger micro-batches. About 3 on a CPU; on a GPU, which has to be kept
    busy, 50 and more."""

    forward_rounds: Literal["auto", "one", "two"] = "auto"
    """With ``loss.scope`` = "global" and several micro-batches in a step. "one": the graphs of all of them are kept
    until the loss is known. "two": a first round of forward passes without gradient finds the loss, and each is then
    repeated with its graph, which takes the memory of one graph and the time of one more forward pass. "auto": one
    round in each step whose graphs fit in memory by the forecast. ZeRO-3 takes two. The loss is the same."""

    def passes(self, num_ranks: int, largest_batch: int | None = None) -> int:
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
    """The CCC loss: sum over targets of weight * (1 - CCC); and the weight of the categories beside it."""

    target_weights: tuple[float, ...] = ()
    """One weight per target; empty for 1 / number of targets each."""

    category_weight: NotNegative = 1.0
    """Weight of the cross-entropy over ``model.categories``, in nats: the mean over the utterances of the global batch
    whose category is among them. Unused without categories."""

    class_weights: tuple[Positive, ...] = ()
    """Weight of each of ``model.categories``, in their order: the cross-entropy becomes the mean weighted by them, such
    as by the inverse of each category's frequency. Validation and test give it without. Empty for 1 each."""

    focal_gamma: Annotated[float, Between(0, 10)] = 0.0
    """Exponent of the focal loss (Lin 2017): each utterance's cross-entropy times (1 - p)^focal_gamma, p the
    probability of its own category, so that what is recognized already counts less. 2 is usual; 0 for the plain one."""

    scope: Literal["global", "micro-batch"] = "global"
    """Whose CCC. "global": of the global batch, exactly, however many ranks and passes it is spread over; with several
    passes see ``batch.forward_rounds``. "micro-batch": of each rank's each pass, the mean over those that have two
    labels; needs the graph of one pass at a time, and is another loss with every other cut of the batch."""


DEFAULT_THRESHOLD = 2.0
"""The paper's ``distill.threshold``."""

THRESHOLD_GATES = ("any-dimension", "per-dimension")
"""Gates that compare residuals with a threshold."""

RESIDUAL_GATES = (*THRESHOLD_GATES, "soft")
"""Gates that look at residuals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """What a student learns from the cached teacher, and from which utterances. One that nobody rated is distilled, and
    counts in no CCC."""

    embedding_weight: NotNegative = 30.0
    """Lambda of the paper: weight of the embedding term."""

    embedding_loss: Literal["mse", "l2", "cosine"] = "l2"
    """"l2": Euclidean distance, the paper's formula; "mse": mean over the H features of the squared difference;
    "cosine": 1 - cosine of the angle between the two, whatever their lengths. Mean over kept utterances. At distance d
    an utterance's gradient has a length proportional to lambda with "l2", and to lambda * 2 d / H with "mse": the
    two are equal where lambda of "mse" is H / (2 d) times that of "l2". With H = 128 that is 19 times at d = 3.4,
    where an untrained student of the demo is, and 73 times at d = 0.88, where a distilled one is. So lambda = 30 on the
    mean square is no stronger than 0.4 to 1.6 on the norm, below the 3 to 50 that the paper tried."""

    standardize: bool = False
    """Compare embeddings in units of the cache's mean and deviation per feature, instead of raw."""

    prediction_weight: NotNegative = 0.0
    """Weight of the term between student's and teacher's predictions."""

    prediction_loss: Literal["mse", "ccc"] = "mse"
    """"mse": mean squared difference over targets and kept utterances; "ccc": sum over targets of weight * (1 - CCC
    of student and teacher) over what is kept of the global batch, exactly, with the weights of ``loss.target_weights``;
    not with ``loss.scope`` = "micro-batch"."""

    gate: Literal["none", "any-dimension", "per-dimension", "soft", "random", "keys", "confidence"] = "any-dimension"
    """Who is distilled. "none": every utterance. "any-dimension": those whose every residual is within the threshold.
    "per-dimension": in the prediction term each dimension of an utterance whose own residual is; the embedding term
    takes every utterance. "soft": every utterance, with a share of exp(-max_j r_j^2 / (2 s_j^2)) in both terms, r its
    residuals and s their standard deviations; each term is the mean over the global batch weighted by the shares. A
    label that is missing counts as a residual of 0. Three gates need no label. "random": a control, which rejects each
    utterance with probability ``reject_fraction`` by a hash of ``seed`` and key, the same ones in every epoch.
    "keys": those whose keys stand in ``gate_keys``. "confidence": those whose transcript was recognized with "
    "``min_confidence``."""

    gate_targets: tuple[str, ...] = ()
    """Targets whose residuals the gate looks at, of "any-dimension", "per-dimension" and "soft"; empty for all."""

    deviation: Literal["standard", "robust"] = "standard"
    """What the same gates take for w, b and s of the residuals r = w p + b - y. "standard": the least-squares fit of
    the teacher's cache and its standard deviation, which widens with every outlier. "robust": the fit without residuals
    beyond 3 s, repeated until none changes sides, with s = 1.4826 times the median absolute residual; found before
    training from the cached predictions and recorded with the model. A threshold of 3 is usual with it."""

    gate_keys: str = ""
    """With gate = "keys": text file in UTF-8 with the key of one utterance a line; all others are not distilled."""

    min_confidence: Share | None = None
    """With gate = "confidence": least confidence of the recognizer, 0..1, as ``shards/transcribe.py`` wrote it. An
    utterance whose transcript comes from no recognizer passes."""

    threshold: Positive | None = None
    """Widest residual that is kept, in standard deviations; for "any-dimension" and "per-dimension". Absent for 2, or
    with ``reject_fraction`` for the one that follows from it; one that stands beside ``reject_fraction`` must be that
    one, as in the run files that trainings write."""

    reject_fraction: Annotated[float, Between(0, 0.99)] = 0.0
    """Above 0, in place of a ``threshold`` that is given: share of the labelled training utterances that
    "any-dimension" leaves out, and of which "per-dimension" leaves out some dimension. The threshold is the
    (1 - reject_fraction) quantile of max_j |r_j| / s_j over the training splits, found before training from the
    teacher's cached predictions, and recorded as ``threshold`` in run.toml, checkpoints and tracker. With gate =
    "random" the probability of rejection; 0 there for the share of all training utterances that "any-dimension" would
    leave out with the same ``threshold``, ``deviation`` and ``gate_targets``, which is recorded as
    ``reject_fraction``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimConfig:
    """Optimizer and learning-rate schedule."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    """As torch has them; "adamw" takes the weight decay apart from the gradient, "sgd" is without momentum."""

    learning_rate: Positive = 5e-4
    """Of everything but the encoders; the highest of a schedule that rises."""

    encoder_lr_scale: NotNegative = 0.25
    """The encoders' learning rate as a multiple of ``learning_rate``."""

    speech_lr_scale: NotNegative | None = None
    """The speech encoders' own such multiple; absent for ``encoder_lr_scale``."""

    text_lr_scale: NotNegative | None = None
    """The text encoder's own such multiple; absent for ``encoder_lr_scale``."""

    weight_decay: NotNegative = 0.0
    """As the optimizer takes it."""

    decay_norms_and_biases: bool = False
    """Whether ``weight_decay`` also holds for norms, biases and other parameters of one dimension; the field spares
    them."""

    max_grad_norm: NotNegative = 0.0
    """Largest norm of the global gradient; 0 does not clip."""

    lr_scheduler: Literal["plateau", "onecycle", "constant", "linear", "cosine"] = "plateau"
    """"plateau": times ``plateau_factor`` when the validation loss has not fallen for more than ``plateau_patience``
    validations. "onecycle": from 1/25 of the learning rate up to all of it over 30 % of training, then down to almost 0
    (torch's OneCycleLR). "constant": always all of it. "linear" and "cosine" fall to 0 at the end of training, along a
    line and half a cosine."""

    warmup_steps: CountOrZero = 0
    """With "constant", "linear" and "cosine": steps over which the learning rate first rises, from its
    ``warmup_steps``-th part to the whole."""

    plateau_factor: Share = 0.75
    """What "plateau" multiplies the learning rates by."""

    plateau_patience: CountOrZero = 2
    """Validations without a fall that "plateau" lets pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How long, how precisely, and what is kept."""

    epochs: Count = 50
    """Times that every training utterance comes."""

    max_steps: CountOrZero = 0
    """Stop after so many steps in all; 0 for no such limit."""

    eval_steps: CountOrZero = 0
    """Steps between validations, which choose the best model, beside those at the end of every epoch; 0 for none within
    an epoch."""

    early_stopping_patience: CountOrZero = 0
    """Training ends after so many validations in a row without a better model; 0 for no such end."""

    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    """Of forward and backward; the optimizer's weights and the prediction are float32 in all. "fp32" is never rounded
    to TF32 on a GPU. "tf32" is float32 whose matrix products and convolutions are, in training steps: several times as
    fast there, with three digits; the head, the norms and the filter bank stay exact, and so does validation."""

    torch_compile: bool = False
    """Compile each encoder layer that has attention with torch (inductor): fewer and larger kernels, for GPUs where the
    host launches them too slowly. The first steps take minutes; numbers change by rounding. Needs a C++ compiler; not
    under ZeRO-3."""

    deepspeed: str = "ds_configs/zero2.json"
    """DeepSpeed's JSON file; what this run file owns is "auto" or absent there. Where the working directory has none of
    that name, the one that comes with the package is read."""

    save_steps: CountOrZero = 0
    """Steps between checkpoints; 0 writes none within an epoch, only at its end."""

    save_epochs: Count = 1
    """Epochs between the checkpoints that are written at an epoch's end; the end of training always has one."""

    async_save: bool = True
    """Write checkpoints in a thread while training goes on: steps wait only for a copy of weights and optimizer state,
    which rank 0 keeps in the host's memory meanwhile. false: steps wait until the checkpoint is complete."""

    save_minutes: NotNegative = 0.0
    """Minutes without a checkpoint after which one is written, by rank 0's clock; 0 for no such limit."""

    save_total_limit: Count = 2
    """Newest checkpoints that are kept, beside the best model."""

    nonfinite_patience: Count = 20
    """Steps left out one after the other, for a loss or a gradient that is not finite, after which training stops: the
    model has diverged."""

    comm_timeout_s: Annotated[float, Between(1, 1_000_000)] = 600.0
    """A rank that waits longer than this for its peers gives up, and all end; no step may take longer either."""

    peak_tflops: NotNegative = 0.0
    """Most that a rank's device can do in ``precision``, in 10^12 floating-point operations per second (dense, without
    sparsity), of which ``throughput/mfu`` is the share that the model took; 0 for what is known of its GPU."""

    profile: tuple[Count, ...] = ()
    """First and last step, counted from 1, that rank 0 records with torch.profiler: [50, 55] writes the trace and a
    table of the step by part into the run folder's ``profile/``. Empty for none."""

    stop_grace_s: Annotated[float, Between(1, 1_000_000)] = 120.0
    """Longest time from a request to stop to a complete checkpoint, in seconds: a step (two where they take less than a
    second) and the saving must fit. Keep it below what the cluster gives between its signal and the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackingConfig:
    """Where the run is followed."""

    backend: Literal["mlflow", "none"] = "mlflow"
    """"none" leaves the history in the run folder alone."""

    tracking_uri: str = ""
    """Tracking server; "" for MLFLOW_TRACKING_URI, and without that the SQLite file ``mlflow.db`` where training
    starts."""

    experiment_name: str = "ccts"
    """MLflow's experiment that the run belongs to."""

    parent_run_name: str = ""
    """Name of the run that this one is listed under, made in the experiment if it is not there; "" for none."""

    registered_model_name: str = ""
    """Name under which the best model is registered after training, with alias "candidate"; "" does not register."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """What is told of validation and test splits beside CCC; nothing of it chooses the best model. Pearson's and
    Spearman's correlations of the test splits are tracked and stand in ``summary.json`` in any case, and
    ``launch/evaluate.py`` tells them of each split."""

    bins: tuple[float, ...] = ()
    """Edges on the corpus's own scale, rising: ratings and predictions are sorted into the classes between them, and
    the mean recall of the classes (unweighted recall) is told for each target. A rating on an edge belongs to the class
    farther from the middle of the scale: [2, 4] on 1..5 makes [1, 2], (2, 4) and [4, 5]. Empty for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """One run file."""

    run_name: str
    """Name of the run, for people."""

    output_dir: str
    """Folder for checkpoints and the best model; on storage that all ranks share."""

    seed: CountOrZero = 0
    """Of new weights, the order of utterances, and dropout."""

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
