"""The repositories that WORKSPACE declares, for MODULE.bazel."""

load(":local_repositories.bzl", "jaxlib_headers", "tiers")

def _local_repositories(_module_ctx):
    jaxlib_headers(name = "jaxlib")
    tiers(
        name = "jax_maddness_tiers",
        tiers_inc = Label("//:xla_ffi/kernels/tiers.inc"),
    )

local_repositories = module_extension(implementation = _local_repositories)
