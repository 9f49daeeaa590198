"""The tokenizer of a run's text branch."""

from collections.abc import Iterator
from pathlib import Path

from ccts_dist.config import RunConfig
from ccts_dist.distributed import Ranks, run_on_all_ranks
from ccts_dist.errors import ConfigError, FetchError, ShardError
from ccts_dist.loader.decode import read_transcript
from ccts_dist.model.text.tokenizer import PIECES, Tokenizer, load_tokenizer, train_tokenizer
from ccts_dist.shards.shard_set import ShardSet
from ccts_dist.train.checkpoints.checkpoint import checkpoints_folder
from ccts_dist.train.resilience.storage_errors import writing


def open_tokenizer(run: RunConfig, shard_set: ShardSet, folder: Path, ranks: Ranks) -> Tokenizer | None:
    """The pretrained text encoder's tokenizer, or one trained on the training transcripts; None without a text branch.

    Every rank must call it.

    Args:
        folder: the run's, in which rank 0 writes what it trains.

    Raises:
        ConfigError: on all ranks alike: no transcripts, or no tokenizer in the folder that the run file names.
        ShardError: likewise: a transcript is damaged, and damage stops the run.
    """
    text = run.model.text
    if text is None:
        return None
    if text.encoder == "scratch":
        run_on_all_ranks(lambda: _train(run, shard_set, folder) if ranks.is_first else None)
    source = str(folder / "tokenizer") if text.encoder == "scratch" else text.encoder
    return run_on_all_ranks(lambda: load_tokenizer(source, max_tokens=text.max_tokens))


def _train(run: RunConfig, shard_set: ShardSet, output: Path) -> None:
    """Train the SentencePiece model of an encoder from scratch on the training transcripts.

    One that is there is kept once the run has a checkpoint; before, it may be of a start that failed.
    """
    folder = output / "tokenizer"
    if (folder / PIECES).is_file() and any(checkpoints_folder(output).glob("step-*")):
        return
    transcripts = list(_transcripts(run, shard_set))
    if not any(transcripts):
        raise ConfigError(
            f"{shard_set.root}: no utterance of {list(run.data.train_splits)} has a transcript, and [model.text] needs "
            "them. Build the shards with transcripts, or leave [model.text] out."
        )
    assert run.model.text is not None
    with writing(folder):
        train_tokenizer(transcripts, run.model.text, folder)


def _transcripts(run: RunConfig, shard_set: ShardSet) -> Iterator[str]:
    """Transcripts of the training splits, without corrupt ones if the run skips them; its loader counts those."""
    for shard in shard_set.shards_of(run.data.train_splits):
        rows = shard_set.rows(shard.name)
        for row in range(len(rows)):
            try:
                yield read_transcript(shard_set, rows, row)
            except ShardError as error:
                if run.data.on_corrupt != "skip" or isinstance(error, FetchError):
                    raise
