"""Tests of the package's page on the index, and of the version that several files name."""

import importlib.util
import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_all_files_name_the_same_version():
    spec = importlib.util.spec_from_file_location("check", ROOT / "tools" / "release" / "check.py")
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    places = set(check.PLACES) - {"CHANGELOG.md"}  # which names it once it is released
    assert {check.version_in(place) for place in places} == {PROJECT["project"]["version"]}


def test_the_page_on_the_index_has_no_relative_links():
    text = (ROOT / "README.md").read_text()
    for rule in PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets
    assert all(target.startswith("https://") for target in targets), targets
    assert "All pages" in text
