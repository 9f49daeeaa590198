"""Who speaks in the spoken demo corpus: variants of eSpeak NG, no speaker in two splits."""

from dataclasses import dataclass

from ccts_dist.process.seeds import derive_seed

_ACCENT = "gmw/en-US"
# Voices that are byte-equal from process to process (see espeak.py), understandable, and clip at no volume.
_VARIANTS = {
    "Train": {
        "Female": ("f1", "f4", "Andrea", "anika", "belinda", "grandma", "steph"),
        "Male": (
            "m1",
            "m3",
            "m4",
            "m7",
            "Alex",
            "Andy",
            "Denis",
            "Gene",
            "Mario",
            "Nguyen",
            "boris",
            "marcelo",
            "travis",
        ),
    },
    "Development": {"Female": ("linda", "aunty"), "Male": ("m5", "Michael", "rob")},
    "Test1": {"Female": ("shelby", "Annie"), "Male": ("m6", "max", "quincy")},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """One simulated speaker: a voice and its habits."""

    number: int
    split: str
    gender: str
    """"Female" or "Male", as MSP-Podcast spells it."""

    voice: str
    """Accent and variant, as eSpeak's data files are called."""

    rate: float
    """Speaks so many times as fast as the mean."""

    pitch: float
    """Added to eSpeak's pitch."""

    loudness_db: float
    """Speaks so much louder than the mean."""


def _habit(voice: str, name: str, span: float) -> float:
    """A fixed number within +-span that depends on the voice alone."""
    return span * (2 * (derive_seed("speaker", voice, name) / 2**63) - 1)


def _speakers() -> tuple[Speaker, ...]:
    named = [
        (s, g, variant) for s, genders in _VARIANTS.items() for g, variants in genders.items() for variant in variants
    ]
    speakers = []
    for number, (split, gender, variant) in enumerate(named, start=1):
        voice = f"{_ACCENT}+{variant}"
        speakers.append(
            Speaker(
                number=number,
                split=split,
                gender=gender,
                voice=voice,
                rate=1 + _habit(voice, "rate", 0.06),
                pitch=_habit(voice, "pitch", 4.0),
                loudness_db=_habit(voice, "loudness", 1.0),
            )
        )
    return tuple(speakers)


SPEAKERS = _speakers()
"""All speakers, numbered from 1."""
