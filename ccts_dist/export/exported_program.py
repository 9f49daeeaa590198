"""Emotion of a recording, with torch, transformers and safetensors: ``python emotion.py a.wav`` in this folder.

The encoder is a plain transformers model (``AutoModel.from_pretrained(folder)``); ``head.safetensors`` and
``head.json`` make ratings of its frames. One recording at a time: some encoders process padding. transformers' own
classes with a head refuse the folder: they would draw another head at random.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn import functional as F
from transformers import AutoFeatureExtractor, AutoModel


class Emotion:
    """The model in ``folder``."""

    def __init__(self, folder):
        folder = Path(folder)
        self.facts = json.loads((folder / "head.json").read_text(encoding="utf-8"))
        self.head = load_file(folder / "head.safetensors")
        self.extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=False)
        self.encoder = AutoModel.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()

    @torch.inference_mode()
    def answer(self, samples):
        """Of samples on -1..1 at 16 kHz: "rating" of each target, "embedding", and "probability" of each category."""
        given = self.extractor(samples, sampling_rate=16_000, return_tensors="pt").input_values
        given = F.pad(given, (0, max(0, self.facts["fewest_samples"] - given.shape[1])))
        if "mixture" in self.head:
            output = self.encoder(given, output_hidden_states=True)
            states = (*output.hidden_states[:-1], output.last_hidden_state)
            frames = torch.einsum("s,sfh->fh", self.head["mixture"], torch.cat(states))
        else:
            frames = self.encoder(given).last_hidden_state[0]
        embedding = self._linear("embedding", self._pool(frames))
        rating = self._ratings(embedding) * torch.tensor(self.facts["factor"]) + torch.tensor(self.facts["offset"])
        answer = {"rating": rating, "embedding": embedding}
        if self.facts["categories"]:
            answer["probability"] = self._linear("categories", embedding).softmax(dim=0)
        return answer

    def _linear(self, name, values):
        return F.linear(values, self.head[f"{name}.weight"], self.head.get(f"{name}.bias"))

    def _ratings(self, embedding):
        """On 0..1: one linear layer, or one small head for each target."""
        if "prediction.weight" in self.head:
            return self._linear("prediction", embedding)
        heads = [f"prediction.heads.{number}" for number in range(len(self.facts["targets"]))]
        return torch.cat([self._linear(f"{head}.2", self._linear(f"{head}.0", embedding).relu()) for head in heads])

    def _pool(self, frames):
        """Of [frames features], one vector."""
        kind = self.facts["pooling"]
        if kind == "gru":
            gru = torch.nn.GRU(frames.shape[1], self.facts["gru_hidden"], self.facts["gru_layers"], batch_first=True)
            gru.load_state_dict(
                {key.removeprefix("pooling.gru."): part for key, part in self.head.items() if ".gru." in key}
            )
            return gru(frames[None])[0][0, -1]
        if kind in ("mean", "statistics"):
            weights = torch.full((len(frames), 1), 1 / len(frames))
        elif kind == "self-attention":
            weights = (self._linear("pooling.query", frames) * frames.shape[1] ** -0.5).softmax(dim=0)
        else:
            hidden = torch.tanh(self._linear("pooling.hidden", frames))
            weights = self._linear("pooling.score", hidden).softmax(dim=0)
        mean = (weights * frames).sum(dim=0)
        if kind in ("mean", "self-attention"):
            return mean
        std = ((weights * (frames - mean).square()).sum(dim=0) + self.facts["variance_floor"]).sqrt()
        return torch.cat([mean, std])


if __name__ == "__main__":
    import soundfile
    from transformers import logging

    logging.set_verbosity_error()  # of weights that are there so that other heads refuse the folder
    model = Emotion(Path(__file__).parent)
    for file in sys.argv[1:]:
        wave, rate = soundfile.read(file, dtype="float32")
        if rate != 16_000 or wave.ndim > 1:
            sys.exit(f"{file}: has {rate} Hz and shape {wave.shape}, must be 16000 Hz mono. Convert it.")
        print(file, dict(zip(model.facts["targets"], model.answer(wave)["rating"].tolist(), strict=True)))
