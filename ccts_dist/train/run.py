"""A run from its file to its result, in order."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import nan
from pathlib import Path
from typing import Any

import torch

from ccts_dist.config import RunConfig
from ccts_dist.config.credentials import public_toml, public_tree
from ccts_dist.distributed import (
    Ranks,
    agree_on_nodes,
    barrier,
    best_device,
    broadcast_object,
    gather_objects,
    limit_waiting,
    rank_facts,
    run_on_all_ranks,
)
from ccts_dist.errors import ConfigError, OutputError, StopRequested
from ccts_dist.files.strict_json import json_text
from ccts_dist.model.emotion import parameter_groups
from ccts_dist.progress import log
from ccts_dist.tracking import NoTracking, Tracking, open_tracking
from ccts_dist.tracking.environment import installed_packages
from ccts_dist.train.checkpoints.checkpoint import TrainState, read_manifest, read_state
from ccts_dist.train.context import TrainContext
from ccts_dist.train.curves import draw_training
from ccts_dist.train.description import describe_run
from ccts_dist.train.experiment import Experiment, check_experiment, open_experiment
from ccts_dist.train.memory.forecast import Forecast, memory_of_a_gpu
from ccts_dist.train.memory.out_of_memory import MemoryWords, is_out_of_memory
from ccts_dist.train.memory.parts import HOST_FLOOR
from ccts_dist.train.optim import build_optimizer, build_schedule, describe_groups, rates_by_group
from ccts_dist.train.resilience.stop_requests import STOP_FILE
from ccts_dist.train.resilience.watchdog import Watchdog, stopped_words
from ccts_dist.train.resolved import resolved_values
from ccts_dist.train.run_folder import DS_CONFIG, RunFolder
from ccts_dist.train.speed.flops import flops_of
from ccts_dist.train.speed.scaling import scaling_lines
from ccts_dist.train.speed.step_profile import check_profiled_steps
from ccts_dist.train.steps.rounds import Rounds, memory_of_a_rank
from ccts_dist.train.steps.trainable_loss import label_warnings
from ccts_dist.train.trainer import Trainer, TrainResult
from ccts_dist.train.zero.engine import Engine


def check(
    run: RunConfig, *, num_ranks: int | None, gpu_memory_gb: float | None = None, assume: Sequence[str] = ()
) -> int:
    """Print what the run would do on ``num_ranks`` ranks; 0 when nothing is wrong, else raises what is.

    Args:
        num_ranks: None for as many as the launcher has started.
        gpu_memory_gb: GB (10^9 bytes) of each GPU, which the run must fit; None where that is not asked.
        assume: figures of the GPUs for the cost model, as ``read_assumptions`` takes them; it is shown where these or
            ``num_ranks`` are given.
    """
    check_precision(run, best_device(Ranks()) if num_ranks is None else torch.device("cpu"))
    if rank_facts().local_rank:
        return 0  # under the launcher one rank of each host checks: the weights need not be in memory for each
    with check_experiment(run, rank_facts().num_ranks if num_ranks is None else num_ranks) as experiment:
        check_profiled_steps(run.train.profile, experiment.total_steps)
        forecast = Forecast(experiment, on_gpu=gpu_memory_gb is not None or torch.cuda.is_available())
        given = None if gpu_memory_gb is None else memory_of_a_gpu(gpu_memory_gb)
        forecast.decide_rounds(given or memory_of_a_rank(experiment.ranks, on_gpu=torch.cuda.is_available()))
        if rank_facts().is_first:
            for line in (*_described(experiment), *forecast.lines()):
                print(line)
            if assume or num_ranks is not None:
                print("\n".join(scaling_lines(experiment, assume, experiment.ranks.num_ranks)))
        verdict = "" if gpu_memory_gb is None else f": {forecast.check_fits(gpu_memory_gb)}"
    if rank_facts().is_first:
        print(f"check passed{verdict}")
    return 0


def train(run: RunConfig, ranks: Ranks, *, resume: str) -> TrainResult:
    """Train to the end; every rank calls it inside a process group.

    Args:
        run: the resolved run file.
        ranks: this process's.
        resume: "" for a new run, "auto", or a checkpoint's folder.

    Raises:
        StopRequested: on all ranks alike, once what was trained is in a complete checkpoint.
        CctsError: on all ranks alike.

    A rank that loses its peers does not return: see ``Watchdog``.
    """
    device = best_device(ranks)
    on_gpu = device.type == "cuda"
    with Watchdog(
        ranks, timeout_s=run.train.comm_timeout_s, stop_grace_s=run.train.stop_grace_s, on_gpu=on_gpu
    ) as watchdog:
        try:
            run_on_all_ranks(lambda: check_precision(run, device))
            with RunFolder(run, ranks := agree_on_nodes(ranks), resume=bool(resume)) as folder:
                watchdog.follow(folder.path)
                with _stopping_in(folder, ranks, watchdog):
                    return _train_in(folder, run, ranks, resume, watchdog)
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                raise MemoryWords(run, ranks).error(watchdog.place, error) from error
            lost = watchdog.explain(error) if isinstance(error, RuntimeError) else None
            if lost is None:
                raise
            raise lost from error


def check_precision(run: RunConfig, device: torch.device) -> None:
    """Refuse bfloat16 on a GPU that has none: torch would emulate it, many times slower.

    Raises:
        ConfigError: it does not have it, and what to set.
    """
    if run.train.precision != "bf16" or device.type != "cuda":
        return
    if not torch.cuda.is_bf16_supported(including_emulation=False):
        raise ConfigError(
            f'train.precision = "bf16": {torch.cuda.get_device_name(device)} does not compute in bfloat16 (NVIDIA has '
            'it from the A100 and RTX 30 on). Set train.precision = "fp32".'
        )


@contextmanager
def _stopping_in(folder: RunFolder, ranks: Ranks, watchdog: Watchdog) -> Iterator[None]:
    """State how to go on when a stop was asked for: by then what was trained is in a complete checkpoint."""
    try:
        yield
    except StopRequested as request:
        watchdog.saved()
        if ranks.is_first:
            _remove(folder.path / STOP_FILE)
        barrier()  # the first rank that leaves has its peers ended by the launcher
        raise StopRequested(stopped_words(str(request), folder.path)) from request


def _remove(request: Path) -> None:
    """Remove a file that asked the run to stop; the checkpoint is safe whether or not that can be done."""
    try:
        request.unlink(missing_ok=True)
    except OSError as error:
        log(f"{request} cannot be removed ({error.strerror}). Remove it, or the next start stops at once.")


def _train_in(folder: RunFolder, run: RunConfig, ranks: Ranks, resume: str, watchdog: Watchdog) -> TrainResult:
    """The training in order: data and model, memory, engine, tracker, steps."""
    watchdog.at("setting up")
    device = best_device(ranks)
    if device.type == "cpu":
        log(f"{'ranks':24} {describe_cpu_ranks(ranks.num_ranks)}", visible=ranks.is_first)
    experiment = open_experiment(run, ranks)
    run = experiment.run
    run_on_all_ranks(watchdog.check)
    check_profiled_steps(run.train.profile, experiment.total_steps)

    # The weights are in the model before the engine is made: see Engine.
    optimizer = build_optimizer(parameter_groups(experiment.model), run.optim, fused=torch.cuda.is_available())
    learning_rates = rates_by_group(optimizer)
    schedule = build_schedule(optimizer, run.optim, experiment.total_steps)
    log(f"{'learning rates':24} {describe_groups(optimizer)}", visible=ranks.is_first)

    point = folder.find_resume_point(resume, run, experiment.plan_digest, log) if resume else None
    state = TrainState() if point is None else read_state(point)
    is_tracked = ranks.is_first and run.tracking.backend != "none"
    flops = run_on_all_ranks(lambda: flops_of(experiment) if is_tracked else None)
    forecast, rounds = _decide_rounds(experiment, state, point)
    values = _resolved_values(experiment, rounds.words, learning_rates, device)

    engine = Engine(experiment.model, optimizer, run, ds_config=experiment.ds_config, ranks=ranks, resume_from=point)
    limit_waiting(run.train.comm_timeout_s)
    run_on_all_ranks(watchdog.check)
    if tries_largest(engine.device):
        try_largest(engine, experiment, watchdog)
    if point is not None:
        schedule.restore(state.schedule)
        log(f"resuming from {point.name}: epoch {state.epoch + 1}, step {state.step}", visible=ranks.is_first)

    folder.write_file("run.toml", public_toml(run))
    folder.write_file(DS_CONFIG, json_text(experiment.ds_config, indent=1))
    tracking = run_on_all_ranks(lambda: _open_tracking(experiment, folder, values, resume=bool(resume)))
    if forecast is not None:
        tracking.metrics({"system/estimated_memory_gb": forecast.peak_bytes / 1e9}, state.step)

    context = TrainContext(
        experiment=experiment,
        engine=engine,
        schedule=schedule,
        folder=folder,
        tracking=tracking,
        state=state,
        watchdog=watchdog,
        graph_samples=rounds.graph_samples,
        flops=None if flops is None else flops.training,
        resolved=values,
    )
    result = _train_to_end(context, optimizer, is_tracked=is_tracked)
    if forecast is not None:
        for line in (*result_lines(result), _memory_line(result, forecast)):
            log(line)
    return result


def _decide_rounds(experiment: Experiment, state: TrainState, point: Path | None) -> tuple[Forecast | None, Rounds]:
    """The memory forecast, on rank 0 alone, and with it how the forward passes of a step are taken.

    A checkpoint of as many ranks goes on as it began: ``state`` takes and gives what is recorded of it.
    """
    ranks = experiment.ranks
    recorded = state.graph_samples if point is not None and read_manifest(point).num_ranks == ranks.num_ranks else None
    rank_bytes = min(gather_objects(memory_of_a_rank(ranks, on_gpu=torch.cuda.is_available())))
    forecast = run_on_all_ranks(lambda: _introduce(experiment, rank_bytes, recorded) if ranks.is_first else None)
    rounds = broadcast_object(None if forecast is None else forecast.rounds)
    state.graph_samples = rounds.recorded
    return forecast, rounds


def _resolved_values(
    experiment: Experiment, forward_rounds: str, learning_rates: Mapping[str, float], device: torch.device
) -> dict[str, Any]:
    return resolved_values(
        experiment.run,
        experiment.model,
        cuts=experiment.loader.cuts(),
        largest_batch=experiment.loader.plan.largest_batch,
        vocabulary_size=None if experiment.tokenizer is None else experiment.tokenizer.vocabulary_size,
        total_steps=experiment.total_steps,
        forward_rounds=forward_rounds,
        learning_rates=learning_rates,
        device=device,
        ds_config=experiment.ds_config,
        num_ranks=experiment.ranks.num_ranks,
        condition=experiment.condition,
    )


def _train_to_end(context: TrainContext, optimizer: torch.optim.Optimizer, *, is_tracked: bool) -> TrainResult:
    """The trained run; its tracker is closed with how it ended, whatever happens."""
    status = "FAILED"
    try:
        result = Trainer(context, optimizer).train()
        if is_tracked:
            _track_outcome(context.tracking, context.folder)
            context.tracking.description(describe_run(context.experiment, result.test, _uar_of(result.test_scores)))
        status = "FINISHED"
        return result
    except StopRequested:
        status = "KILLED"
        raise
    finally:
        context.watchdog.at("sending to the tracking server")
        context.tracking.close(status)


def tries_largest(device: torch.device) -> bool:
    """True if the largest micro-batch is tried before the first step: on GPUs, where memory is what is short."""
    return device.type == "cuda"


def try_largest(engine: Engine, experiment: Experiment, watchdog: Watchdog) -> None:
    """Take the forward and backward pass of the plan's largest micro-batch before any step, and change nothing.

    Raises:
        OutOfMemoryError: on this rank alone: it does not fit.
        CctsError: on all ranks alike: it cannot be read.
    """
    watchdog.at("trying the largest micro-batch")
    batch = run_on_all_ranks(experiment.loader.read_largest)
    engine.train(True)
    engine.try_out(batch.to(engine.device))


def result_lines(result: TrainResult) -> list[str]:
    """How a training ended, in words: steps, best epoch, and the scores on each test split."""
    test = _test_in_words(result.test, result.test_scores)
    return [
        f"done: {result.steps} steps, best epoch {result.best_epoch}{test and '; test '}{test}",
        *(f"  {split}: {_test_in_words(one.get('ccc', {}), one)}" for split, one in result.test_by_split.items()),
    ]


def _memory_line(result: TrainResult, forecast: Forecast) -> str:
    reserved = result.peak_memory_reserved_gb
    reserving = "" if reserved is None else f" ({reserved:.2f} GB reserved)"
    bound = "" if forecast.estimate.on_gpu else f" or more: {HOST_FLOOR}"
    estimated = f"{forecast.peak_bytes / 1e9:.2f} GB{bound}"
    return f"most memory of a rank: {result.peak_memory_gb:.2f} GB{reserving}; estimated: {estimated}"


def _test_in_words(ccc: Mapping[str, float | None], scores: Mapping[str, Any]) -> str:
    """The CCC of each target and the categories' unweighted accuracy; "" without test splits."""
    parts = []
    if ccc:
        parts.append("CCC " + "  ".join(f"{target} {_ccc_in_words(one)}" for target, one in ccc.items()))
    if "categories" in scores:
        uar = _uar_of(scores)
        parts.append(f"unweighted accuracy {nan if uar is None else uar:.3f}")
    return "; ".join(parts)


