import re
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup

from tools.report import build_report, main


@pytest.fixture(scope="module")
def report(small_study):
    return build_report(small_study)


def test_the_report_holds_all_tables_and_links_every_notebook(report, small_study):
    index = BeautifulSoup((report / "index.html").read_text(), "html.parser")
    pages = {path.name for path in report.iterdir()} - {"index.html"}
    executed = {path.stem for path in (small_study / "notebooks").glob("*.ipynb")}
    assert pages == {f"{stem}.html" for stem in executed - {"06_paper_tables"}}
    assert {unquote(link["href"]) for link in index("a") if link["href"].endswith(".html")} == pages
    if "06_paper_tables" in executed:
        assert len(index("table")) >= 7  # T1 to T6 and the findings
        assert "Do the paper's claims hold here?" in index.get_text()


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


def test_a_study_of_any_name_has_a_report_that_shows_it(tmp_path, capsys):
    import nbformat

    name = "игроки <b>$\\frac$ *x* `y"
    root = tmp_path / name
    (root / "notebooks").mkdir(parents=True)
    cells = [nbformat.v4.new_markdown_cell(f"This is {name}, {name}.")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks" / "01_look.ipynb")
    assert main([name, "--runs", str(tmp_path)]) == 0
    index = BeautifulSoup((root / "report" / "index.html").read_text(), "html.parser")
    assert index("h1")[0].get_text() == index("title")[0].get_text() == f"Report of the {name} study"
    assert "$\\frac" in (root / "report" / "01_look.html").read_text()


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
    index = BeautifulSoup((folder / "index.html").read_text(), "html.parser")
    assert [link["href"] for link in index("a") if link["href"].endswith(".html")] == ["01_look.html"]
    assert not index("img")
