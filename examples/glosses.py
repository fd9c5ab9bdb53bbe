"""WordNet's glosses and their vectors: what the search example and its benchmark search in.

The glosses come inside the package nlptoolkit-wordnet, as one XML file of WordNet 3.1; nothing of its code is used.
"""

from __future__ import annotations

import hashlib
import html
import importlib.util
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from examples import minilm

CACHE = pathlib.Path("build/search")
"""Where vectors are kept; embedding all glosses takes minutes."""


def load(limit: int | None = None) -> tuple[list[str], list[str]]:
    """Glosses, each once, and the words that each defines; with `limit`, so many of them, drawn at random.

    Raises:
      ModuleNotFoundError: the package is not installed.
    """
    spec = importlib.util.find_spec("WordNet")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("The package nlptoolkit-wordnet is not installed: `make example-search` installs it.")
    file = pathlib.Path(spec.submodule_search_locations[0]) / "data" / "english_wordnet_version_31.xml"
    words: dict[str, list[str]] = {}
    for synset in file.read_text("utf-8").split("<SYNSET>")[1:]:
        gloss = re.search(r"<DEF>(.*?)</DEF>", synset, re.DOTALL)
        if gloss:
            words.setdefault(html.unescape(gloss[1]), []).extend(re.findall(r"<LITERAL>([^<]*)<", synset))
    texts = list(words)
    if limit is not None and limit < len(texts):
        texts = [texts[i] for i in np.sort(np.random.default_rng(0).permutation(len(texts))[:limit])]
    return texts, [html.unescape(", ".join(dict.fromkeys(words[text]))) for text in texts]


def vectors(texts: Sequence[str], cache: pathlib.Path = CACHE) -> np.ndarray:
    """The vectors of `texts`, float32 [len(texts), 384] rounded to float16: from the cache, or embedded into it.

    A run that was stopped goes on where it stopped: rows that are not a number are missing.
    """
    done = _file(texts, cache)
    everything = load()[0]
    whole = _file(everything, cache)
    if not done.exists() and whole.exists():
        row = {text: i for i, text in enumerate(everything)}
        return np.load(whole, mmap_mode="r")[[row[text] for text in texts]].astype(np.float32)
    if not done.exists():
        part = done.with_suffix(".part.npy")
        cache.mkdir(parents=True, exist_ok=True)
        model, tokenizer = minilm.load(), minilm.load_tokenizer()
        if not part.exists():
            np.save(part, np.full((len(texts), model.words.features), np.nan, np.float16))
        kept = np.lib.format.open_memmap(part, mode="r+")
        missing = np.flatnonzero(np.isnan(kept[:, 0]))
        rest = [texts[i] for i in missing]
        for which, found in minilm.embedded(rest, model, tokenizer, progress="embedding, once"):
            kept[missing[which]] = found
        kept.flush()
        part.rename(done)
    return np.load(done).astype(np.float32)


def _file(texts: Sequence[str], cache: pathlib.Path) -> pathlib.Path:
    return cache / f"{hashlib.sha256(chr(10).join(texts).encode()).hexdigest()[:16]}.npy"
