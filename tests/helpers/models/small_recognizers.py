"""Speech recognition models of a few thousand random weights, as folders that transformers loads like any other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from jaxtyping import Float32
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel as ByteLevelSplit
from transformers import (
    AutoConfig,
    AutoModelForCTC,
    GenerationConfig,
    MoonshineConfig,
    MoonshineForConditionalGeneration,
    PreTrainedTokenizerFast,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from ccts_dist.asr.models import quiet_transformers

SYMBOLS = ("<pad>", "<s>", "</s>", "<unk>", "|", "a", "e", "l", "o", "h", "s", "t")
"""Of the CTC models; ``<pad>`` is the blank, ``|`` the space between words."""

WHISPER_WINDOW_S = 2
"""What the small Whisper reads at once."""

_SPECIAL = ("<|startoftranscript|>", "<|en|>", "<|de|>", "<|translate|>", "<|transcribe|>", "<|notimestamps|>")


def save_ctc(folder: Path, *, kind: str = "wav2vec2", norm: str = "layer", seed: int = 0, **changes: Any) -> Path:
    """A CTC model of any of the wav2vec family; its logits are spread so that no two symbols are near a tie."""
    settings = {
        "vocab_size": len(SYMBOLS),
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": [8, 8],
        "conv_kernel": [40, 20],
        "conv_stride": [20, 16],
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "conv_pos_kernel_size": 5,
        "feat_extract_norm": norm,
        "do_stable_layer_norm": norm == "layer",
        "pad_token_id": 0,
    }
    config = AutoConfig.for_model(kind, **(settings | changes))
    torch.manual_seed(seed)
    model = AutoModelForCTC.from_config(config)
    with torch.no_grad():
        model.lm_head.weight.normal_(0, 1)
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({symbol: number for number, symbol in enumerate(SYMBOLS)}))
    with quiet_transformers():
        model.save_pretrained(folder)
        Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
        extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=norm == "layer")
        extractor.save_pretrained(folder)
    return folder


def save_whisper(folder: Path, *, many_languages: bool = True, seed: int = 0, max_length: int | None = 12) -> Path:
    """A Whisper that reads 2 s at once and writes bytes."""
    letters = sorted(ByteLevelSplit.alphabet())
    tokenizer = WhisperTokenizer(vocab={letter: number for number, letter in enumerate(letters)}, merges=[])
    tokenizer.add_special_tokens({"pad_token": "<|endoftext|>", "extra_special_tokens": list(_SPECIAL)})
    number = {token: tokenizer.convert_tokens_to_ids(token) for token in ("<|endoftext|>", *_SPECIAL)}
    end, start = number["<|endoftext|>"], number["<|startoftranscript|>"]
    config = WhisperConfig(
        vocab_size=len(tokenizer),
        num_mel_bins=8,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=50 * WHISPER_WINDOW_S,
        max_target_positions=32,
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        init_std=0.5,
    )
    torch.manual_seed(seed)
    model = WhisperForConditionalGeneration(config)
    with torch.no_grad():
        model.model.decoder.embed_tokens.weight[end].normal_(0, 1.0)  # zero else; some texts end by themselves
    model.generation_config = GenerationConfig(
        pad_token_id=end,
        bos_token_id=end,
        eos_token_id=end,
        decoder_start_token_id=start,
        max_length=max_length,
        no_timestamps_token_id=number["<|notimestamps|>"],
        begin_suppress_tokens=[end],
        suppress_tokens=[number[token] for token in _SPECIAL],
        is_multilingual=many_languages,
        **({"lang_to_id": {one: number[one] for one in ("<|en|>", "<|de|>")}} if many_languages else {}),
        **(
            {"task_to_id": {one: number[f"<|{one}|>"] for one in ("translate", "transcribe")}} if many_languages else {}
        ),
    )
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        WhisperFeatureExtractor(feature_size=8, chunk_length=WHISPER_WINDOW_S).save_pretrained(folder)
    return folder


def save_moonshine(folder: Path, *, seed: int = 0) -> Path:
    """A Moonshine that writes bytes."""
    vocabulary = {letter: number for number, letter in enumerate(["<unk>", "<s>", "</s>", *ByteLevelSplit.alphabet()])}
    bytes_of_text = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    bytes_of_text.decoder = ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bytes_of_text, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    config = MoonshineConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        encoder_num_hidden_layers=1,
        decoder_num_hidden_layers=1,
        encoder_num_attention_heads=2,
        decoder_num_attention_heads=2,
        max_position_embeddings=24,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        decoder_start_token_id=1,
    )
    torch.manual_seed(seed)
    model = MoonshineForConditionalGeneration(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(0, 0.7)
    with quiet_transformers():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        Wav2Vec2FeatureExtractor(do_normalize=False, return_attention_mask=True).save_pretrained(folder)
    return folder


def chirps(num_samples: int, *, seed: int) -> Float32[np.ndarray, " samples"]:
    """A wave whose pitch and loudness wander, so that a model states different things along it."""
    draw = np.random.default_rng(seed)
    knots = max(2, num_samples // 1_600)
    at = np.linspace(0, 1, num_samples)
    pitch = np.interp(at, np.linspace(0, 1, knots), draw.uniform(100, 3_000, knots))
    loudness = np.interp(at, np.linspace(0, 1, knots), draw.uniform(0, 0.5, knots))
    return (loudness * np.sin(2 * np.pi * np.cumsum(pitch) / 16_000) + draw.normal(0, 0.01, num_samples)).astype(
        np.float32
    )


def write_podcast(root: Path, lengths: list[int], *, spoken: tuple[int, ...] = ()) -> Path:
    """A corpus in MSP-Podcast's layout of waves of so many samples; the numbers in ``spoken`` have a transcript."""
    rows = ["FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set"]
    (root / "Audios").mkdir(parents=True)
    (root / "Labels").mkdir()
    (root / "Transcripts").mkdir()
    for number, length in enumerate(lengths):
        name = f"MSP-PODCAST_{number:04}"
        soundfile.write(root / "Audios" / f"{name}.wav", chirps(length, seed=number), 16_000, subtype="PCM_16")
        rows.append(f"{name}.wav,N,4,4,4,{number % 3},Female,Train")
        if number in spoken:
            (root / "Transcripts" / f"{name}.txt").write_text("people wrote this")
    (root / "Labels" / "labels_consensus.csv").write_text("\n".join(rows) + "\n")
    return root
