"""WordNet's glosses, their classes and their vectors: the data of the examples and of a benchmark.

The glosses come inside the package nlptoolkit-wordnet, as one XML file of WordNet 3.1; its code is not used.
"""

from __future__ import annotations

import hashlib
import html
import importlib.util
import pathlib
import re
from collections.abc import Iterator, Sequence

import numpy as np

from examples import minilm

CACHE = pathlib.Path("build/search")
"""Folder in which vectors are stored, as embedding all glosses takes minutes."""

FILES = {
    "n": {
        34778: "act", 1315584: "animal", 2668615: "artifact", 4623223: "attribute", 5223633: "body",
        5619057: "cognition", 6261911: "communication", 7298069: "event", 7495066: "feeling", 7571428: "food",
        7955013: "group", 8506507: "location", 9201624: "motive", 9208961: "object", 9506868: "person",
        11428673: "phenomenon", 11550054: "plant", 13261412: "possession", 13444578: "process", 13597072: "quantity",
        13802661: "relation", 13882990: "shape", 13943045: "state", 14604577: "substance", 15137796: "time",
    },
    "v": {
        1740: "body", 109468: "change", 589616: "cognition", 742582: "communication", 1074673: "competition",
        1159300: "consumption", 1208316: "contact", 1620211: "creation", 1763170: "emotion", 1835473: "motion",
        2110264: "perception", 2204104: "possession", 2372031: "social", 2609706: "stative", 2762516: "weather",
    },
}  # fmt: skip
"""The lexicographer files of nouns and verbs, 40 without that of the topmost nouns, by the number of their first
synset: WordNet 3.1 numbers synsets file by file, so that the number of a synset determines its file."""


def load(limit: int | None = None) -> tuple[list[str], list[str]]:
    """Returns distinct glosses and the words that each defines; with `limit`, that many of them, drawn at random.

    Raises:
      ModuleNotFoundError: the package is not installed.
    """
    words: dict[str, list[str]] = {}
    for _, gloss, defined in _synsets():
        words.setdefault(gloss, []).extend(defined)
    texts = list(words)
    if limit is not None and limit < len(texts):
        texts = [texts[i] for i in np.sort(np.random.default_rng(0).permutation(len(texts))[:limit])]
    return texts, [html.unescape(", ".join(dict.fromkeys(words[text]))) for text in texts]


def load_classes() -> tuple[list[str], list[str]]:
    """Returns distinct glosses of nouns and verbs, and the class of each: its lexicographer file, such as "n.animal".

    Raises:
      ModuleNotFoundError: the package is not installed.
    """
    classes: dict[str, str] = {}
    for number, gloss, _ in _synsets():
        name = lexicographer_file(number)
        if name is not None:
            classes.setdefault(gloss, name)
    return list(classes), list(classes.values())


def lexicographer_file(number: str) -> str | None:
    """Returns the class of a synset; None for adjectives, adverbs and the topmost nouns.

    Example:
      >>> lexicographer_file("ENG31-02944025-n"), lexicographer_file("ENG31-00001740-a")
      ('n.artifact', None)
    """
    _, offset, part = number.split("-")
    first = max((start for start in FILES.get(part, ()) if start <= int(offset)), default=None)
    return None if first is None else f"{part}.{FILES[part][first]}"


def _synsets() -> Iterator[tuple[str, str, list[str]]]:
    """Yields number, gloss and words of each synset."""
    spec = importlib.util.find_spec("WordNet")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("The package nlptoolkit-wordnet is not installed: `make example-search` installs it.")
    file = pathlib.Path(spec.submodule_search_locations[0]) / "data" / "english_wordnet_version_31.xml"
    for synset in file.read_text("utf-8").split("<SYNSET>")[1:]:
        number, gloss = re.search(r"<ID>(.*?)</ID>", synset), re.search(r"<DEF>(.*?)</DEF>", synset, re.DOTALL)
        if number and gloss:
            yield number[1], html.unescape(gloss[1]), re.findall(r"<LITERAL>([^<]*)<", synset)


def vectors(texts: Sequence[str], cache: pathlib.Path = CACHE) -> np.ndarray:
    """Returns the vectors of `texts`, float32 [len(texts), 384] rounded to float16, from the cache if they are there.

    Otherwise the texts are embedded and the vectors are stored. A run that was interrupted continues where it stopped:
    rows of NaN in the partial file are missing.
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
        remaining = [texts[i] for i in missing]
        for which, embedded in minilm.embedded(remaining, model, tokenizer, progress="embedding, once"):
            kept[missing[which]] = embedded
        kept.flush()
        part.rename(done)
    return np.load(done).astype(np.float32)


def _file(texts: Sequence[str], cache: pathlib.Path) -> pathlib.Path:
    return cache / f"{hashlib.sha256(chr(10).join(texts).encode()).hexdigest()[:16]}.npy"
