"""The Python blocks of README and of the pages in docs/ run, and their links lead somewhere."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import jax_maddness
from jax_maddness import nn

ROOT = pathlib.Path(__file__).parent.parent
DOCS = ROOT / "docs"
TUTORIALS = ("tutorial_nnx.md", "tutorial_linen.md")  # run by a test of their own


def blocks(path):
    """The Python that a page shows, in order; later blocks go on from earlier ones.

    Blocks of `{code-cell}` also run where the site is built, which prints what they print.
    """
    return re.findall(r"```(?:python|{code-cell} ipython3)\n(.*?)```", path.read_text(), re.DOTALL)


def printed_by(sources, folder):
    """Runs the blocks as a reader does, in a process of their own, and returns what they print.

    XLA's optimizations are on there, as these tests mostly learn. Others mostly compile: conftest.py turns them off.
    """
    script = folder / "blocks.py"
    script.write_text("\n".join(sources))
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    if "serialize_executable" in script.read_text():  # JAX cannot serialize what it has from the persistent cache
        env["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    run = subprocess.run(
        [sys.executable, script.name],
        cwd=folder,
        env=env | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.slow
def test_readme_examples_run(tmp_path):
    first, *others = blocks(ROOT / "README.md")
    printed = printed_by([first, "print(y.shape, flush=True)\nprint('the first block ends here')", *others], tmp_path)
    first, others = printed.split("the first block ends here")
    error, shape = first.strip().split("\n")[-2:]
    assert shape == "(100, 128)"
    assert float(error.split(")")[-1]) < 0.05  # the error that README's reader sees
    assert "NMSE 0.0" in others


@pytest.mark.slow
@pytest.mark.parametrize("page", [p.name for p in sorted(DOCS.glob("*.md")) if blocks(p) and p.name not in TUTORIALS])
def test_pages_run(page, tmp_path):
    before = blocks(DOCS / "learning.md")[:1] if page == "index.md" else []  # its two lines have no data of their own
    printed_by([*before, *blocks(DOCS / page)], tmp_path)


def test_the_api_pages_list_every_public_name():
    listed = re.findall(r"^\.\. auto(?:function|class):: jax_maddness\.(\S+)", "".join(map(_text, API)), re.MULTILINE)
    names = [name.removeprefix("nn.").removeprefix("testing.") for name in listed]
    assert len(set(names)) == len(names)
    testing = {"force_backend", "force_tier", "assert_portable"}
    decoding = {f"decoding.{name}" for name in ("greedy", "beam_search", "collapse_ctc", "Choices", "Decoded")}
    assert set(names) == {*jax_maddness.__all__, *nn.__all__, *testing, *decoding}


def _text(path):
    return path.read_text()


API = sorted((DOCS / "api").glob("*.rst"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]


def test_every_page_is_in_the_contents():
    contents = "".join(re.findall(r"```{toctree}(.*?)```", _text(DOCS / "index.md"), re.DOTALL))
    pages = {str(p.relative_to(DOCS).with_suffix("")) for p in DOCS.rglob("*.md")} - {"index"}
    assert set(re.findall(r"^([\w/]+)$", contents, re.MULTILINE)) == pages


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        path, anchor = target
        if path.startswith(("http:", "https:")):
            continue
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", other.read_text(), re.MULTILINE)
            assert anchor in [slug(heading) for heading in headings], target


def slug(heading):
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_contributing_prints_the_whole_tree():
    """Every file of the package, and every folder of the C++."""
    tree = (ROOT / "CONTRIBUTING.md").read_text().split("```")
    printed = max(tree, key=len)
    for path in (ROOT / "jax_maddness").rglob("*.py"):
        assert re.search(rf"\b{path.name}\b", printed) or path.name == "__init__.py", path
    for folder in (*(ROOT / "xla_ffi").iterdir(), *(ROOT / "xla_ffi" / "kernels").iterdir()):
        assert not folder.is_dir() or f"{folder.name}/" in printed, folder


def test_readme_fits_two_screens():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 120


CHECK_TUTORIAL = """
np.testing.assert_array_equal(compiled(loaded, x_test)(), compiled(tuned, x_test)())
assert scores["exact"] > 0.9
assert scores["tuned, loaded"] > scores["exact"] - 0.05
"""


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS)
def test_tutorials_run(page, tmp_path):
    printed = printed_by([*blocks(DOCS / page), CHECK_TUTORIAL], tmp_path)
    assert "| layer | D -> M (rows) | share |" in printed
    assert "held-out loss" in printed
