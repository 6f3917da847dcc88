import json
import re
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup

from reid_utils.paper.report import build_report, main


@pytest.fixture(scope="module")
def report(small_study):
    return build_report(small_study)


def test_every_executed_notebook_table_figure_setting_and_version_is_in_the_report(report, small_study):
    index = BeautifulSoup((report / "index.html").read_text(), "html.parser")
    pages = {path.name for path in report.iterdir()} - {"index.html"}
    executed = {path.stem for path in (small_study / "notebooks").glob("*.ipynb")}
    assert pages == {f"{stem}.html" for stem in executed}
    assert {unquote(link["href"]) for link in index("a") if link["href"].endswith(".html")} == pages
    tables = {path.stem for path in (small_study / "tables").glob("*.md")}
    assert len(index("table")) == len(tables) and tables >= {"T1", "T2", "T3", "T4", "T5", "T6", "findings"}
    figures = {path.stem for path in (small_study / "figures").glob("*.png")}
    assert {image["alt"] for image in index("img")} == figures
    text = index.get_text()
    run = json.loads((small_study / "results" / "06_paper_tables" / "results.json").read_text())
    assert "Do the paper's claims hold here?" in text
    assert "image_size [64, 32]" in text and f"python: {run['versions']['python']}" in text


def test_pages_need_nothing_from_outside_and_formulas_are_mathml(report):
    for path in report.glob("*.html"):
        page = BeautifulSoup(path.read_text(), "html.parser")
        assert not page("script") and not page("iframe"), path.name
        assert not [tag for tag in page.find_all(src=True) if not tag["src"].startswith("data:")], path.name
        assert not [link for link in page("link") if "stylesheet" in link.get("rel", [])], path.name
        in_words = " ".join(tag.get_text() for tag in page(["p", "li"]) for math in [tag("math")] if not math)
        assert not re.search(r"\\[a-z]+|\$\$", in_words), path.name
        assert page("math") or path.stem == "index", path.name


def test_pages_read_on_a_phone_without_errors_or_missing_images(report, chromium):
    page = chromium.new_page(viewport={"width": 390, "height": 844})
    said, asked = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    for path in sorted(report.glob("*.html")):
        page.goto(path.as_uri())
        assert page.evaluate("document.scrollingElement.scrollWidth") <= 390, path.name
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)"), path.name
    page.close()
    assert said == [] and all(url.startswith(("file:", "data:")) for url in asked)


def test_a_study_that_has_not_run_says_what_to_run(tmp_path, capsys):
    (tmp_path / "quick").mkdir()
    assert main(["quick", "--runs", str(tmp_path)]) == 2
    assert "run_all.py quick" in capsys.readouterr().err
    assert not (tmp_path / "quick" / "report").exists()


def test_a_new_report_takes_the_place_of_the_old_one(tmp_path):
    import nbformat

    root = tmp_path / "study"
    (root / "notebooks").mkdir(parents=True)
    cells = [nbformat.v4.new_markdown_cell("Half is $\\frac{1}{2}$, a price is `$5`.")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks" / "01_look.ipynb")
    build_report(root)
    (root / "report" / "old.html").write_text("old")
    folder = build_report(root)
    assert sorted(path.name for path in folder.iterdir()) == ["01_look.html", "index.html"]
    page = (folder / "01_look.html").read_text()
    assert "<mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn></mrow></mfrac>" in page and "<code>$5</code>" in page
    assert (folder / "index.html").read_text().count("has not made this table") == 6
