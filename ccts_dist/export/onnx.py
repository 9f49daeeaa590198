"""A student as one ONNX file: padded audio and lengths in, ratings out, any batch and any length."""

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ccts_dist.errors import ConfigError
from ccts_dist.export.answers import Answers, Exported, scale_of
from ccts_dist.model import LoadedModel
from ccts_dist.model.branches import SpeechBranch
from ccts_dist.model.pooling import GruPooling, PerTargetPooling
from ccts_dist.model.speech.feature_extractor_branch import ExtractedBranch

FILE = "model.onnx"

_OPSET = 18

_README = """\
# A speech emotion model in ONNX

Inputs: `audio`, float32 [batch, samples], 16 kHz mono on -1..1, rows padded with anything; `num_samples`, int64
[batch], the real samples of each row. Outputs: `rating` [batch, targets] on the scale in `export.json`, which also
names the targets; `embedding`; and with categories `probability`. A row is answered alike alone and in any batch.

```python
import numpy as np, onnxruntime, soundfile

samples, rate = soundfile.read("a.wav", dtype="float32")  # 16 kHz, mono
session = onnxruntime.InferenceSession("model.onnx")
rating, *_ = session.run(["rating"], {"audio": samples[None], "num_samples": np.array([len(samples)])})
```

Other than `ccts_dist` it does not resample, mix channels, round to 16 bit or refuse bad audio.
"""


class _GruForTracing(nn.Module):
    """``GruPooling`` without a number of rows that a trace would keep as that of its example."""

    def __init__(self, pooling: GruPooling) -> None:
        super().__init__()
        self.size, self.gru = pooling.size, pooling.gru

    def forward(self, frames: Tensor, num_frames: Tensor) -> Tensor:
        outputs, _ = self.gru(frames)
        last = num_frames.clamp(1, frames.shape[1]) - 1
        return outputs.gather(1, last[:, None, None].expand(-1, 1, outputs.shape[2]))[:, 0]


def _for_tracing(pooling: Any) -> Any:
    if isinstance(pooling, PerTargetPooling):
        return PerTargetPooling([_for_tracing(one) for one in pooling.poolings])
    return _GruForTracing(pooling) if isinstance(pooling, GruPooling) else pooling


class _Answering(nn.Module):
    """The model as it is traced: ratings on the corpus's scale, and no case that depends on the audio's length."""

    def __init__(self, loaded: LoadedModel, branches: list[SpeechBranch]) -> None:
        super().__init__()
        self.model = loaded.model
        # Rows shorter than a first frame are filled up by the branch if the batch is short; here always, since a
        # trace knows no "if". What is padded is not processed.
        self.padding = max(
            branch.front_end.samples_for(getattr(branch.encoder.config, "squeeze_factor", 1)) for branch in branches
        )
        factor, offset = scale_of(loaded)
        self.register_buffer("factor", factor)
        self.register_buffer("offset", offset)

    def forward(
        self, audio: Float[Tensor, "batch samples"], num_samples: Int64[Tensor, " batch"]
    ) -> tuple[Tensor, ...]:
        output = self.model(nn.functional.pad(audio, (0, self.padding)), num_samples)
        rating = output.prediction * self.factor + self.offset
        shares = () if output.categories is None else (output.categories.softmax(dim=1),)
        return (rating, output.embedding, *shares)


def write_onnx(loaded: LoadedModel, folder: Path) -> Exported:
    """Write ``model.onnx``, and open it again.

    Raises:
        ConfigError: onnx or onnxruntime is not installed, or a filter bank, whose spectrum does not export.
    """
    for package in ("onnx", "onnxruntime"):
        if find_spec(package) is None:
            raise ConfigError(f"--format onnx needs the package {package}. Install it: pip install ccts-dist[onnx]")
    found = [loaded.model.speech, *loaded.model.extra_speech]
    for branch in found:
        if not isinstance(branch, SpeechBranch):
            what = "a filterbank encoder has a Fourier transform"
            if isinstance(branch, ExtractedBranch):
                what = f"a {branch.encoder.config.model_type} encoder takes input from a feature extractor"
            raise ConfigError(f"--format onnx: {what}, which torch does not export. Use ccts_dist.")
    branches = [cast(SpeechBranch, branch) for branch in found]
    for branch in branches:
        branch.encoder.set_attn_implementation("eager")  # type: ignore[operator] - a PreTrainedModel
        branch.pooling = _for_tracing(branch.pooling)
    names = ["rating", "embedding"] + (["probability"] if loaded.config.categories else [])
    _trace(_Answering(loaded, branches).eval(), folder / FILE, names)
    (folder / "README.md").write_text(_README, encoding="utf-8")
    return _open(folder / FILE, names)


def _trace(model: nn.Module, path: Path, names: list[str]) -> None:
    audio, num_samples = 0.1 * torch.randn(3, 8_000), torch.tensor([8_000, 6_000, 4_000])
    axes: dict[str, dict[int, str]] = {name: {0: "batch"} for name in ("num_samples", *names)}
    axes["audio"] = {0: "batch", 1: "samples"}
    with torch.no_grad(), warnings.catch_warnings():
        # Of the tracer, that it is no longer the default, and that it keeps what it takes for constant: which is what
        # the comparison is for. The newer exporter cannot take autocast, nor this model's cases.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (audio, num_samples),
            str(path),
            dynamo=False,
            opset_version=_OPSET,
            input_names=["audio", "num_samples"],
            output_names=names,
            dynamic_axes=axes,
        )


def _open(path: Path, names: list[str]) -> Exported:
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(audio: Tensor, num_samples: Tensor) -> Answers:
        found = session.run(names, {"audio": audio.numpy(), "num_samples": num_samples.numpy()})
        return {name: torch.from_numpy(values) for name, values in zip(names, found, strict=True)}

    return run
