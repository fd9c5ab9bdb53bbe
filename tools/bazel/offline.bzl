"""Empty stand-ins for the repositories that Bazel without modules downloads before it compiles any C++.

Its own toolchains load rules from @rules_cc and @rules_java that it has built in, and every test depends on the tools
of `bazel coverage`, which do not work here.
"""

def _written_repository(ctx):
    ctx.file("BUILD.bazel", "")
    for path, content in ctx.attr.files.items():
        ctx.file(path, content)

_written_repository_rule = repository_rule(
    implementation = _written_repository,
    attrs = {"files": attr.string_dict(mandatory = True, doc = "path -> content")},
)

def _native(rules):
    return "".join(["%s = native.%s\n" % (rule, rule) for rule in rules])

def offline():
    _written_repository_rule(
        name = "rules_cc",
        files = {
            "cc/BUILD.bazel": "",
            "cc/defs.bzl": _native(["cc_binary", "cc_library", "cc_test", "cc_toolchain", "cc_toolchain_suite"]),
        },
    )
    _written_repository_rule(
        name = "rules_java",
        files = {
            "java/BUILD.bazel": "",
            "java/defs.bzl": _native(["java_import", "java_runtime", "java_toolchain"]),
        },
    )
    _written_repository_rule(
        name = "remote_coverage_tools",
        files = {"BUILD.bazel": "".join([
            "filegroup(name = \"%s\", visibility = [\"//visibility:public\"])\n" % name
            for name in ["coverage_report_generator", "lcov_merger"]
        ])},
    )
