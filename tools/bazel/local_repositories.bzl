"""Repositories made from local files: the headers of the installed jaxlib, and the list of tiers."""

# ---- @jaxlib ----

# find_spec, not import: importing jaxlib would load all of XLA.
_FIND_JAXLIB = """
import importlib.util, pathlib
spec = importlib.util.find_spec("jaxlib")
print(pathlib.Path(spec.origin).parent / "include" if spec else "")
"""

_JAXLIB_BUILD = """
load("@rules_cc//cc:defs.bzl", "cc_library")

cc_library(
    name = "xla_ffi",
    hdrs = glob(["include/xla/ffi/api/*.h"]),
    includes = ["include"],  # Bazel makes this -isystem
    visibility = ["//visibility:public"],
)
"""

def _find_jaxlib(ctx):
    """The folder of xla/ffi/api/ffi.h as a string, and a name for the place that said so."""
    include = ctx.os.environ.get("JAX_MADDNESS_XLA_INCLUDE", "")
    if include:
        return include, "JAX_MADDNESS_XLA_INCLUDE"
    python = ctx.os.environ.get("PYTHON", "") or "python3"
    interpreter = ctx.which(python) if "/" not in python else ctx.path(python)
    if not interpreter or not interpreter.exists:
        fail("No Python '%s'. %s" % (python, _WHAT_TO_DO))
    result = ctx.execute([interpreter, "-c", _FIND_JAXLIB])
    if result.return_code != 0:
        fail("%s cannot look for jaxlib. %s\n%s" % (interpreter, _WHAT_TO_DO, result.stderr))
    return result.stdout.strip(), str(interpreter)

_WHAT_TO_DO = "Set PYTHON to the absolute path of a Python that has jaxlib, or JAX_MADDNESS_XLA_INCLUDE to the " + \
              "folder of xla/ffi/api/ffi.h."

def _jaxlib_headers(ctx):
    include, source = _find_jaxlib(ctx)
    if not include:
        fail("%s has no jaxlib. %s" % (source, _WHAT_TO_DO))
    if not ctx.path(include + "/xla/ffi/api/ffi.h").exists:
        fail("No xla/ffi/api/ffi.h in '%s' (from %s). %s" % (include, source, _WHAT_TO_DO))
    ctx.symlink(include, "include")
    ctx.file("BUILD.bazel", _JAXLIB_BUILD)

jaxlib_headers = repository_rule(
    implementation = _jaxlib_headers,
    environ = ["JAX_MADDNESS_XLA_INCLUDE", "PATH", "PYTHON"],
    local = True,
    doc = "@jaxlib//:xla_ffi: the headers of XLA FFI that an installed jaxlib brings.",
)

# ---- @jax_maddness_tiers ----

_TIER = "JAX_MADDNESS_TIER("

def _parse_tier(line):
    """JAX_MADDNESS_TIER(x86_64, avx2, "-mavx2 -mfma") as a struct; fails where CMakeLists.txt does."""
    fields = line[len(_TIER):-1].split(", ", 2)
    if not line.endswith("\")") or len(fields) != 3 or not fields[2].startswith("\""):
        fail("xla_ffi/kernels/tiers.inc: cannot read: " + line)
    architecture, name, flags = fields
    return struct(architecture = architecture, name = name, copts = [f for f in flags[1:-1].split(" ") if f])

def _tiers(ctx):
    tiers = [_parse_tier(line) for line in ctx.read(ctx.attr.tiers_inc).splitlines() if line.startswith(_TIER)]
    ctx.file("BUILD.bazel", "")
    ctx.file("tiers.bzl", "TIERS = %r\n" % (tiers,))

tiers = repository_rule(
    implementation = _tiers,
    attrs = {"tiers_inc": attr.label(mandatory = True, allow_single_file = True)},
    doc = "@jax_maddness_tiers//:tiers.bzl: TIERS, read from xla_ffi/kernels/tiers.inc.",
)
