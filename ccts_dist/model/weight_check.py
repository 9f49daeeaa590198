"""Check that a pretrained encoder's weights are those of its file.

transformers reports weights as newly initialised that were loaded, and the reverse: the weight norm of the positional
convolution has an old spelling (``weight_g``, ``weight_v``) and a new one. So the tensors themselves are compared.
"""

import json
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from ccts_dist.errors import ConfigError

_OPTIONAL = re.compile(r"(^|\.)(masked_spec_embed|position_ids|token_type_ids)$|^pooler\.")
"""Weights a sound file may lack: SpecAugment's filler, counters, and the pooler that is taken off."""


def check_not_quantized(config: PreTrainedConfig, place: str, branch: str) -> None:
    """Refuse an encoder whose weights are stored quantized: they cannot be read as float32, trained, or compared.

    Raises:
        ConfigError: names the method of quantization.
    """
    found = getattr(config, "quantization_config", None)
    if found is not None:
        method = found.get("quant_method") if isinstance(found, Mapping) else getattr(found, "quant_method", None)
        raise ConfigError(
            f"model.{branch}.encoder = {place!r} is quantized ({method or 'by an unknown method'}), and encoders are "
            "read in float32. Name the model that it was made from."
        )


def check_loaded(encoder: PreTrainedModel, place: str, *, reported_missing: Collection[str] = ()) -> None:
    """Refuse an encoder that does not hold what the weight files at ``place`` hold.

    Compares every tensor that has a counterpart by name. A tensor without one counts as missing if transformers reports
    so too, or if it belongs to the positional convolution, where transformers cannot be trusted.

    Args:
        place: folder, or hub name whose files are in the cache by now.
        reported_missing: what transformers states it did not find.

    Raises:
        ConfigError: names the first tensor that is missing or differs.
    """
    prefix = encoder.base_model_prefix
    with _open_weights(place, prefix) as stored:
        for name, tensor in encoder.state_dict().items():
            read = stored.get(_canonical(name, prefix))
            if read is None:
                if _OPTIONAL.search(name) is None and ("pos_conv_embed" in name or name in reported_missing):
                    raise _wrong(encoder, place, name, "is not in its weight file")
            elif not torch.equal(read().to(tensor.dtype), tensor.cpu()):
                raise _wrong(encoder, place, name, "is not what its weight file holds")


def _wrong(encoder: PreTrainedModel, place: str, name: str, what: str) -> ConfigError:
    return ConfigError(
        f"{place}: weight {name} of the {encoder.config.model_type} encoder {what}, so it would start from random. "
        "Use a folder or a model of the hub that holds the whole encoder."
    )


def _canonical(name: str, prefix: str) -> str:
    # A model with a head on top spells its encoder "hubert.encoder...", a bare one "encoder...".
    name = name.removeprefix(f"{prefix}.")
    name = name.replace(".parametrizations.weight.original0", ".weight_g")
    name = name.replace(".parametrizations.weight.original1", ".weight_v")
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))


@contextmanager
def _open_weights(place: str, prefix: str) -> Iterator[dict[str, Callable[[], Tensor]]]:
    """Readers of the tensors at ``place`` by canonical name; what transformers would load, in the order it looks."""
    readers: dict[str, Callable[[], Tensor]] = {}
    with ExitStack() as stack:
        for path in _weight_files(place):
            if path.suffix == ".safetensors":
                file = stack.enter_context(safe_open(path, framework="pt"))
                found = {key: (lambda key=key, file=file: file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118
            else:
                # weights_only: an unpickler that knows tensors and nothing else, as transformers itself uses.
                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
                found = {key: (lambda tensor=tensor: tensor) for key, tensor in tensors.items()}
            readers.update({_canonical(key, prefix): read for key, read in found.items()})
        yield readers


def _weight_files(place: str) -> list[Path]:
    for name in (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    ):
        path = _find(place, name)
        if path is not None and path.suffix == ".json":
            shards = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
            return [found for shard in shards if (found := _find(place, shard)) is not None]
        if path is not None:
            return [path]
    return []


def _find(place: str, name: str) -> Path | None:
    found = cached_file(
        place,
        name,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        _raise_exceptions_for_gated_repo=False,
    )
    return None if found is None else Path(found)