def _uar_of(scores: Mapping[str, Any]) -> float | None:
    return scores.get("categories", {}).get("unweighted_accuracy")


def _ccc_in_words(ccc: float | None) -> str:
    return "without labels" if ccc is None else f"{ccc:.3f}"


def _track_outcome(tracking: Tracking, folder: RunFolder) -> None:
    tracking.artifact(folder.path / "summary.json")
    try:
        tracking.artifact(draw_training(folder.path), "plots")
    except OutputError as error:  # the model is there, and a picture is no reason to lose it
        log(f"no curves are drawn: {error}")


def _introduce(experiment: Experiment, rank_bytes: int, recorded: int | None) -> Forecast:
    """Report every number that follows from the run file, and what a rank will need of the memory it has."""
    forecast = Forecast(experiment, on_gpu=torch.cuda.is_available())
    forecast.decide_rounds(rank_bytes, recorded)
    for line in (*_described(experiment), *forecast.lines()):
        log(line)
    return forecast


def _described(experiment: Experiment) -> list[str]:
    numbers = [f"{name:24} {value}" for name, value in experiment.derived().items()]
    return [*numbers, *label_warnings(experiment.run, experiment.shard_set)]


def describe_cpu_ranks(num_ranks: int) -> str:
    """The number of ranks where no GPU is found, and how to choose another.

    ``deepspeed`` without ``--num_gpus`` then starts one rank per NUMA node, on most machines one in all.
    """
    more = "two" if num_ranks == 1 else "N"
    option = "2" if num_ranks == 1 else "N"
    return (
        f"{num_ranks} on the CPU, since no GPU is found; for {more}: deepspeed --num_gpus {option} launch/train.py ..."
    )


def _open_tracking(experiment: Experiment, folder: RunFolder, values: Mapping[str, Any], *, resume: bool) -> Tracking:
    if not experiment.ranks.is_first:
        return NoTracking()
    run = experiment.run
    tracking = open_tracking(run.tracking, run_name=run.run_name, output=folder.path, resume=resume)
    tracking.description(describe_run(experiment))
    tracking.params(public_tree(run) | {"num_ranks": experiment.ranks.num_ranks, "resolved": values})
    tracking.artifact(folder.path / "run.toml")
    tracking.artifact(folder.path / DS_CONFIG)
    tracking.text(installed_packages(), "packages.txt")
    splits = experiment.shard_set.manifest.splits
    used = (*run.data.train_splits, *run.data.valid_splits, *run.data.test_splits)
    tracking.inputs(
        shard_set_digest=experiment.shard_set.digest,
        splits={name: splits[name].num_utterances for name in used},
        cache_digest=experiment.teacher.digest if experiment.teacher else "",
        condition=experiment.teacher.condition if experiment.teacher else None,
        corpus=experiment.shard_set.manifest.title,
        shards=run.data.shards,
        cache=run.data.teacher_cache,
    )
    return tracking
