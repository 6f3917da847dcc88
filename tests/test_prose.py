"""The pages for readers: no sentence runs on."""

import re

import pytest
from conftest import ROOT

LIMIT = 200  # characters
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
WRITTEN = ("README.md", "docs/results.md")  # in part by tools/publish.py


def prose(text):
    """Lines without those of code and tables."""
    text = re.sub(r"^ *```.*?^ *```", "", text, flags=re.DOTALL | re.MULTILINE)
    return [line for line in text.splitlines() if line[:1] != "|"]


def long_lines(text):
    """Lines of prose above LIMIT in which no sentence ends."""
    return [line for line in prose(text) if len(line) > LIMIT and not re.search(r"[.!?]\W*(\s|$)", line)]


def long_stretches(text):
    """Stretches of prose above LIMIT, over lines too, without a full stop, colon or semicolon."""
    parts = re.split(r"\n\s*\n|\n(?=[-#] )", "\n".join(prose(text)))
    stretches = [each for part in parts for each in re.split(r"[.:;!?]\W*\s", " ".join(part.split()))]
    return [each for each in stretches if len(each) > LIMIT]


@pytest.mark.parametrize("page", PAGES)
def test_no_long_line_is_without_a_full_stop(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not long_lines(text) and (page in WRITTEN or not long_stretches(text))


def test_what_runs_on_is_found():
    long, table = "word " * 41, "| cell " * 41
    assert long_lines(f"{long}\n{long}ends. Here\n{table}\n```\n{long}\n```\n") == [long]
    assert len(long_stretches(f"{'word ' * 21}\n{'word ' * 21}\n\n{'word ' * 21}ends.\n{'word ' * 21}")) == 1
