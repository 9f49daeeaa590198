"""The README.md of an exported folder: a model card, and how to use the folder with transformers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ccts_dist.export.folder import labels_of
from ccts_dist.model import LoadedModel
from ccts_dist.records import SAMPLE_RATE_HZ
from ccts_dist.registry.hub import HUB_SCHEME
from ccts_dist.registry.lineage import lineage_of
from ccts_dist.registry.model_card import card_of

_PIPELINE = """\
## How to use it

```python
from transformers import pipeline

emotion = pipeline("audio-classification", model={place!r}{trust})
emotion({{"raw": samples, "sampling_rate": {rate_hz}}})  # or a file, where ffmpeg is installed
```

Recordings are mono. {answer}{softmax}
"""

_OWN_CODE = (
    "\n\n`trust_remote_code=True` runs modeling_ccts.py, which is part of this model and needs torch and transformers. "
    "Read it first, and name a commit by `revision=` where the model comes from the hub."
)
_OWN_CLASS = (
    "\n\nThis is a class of transformers itself. Predict recordings one at a time: it may let the padding of a batch "
    "into its frames, and ratings are then off by points."
)
_CCTS = """
With ccts-dist, which runs no code of the model and checks its digests: `ccts predict --model {place} a.wav`.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardSettings:
    """Facts of a model's card that its folder does not have."""

    name: str
    """Name of the model."""

    place: str
    """The ``model`` that users name: "FOLDER", or a name on the hub."""

    license: str = ""
    """Identifier that the hub knows; "" where the corpus and the encoder decide."""

    language: tuple[str, ...] = ()
    """Codes such as "en"."""


def exported_card(
    loaded: LoadedModel, settings: CardSettings, *, own_class: bool, metrics: Mapping[str, Any] | None
) -> str:
    """The model card of a folder that transformers opens.

    Args:
        own_class: the model is of a class of transformers, without code of its own.
        metrics: of the model's run; None if unknown.
    """
    labels = list(labels_of(loaded).values())
    if loaded.config.targets:
        answer = f"The answer has {', '.join(labels)}, highest number first: ratings on the corpus's scale"
        answer += ", and p(...) the probabilities of the categories." if loaded.config.categories else "."
        softmax = (
            ' They are no probabilities: versions of transformers before 5 need `function_to_apply="none"`.'
            if own_class
            else ""
        )
    else:
        answer = f"The answer has the probabilities of {', '.join(labels)}, highest first."
        softmax = " `top_k=None` gives all of them." if own_class and len(labels) > 5 else ""
    usage = _PIPELINE.format(
        place=settings.place,
        trust="" if own_class else ", trust_remote_code=True",
        rate_hz=SAMPLE_RATE_HZ,
        answer=answer,
        softmax=softmax + (_OWN_CLASS if own_class else _OWN_CODE),
    )
    if not own_class:
        usage += _CCTS.format(place=settings.place if settings.place == "FOLDER" else f"{HUB_SCHEME}{settings.place}")
    return card_of(
        loaded,
        name=settings.name,
        lineage=lineage_of(loaded, "", str(loaded.extra.get("run", "")), {}),
        metrics=metrics,
        usage=usage,
        library="transformers",
        tags=() if own_class else ("custom_code",),
        license=settings.license,
        language=settings.language,
    )
