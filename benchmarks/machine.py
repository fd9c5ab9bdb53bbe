"""Facts about the machine: processor, versions, date, load, and the limits that the C++ programs measure."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import time
from typing import Any

import jax_maddness
from jax_maddness.core.machine import processor, threads

VERSIONS = ("jax_maddness", "jax", "jaxlib", "numpy", "torch", "faiss-cpu", "onnxruntime", "openvino")
"""Packages whose versions are reported."""
DESIGNS = {
    ("AuthenticAMD", "25", "1"): "Zen 3: AVX2",
    ("AuthenticAMD", "25", "17"): "Zen 4: AVX-512 with VNNI, no AMX",
    ("AuthenticAMD", "26", "2"): "Zen 5: AVX-512 with VNNI, no AMX",
    ("GenuineIntel", "6", "143"): "Sapphire Rapids: AVX-512 with VNNI, AMX",
}
"""Vendor, family and model of /proc/cpuinfo; the name of the design, which cloud machines hide in their names."""
QUIET = 0.05
"""Number of processors that other processes may use on a machine that counts as quiet."""


def facts() -> dict[str, Any]:
    """Returns the facts: machine, versions, commit, date."""
    versions = {}
    for name in VERSIONS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    info = _cpuinfo()
    return {
        "cpu": processor(),
        "vendor": info.get("vendor_id", ""),
        "design": _design(info),
        "processors": threads(),
        "caches": _caches(),
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
        "commit": _commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
    }


def work() -> tuple[float, float, float]:
    """Returns seconds of the clock, of work of all processors, and of work of this process and its children."""
    try:
        stat = pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        user, nice, system, _, _, irq, softirq, steal = map(int, stat[:8])
        everyone = (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        everyone = 0.0
    return time.monotonic(), everyone, sum(os.times()[:4])


def others(before: tuple[float, float, float], after: tuple[float, float, float]) -> float:
    """Returns the number of processors that other processes kept busy between two readings of `work`.

    Example:
      >>> others((0.0, 10.0, 1.0), (10.0, 25.0, 11.0))
      0.5
    """
    seconds, everyone, ours = (b - a for a, b in zip(before, after, strict=True))
    return max(0.0, (everyone - ours) / seconds)


def headline(facts: dict[str, Any], limits: dict[str, Any] | None) -> str:
    """Returns the facts and limits as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    caches = ", ".join(f"{name} {size}" for name, size in facts["caches"].items())
    lines = [
        f"{facts['cpu']}, {facts['processors']} processors ({caches}); {facts['system']}; Python {facts['python']}, "
        f"{versions}; commit {facts['commit']}; {facts['date']}."
    ]
    if limits:
        reads, stores, streams = (
            ", ".join(f"{rate:.0f} GB/s at {size} MB" for size, rate in limits[name].items())
            for name in ("read_gb_s", "store_gb_s", "streaming_store_gb_s")
        )
        lines.append(
            f"Clock {limits['clock_ghz']:.2f} GHz. One thread reads {reads}; stores {stores}; past caches {streams}. "
            f"Fresh memory costs {limits['fresh_32mb_ms']['pages']:.1f} ms per 32 MB, "
            f"{limits['fresh_32mb_ms']['huge_pages']:.1f} ms as huge pages."
        )
    if facts.get("keeps_memory"):
        lines.append("Freed memory is kept (`--keep-memory`): no contender writes its results to fresh pages.")
    if facts["others"] > QUIET:
        lines.append(f"**Not quiet: other processes kept {facts['others']:.2f} processors busy meanwhile.**")
    return "\n\n".join(lines) + "\n"


def program(build: pathlib.Path, name: str) -> str | None:
    """Returns the path of a program that CMake built in `build`, or None."""
    programs = [path for path in build.rglob(name) if path.is_file() and os.access(path, os.X_OK)]
    return str(programs[0].resolve()) if programs else None


def limits(executable: str | None) -> dict[str, Any] | None:
    """Runs bench_limits; returns the clock and the rates of memory, or None without the program."""
    return json.loads(_output(executable)) if executable else None


def kernels(executable: str | None) -> list[dict[str, Any]]:
    """Runs bench_kernels; returns its records, none without the program."""
    return [json.loads(line) for line in _output(executable, "--json").splitlines()] if executable else []


def _output(*command: str) -> str:
    first = sorted(os.sched_getaffinity(0))[0]
    pinned = lambda: os.sched_setaffinity(0, [first])  # noqa: E731
    return subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=pinned).stdout


def _commit() -> str:
    git = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _design(info: dict[str, str]) -> str:
    """Returns the name of the processor's design, or the best tier that it has."""
    identity = info.get("vendor_id", ""), info.get("cpu family", ""), info.get("model", "")
    return DESIGNS.get(identity, f"tier {jax_maddness.active_tier()}")


def _cpuinfo() -> dict[str, str]:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _caches() -> dict[str, str]:
    sizes = {}
    for cache in sorted(pathlib.Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size = ((cache / name).read_text().strip() for name in ("level", "type", "size"))
        if kind != "Instruction":
            sizes[f"L{level}"] = size.replace("K", " KB")
    return sizes
