"""Speech from text through eSpeak NG, byte-equal for equal input.

eSpeak NG keeps state between utterances (tried, 1.52: the same sentence and voice gave up to ten different waves in
one process, also after re-initialising it). So the library is loaded afresh for every utterance; that costs about
5 ms. Some voices differ even then: Alicia, Demonic, f2, f3, f5, sandro, victor, whisper and whisperf from process to
process, and those of the Klatt synthesiser, which draw from the C library's random numbers.
"""

import _ctypes
import ctypes
import os
from collections.abc import Iterable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
from jaxtyping import Float32

from ccts_dist.errors import ConfigError, CorpusError

_DONT_EXIT = 0x8000  # option of espeak_Initialize: report missing data instead of ending the process
_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: the callback runs within espeak_Synth, without threads
_UTF8 = 1  # flags of espeak_Synth
_IPA = 2  # phonememode of espeak_TextToPhonemes
_STRESS = str.maketrans("", "", "ˈˌː ")  # marks of stress and length
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
_HALF_VOLUME = 50  # of 100; at full volume some voices clip inside eSpeak
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True, slots=True, kw_only=True)
class Voice:
    """How a sentence is spoken, in eSpeak's own units."""

    name: str
    """Accent and variant, as files of eSpeak's data: "gmw/en-US+f1"."""

    rate_wpm: int
    """Words per minute, 80..450."""

    pitch: int
    """0..100; 50 is the variant's own."""

    pitch_range: int
    """0 (monotone) .. 100; 50 is the variant's own."""


def synthesise(text: str, voice: Voice) -> tuple[Float32[np.ndarray, " samples"], int]:
    """One sentence as a waveform on -1..1, and its sample rate in Hz.

    Raises:
        ConfigError: the package that brings eSpeak NG is not installed.
        CorpusError: eSpeak NG refuses the voice or a setting, or gives no sound.
    """
    loader = _espeak_loader()
    chunks: list[bytes] = []

    def collect(wave: "ctypes._Pointer[ctypes.c_short]", num_samples: int, _events: int | None) -> int:
        if wave and num_samples > 0:
            chunks.append(ctypes.string_at(wave, 2 * num_samples))
        return 0

    callback = _Callback(collect)
    library = ctypes.CDLL(loader.get_library_path())
    try:
        rate_hz = library.espeak_Initialize(_SYNCHRONOUS, 0, loader.get_data_path().encode(), _DONT_EXIT)
        if rate_hz <= 0:
            raise CorpusError(f"eSpeak NG does not start with its data in {loader.get_data_path()}: reinstall it.")
        library.espeak_SetSynthCallback(callback)
        _speak(library, text, voice)
        library.espeak_Terminate()
    finally:
        _unload(library, loader.get_library_path())
    wave = np.frombuffer(b"".join(chunks), dtype="<i2").astype(np.float32) / 32768
    if not wave.any():
        raise CorpusError(f"eSpeak NG gave no sound for {text!r} in voice {voice.name}. Choose another voice.")
    return wave, rate_hz


def phonemes_of(words: Iterable[str], voice: str = "gmw/en-US") -> dict[str, str]:
    """How each word is pronounced: a character of the International Phonetic Alphabet for each sound, without stress.

    Raises:
        ConfigError: the package that brings eSpeak NG is not installed.
        CorpusError: eSpeak NG refuses the voice.
    """
    loader = _espeak_loader()
    library = ctypes.CDLL(loader.get_library_path())
    try:
        library.espeak_Initialize(_SYNCHRONOUS, 0, loader.get_data_path().encode(), _DONT_EXIT)
        if library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise CorpusError(f"eSpeak NG has no voice {voice}. Choose one of the folders lang and voices/!v.")
        translate = library.espeak_TextToPhonemes
        translate.restype = ctypes.c_char_p
        pronounced = {}
        for word in words:
            text = ctypes.c_char_p(word.encode())
            pronounced[word] = translate(ctypes.byref(text), _UTF8, _IPA).decode().translate(_STRESS)
        library.espeak_Terminate()
    finally:
        _unload(library, loader.get_library_path())
    return pronounced


def _speak(library: ctypes.CDLL, text: str, voice: Voice) -> None:
    if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
        raise CorpusError(f"eSpeak NG has no voice {voice.name}. Choose one of the folders lang and voices/!v.")
    settings = {_RATE: voice.rate_wpm, _VOLUME: _HALF_VOLUME, _PITCH: voice.pitch, _RANGE: voice.pitch_range}
    for parameter, value in settings.items():
        if library.espeak_SetParameter(parameter, value, 0) != 0:
            raise CorpusError(f"eSpeak NG refuses {value} for its parameter {parameter} (voice {voice}).")
    encoded = text.encode()
    size = ctypes.c_size_t(len(encoded) + 1)  # the closing zero counts
    if library.espeak_Synth(encoded, size, 0, 1, 0, _UTF8, None, None) != 0:
        raise CorpusError(f"eSpeak NG cannot speak {text!r} in voice {voice.name}.")


def _unload(library: ctypes.CDLL, path: str) -> None:
    """Drop the library and its state; CorpusError if something else in this process holds it."""
    _ctypes.dlclose(library._handle)
    try:
        held = ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
    except OSError:
        return
    _ctypes.dlclose(held._handle)
    raise CorpusError(f"{path} is in use elsewhere in this process and would keep its state: make speech on its own.")


def _espeak_loader() -> ModuleType:
    try:
        import espeakng_loader
    except ModuleNotFoundError as error:
        raise ConfigError(
            "the spoken demo corpus needs the package espeakng-loader. Install the extra: pip install 'ccts-dist[demo]'"
        ) from error
    return espeakng_loader
