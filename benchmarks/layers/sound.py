"""Sound as inputs of models: all of it is synthetic, since no package with models brings recordings.

Speech is WordNet's glosses as eSpeak NG says them, in rooms with noise; music is chords and tunes of plucked strings.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Iterator

import numpy as np
from scipy.signal import fftconvolve, resample_poly  # type: ignore[import-untyped]

from benchmarks.layers.pictures import source, texts

VOICES = {
    "train": ("en-us", "en-us+f2", "en-gb-x-rp+m3", "de", "fr+f1", "it+m5", "es", "en-us+whisper"),
    "test": ("en-gb-scotland", "pt+f4", "sv+m1", "nl+f3"),
}
"""Voices of eSpeak NG: a language, and a speaker after the sign."""
_SYNCHRONOUS, _UTF8, _RATE = 2, 1, 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def speech(split: str, samples: int) -> Iterator[np.ndarray]:
    """Yields speech at 16 kHz without end, float32 [samples]; every utterance by the next voice."""
    rng = source(split)
    for voice, text in zip(itertools.cycle(VOICES[split]), itertools.cycle(texts(split)), strict=False):
        spoken = resample_poly(_spoken(text, voice, int(rng.integers(130, 220))), 320, 441)
        pause = np.zeros(int(rng.integers(800, 8000)))
        heard = _in_a_room(np.concatenate([pause, spoken, pause]), 16_000, rng)
        for first in range(0, len(heard) - samples + 1, samples):
            yield heard[first : first + samples]


def music(split: str, samples: int) -> Iterator[np.ndarray]:
    """Yields pieces of music at 22.05 kHz without end, float32 [samples]."""
    rng = source(split)
    while True:
        beat = int(rng.uniform(0.15, 0.6) * 22_050)
        root, scale = (
            int(rng.integers(33, 58)),
            (0, 2, 4, 5, 7, 9, 11) if rng.random() < 0.5 else (0, 2, 3, 5, 7, 8, 10),
        )
        timbre = rng.uniform(0.6, 2.5), rng.uniform(1.5, 8.0)
        piece = np.zeros(samples)
        for start in range(0, samples, beat):
            degrees = rng.integers(0, 3 * len(scale), int(rng.integers(1, 5)))
            for degree in degrees:
                pitch = root + 12 * (degree // len(scale)) + scale[degree % len(scale)]
                note = rng.uniform(0.2, 1.0) * _note(440 * 2 ** ((pitch - 69) / 12), *timbre, samples - start)
                piece[start:] += note
        yield _in_a_room(piece, 22_050, rng)


def _note(frequency: float, brightness: float, decay: float, samples: int) -> np.ndarray:
    """Returns a plucked string: higher harmonics are softer and end earlier."""
    time = np.arange(samples) / 22_050
    harmonics = np.arange(1, min(20, int(11_025 / frequency)) + 1)[:, None]
    waves = np.sin(2 * np.pi * frequency * harmonics * np.sqrt(1 + 1e-4 * harmonics**2) * time)
    return (waves * np.exp(-decay * np.sqrt(harmonics) * time) / harmonics**brightness).sum(0)


def _in_a_room(sound: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the sound with an echo that fades, noise below it, and a random loudness."""
    length = int(rng.uniform(0.05, 0.3) * rate)
    echo = rng.standard_normal(length) * np.exp(-6 * np.arange(length) / length)
    wet = fftconvolve(sound, echo / np.linalg.norm(echo))[: len(sound)]
    mixed = sound + rng.uniform(0, 0.5) * wet
    mixed *= rng.uniform(0.05, 0.9) / max(float(np.abs(mixed).max()), 1e-9)
    colour = np.exp(-np.arange(16) / rng.uniform(0.2, 5))
    noise = fftconvolve(rng.standard_normal(len(sound)), colour, mode="same")
    level = float(np.std(mixed) * 10 ** rng.uniform(-3, -0.4) / np.std(noise))
    return (mixed + level * noise).astype(np.float32)


@functools.cache
def _espeak() -> ctypes.CDLL:
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), 0)
    if rate != 22_050:
        raise RuntimeError(f"eSpeak NG did not start, or has an unexpected rate: {rate}.")
    return library


def _spoken(text: str, voice: str, words_per_minute: int) -> np.ndarray:
    """Returns a text as speech at 22.05 kHz, in [-1, 1]."""
    library, parts = _espeak(), [np.zeros(1, np.int16)]

    def receive(samples: ctypes._Pointer[ctypes.c_short], count: int, _: object) -> int:
        if samples and count > 0:
            parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    callback = _CALLBACK(receive)
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.encode()):
        raise RuntimeError(f"eSpeak NG has no voice {voice}.")
    library.espeak_SetParameter(_RATE, words_per_minute, 0)
    encoded = text.encode()
    library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded) + 1), 0, 0, 0, _UTF8, None, None)
    return np.concatenate(parts) / 2**15
