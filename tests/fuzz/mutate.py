"""Damages files of this package, also below their digests: what was damaged can be given right digests again."""

import io
import json
import zipfile

import numpy as np

from jax_maddness.core.archive import describe, digest_header

HEADER = "header.json"
VALUES = (None, True, False, -1, 0, 1, 2, 3, 16, 2**31, 2**63, 10**30, 0.5, 1e400, "", "float32", "l2", [], [[]], {})
"""Values that are put in place of others in JSON."""
NUMBERS = (0, 1, -1, 127, -128, 255, 2**31 - 1, -(2**31), np.nan, np.inf, -np.inf, 1e-40, 3e38, 2.0**-120)
"""Values that are put into arrays."""


def mutate(data, rng, mutate_bytes):
    """Returns `data` with one random change, of its bytes or of what they mean."""
    if rng.integers(4) == 0:
        return mutate_bytes(data)
    try:
        if data[:1] in (b"{", b"["):
            return json.dumps(changed_json(json.loads(data), rng)).encode()
        return changed_archive(data, rng, mutate_bytes)
    except Exception:  # damaged too much to be understood
        return mutate_bytes(data)


def flip(rng):
    """Returns a function that changes some bytes: the fallback where there is no libFuzzer."""

    def flipped(data):
        data, kind = bytearray(data), rng.integers(4)
        at = int(rng.integers(len(data) + 1))
        if kind == 0:
            return bytes(data[:at])
        if kind == 1:
            return bytes(data[:at] + rng.bytes(int(rng.integers(1, 9))) + data[at:])
        if kind == 2:
            return bytes(data[:at] + data[at + int(rng.integers(1, 65)) :])
        for position in rng.integers(0, max(len(data), 1), int(rng.integers(1, 5))) if data else ():
            data[position] = rng.integers(256)
        return bytes(data)

    return flipped


def changed_json(value, rng):
    """Returns JSON with a change at one random place: another value, one less, one more, or two exchanged."""
    if isinstance(value, dict | list) and value and rng.integers(6):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key, other = keys[rng.integers(len(keys))], keys[rng.integers(len(keys))]
        kind = rng.integers(12)
        if kind == 0:
            del value[key]
        elif kind == 1:
            value[key], value[other] = value[other], value[key]
        elif kind == 2 and isinstance(value, list):
            value.append(value[key])
        elif kind == 2:
            value[f"{key}x"] = value[key]
        else:
            value[key] = changed_json(value[key], rng)
        return value
    if type(value) in (int, float) and rng.integers(2):
        return value + rng.choice([-1, 1, 0.5]).item()
    return VALUES[rng.integers(len(VALUES))]


def changed_archive(data, rng, mutate_bytes):
    """Returns an archive with one member changed, mostly with digests to match."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    header = json.loads(members[HEADER])
    name = str(rng.choice(sorted(members)))
    kind = rng.integers(6)
    if name == HEADER:
        header = changed_json(header, rng)
    elif kind == 0:
        del members[name]
    elif kind == 1:
        members[name] = mutate_bytes(members[name])
    elif kind == 2:
        members[name] = members[str(rng.choice(sorted(members.keys() - {HEADER})))]
    else:
        members[name] = _npy(_changed_array(np.load(io.BytesIO(members[name]), allow_pickle=False), rng))
    if name != HEADER and isinstance(header, dict) and rng.integers(8):
        _describe_again(header, members)
    return _zipped(header, members, rng)


def _changed_array(array, rng):
    """Returns an array with some other values, or another shape or dtype."""
    kind = rng.integers(8)
    if kind == 0:
        with np.errstate(over="ignore", invalid="ignore"):
            return array.astype(rng.choice(["float32", "int32", "uint8", "int8", "float64", "float16"]))
    if kind == 1:
        return array.reshape(-1) if rng.integers(2) else array[None]
    if kind == 2 and array.ndim:
        axis = int(rng.integers(array.ndim))
        return np.repeat(array, rng.integers(0, 3, array.shape[axis]), axis)
    array = array.copy()
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = np.array(NUMBERS).astype(array.dtype)
    if array.size:
        places = rng.integers(0, array.size, int(rng.integers(1, 4)))
        array.reshape(-1)[places] = rng.choice(numbers, len(places))
    return array


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _describe_again(header, members):
    """Makes the header describe the arrays that there are."""
    described = {}
    for name, data in members.items():
        if name == HEADER:
            continue
        key = name.removesuffix(".npy")
        before = header.get("arrays", {}).get(key, {})
        try:
            described[key] = describe(np.load(io.BytesIO(data), allow_pickle=False))
        except Exception:
            described[key] = before
        if before.get("dtype") == "bfloat16":
            described[key]["dtype"] = "bfloat16"
    header["arrays"] = described


def _zipped(header, members, rng):
    if isinstance(header, dict) and rng.integers(8):
        header["sha256"] = digest_header(header)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, json.dumps(header).encode() if name == HEADER else data)
    return buffer.getvalue()
