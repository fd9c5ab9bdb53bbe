"""The tables in the documentation are those of the files that benchmarks wrote."""

import json

import pytest

from benchmarks import depthwise, measured, pages


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(measured, "FOLDER", tmp_path / "measured")
    return tmp_path / "measured"


def test_the_pages_have_the_tables_that_were_measured():
    pages.main(["--check"])


def test_every_file_is_shown_on_one_page():
    names = sorted(path.stem for path in measured.FOLDER.glob("*.json"))
    shown = [name for page in pages.PAGES for name in pages.names(page.read_text())]
    assert sorted(shown) == names


def test_a_saved_run_becomes_a_table_with_its_command_machine_and_date(monkeypatch, capsys, folder):
    monkeypatch.setattr(depthwise, "LAYERS", (((1, 6, 5, 3), (3, 3), 2),))
    depthwise.main(["--seconds", "0", "--save"])
    printed = capsys.readouterr().out
    contents = json.loads((folder / "depthwise.json").read_text())
    assert contents["command"].endswith("python -m benchmarks.depthwise --seconds 0")
    (page,) = [pages.filled("before\n<!-- measured: depthwise -->\nold\n<!-- end -->\nafter\n")]
    assert contents["command"] in page
    assert contents["machine"]["date"][:10] in page
    assert contents["machine"]["cpu"] in page
    assert "old" not in page
    row = depthwise.table(contents["records"]).splitlines()[-1]
    assert pages.unbroken(row) in page
    assert row in printed
    assert pages.filled(page) == page


def test_a_run_without_save_writes_nothing(monkeypatch, capsys, folder):
    monkeypatch.setattr(depthwise, "LAYERS", ())
    depthwise.main([])
    assert "| input |" in capsys.readouterr().out
    assert not folder.exists()


def test_a_page_that_differs_is_named(monkeypatch, folder, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- measured: depthwise -->\nby hand\n<!-- end -->\n")
    monkeypatch.setattr(pages, "PAGES", [page])
    facts = {
        "cpu": "CPU",
        "design": "new",
        "processors": 1,
        "versions": {"jax": "9.9"},
        "others": 0.0,
        "date": "2026-01-02T03:04",
    }
    measured.write("depthwise", "python", facts, [], 1)
    with pytest.raises(SystemExit, match=r"page\.md has a table that is not that of docs/measured"):
        pages.main(["--check"])
    assert "by hand" in page.read_text()
    pages.main([])
    pages.main(["--check"])
    assert "CPU (new), 1 thread, jax 9.9, 2026-01-02:" in page.read_text()
