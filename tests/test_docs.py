"""The Python blocks of README and of the pages in docs/ run, and their links lead somewhere."""

import pathlib
import re

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent


def blocks(path):
    """The Python that a page shows, in order; later blocks go on from earlier ones."""
    found = re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)
    return [compile(block, f"{path.name}, block {i}", "exec") for i, block in enumerate(found)]


@pytest.mark.large
@pytest.mark.slow
def test_readme_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, *others = blocks(ROOT / "README.md")
    names = {}
    exec(first, names)  # noqa: S102 -- our own README
    assert names["y"].shape == (100, 128)
    printed = capsys.readouterr().out
    assert float(printed.split(")")[-1]) < 0.05  # the error that README's reader sees
    for block in others:
        exec(block, names)  # noqa: S102
    assert "NMSE 0.0" in capsys.readouterr().out


@pytest.mark.large
@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["learning.md", "flax.md", "rescoring.md", "performance.md", "backends.md", "serving.md"]
)
def test_pages_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    found = blocks(ROOT / "docs" / page)
    assert found
    for block in found:
        exec(block, names)  # noqa: S102 -- our own page


PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
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


@pytest.mark.large
@pytest.mark.slow
@pytest.mark.parametrize("page", ["tutorial_nnx.md", "tutorial_linen.md"])
def test_tutorials_run(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in blocks(ROOT / "docs" / page):
        exec(block, names)  # noqa: S102
    printed = capsys.readouterr().out
    assert "| layer | D -> M (rows) | share |" in printed
    assert "held-out loss" in printed
    compiled, x_test = names["compiled"], names["x_test"]
    np.testing.assert_array_equal(compiled(names["loaded"], x_test)(), compiled(names["tuned"], x_test)())
    scores = names["scores"]
    assert scores["exact"] > 0.9
    assert scores["tuned, loaded"] > scores["exact"] - 0.05
