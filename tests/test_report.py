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


FINDINGS = """\
claim,compared,verdict,difference,diff low,diff high,regime
re-ranking helps,net: hard against none,supported,8.1,6.0,10.1,outside (50.2 mAP here)
augmentation helps,flip against none,open,1.0,-1.0,3.0,outside (50.2 mAP here)
"""


@pytest.fixture
def small_report(tmp_path):
    """The pages of a study of two notebooks that were not run: {name: BeautifulSoup}."""
    import nbformat
    import pandas as pd

    code, words, root = nbformat.v4.new_code_cell, nbformat.v4.new_markdown_cell, tmp_path / "study"
    wide = pd.DataFrame(
        {name: [1.5] for name in ("no.", "row", "mAP", "rank-1", "rank-5", "mINP", "seeds", "difference")}
    )
    table = nbformat.v4.new_output("execute_result", {"text/html": wide.to_html(index=False)}, execution_count=1)
    small = nbformat.v4.new_output("execute_result", {"text/html": wide[["no.", "row"]].to_html(index=False)})
    cells = [words("# 02 · Training\n\nA question."), words("## Scores"), code("x = secret", outputs=[table, small])]
    cells += [words("## What we see"), code("say()", outputs=[nbformat.v4.new_output("stream", text="it works")])]
    (root / "notebooks").mkdir(parents=True)
    for name in ("02_training__net_infonce", "06_paper_tables"):
        nbformat.write(nbformat.v4.new_notebook(cells=cells), root / "notebooks" / f"{name}.ipynb")
    for name, content in (("tables/findings.csv", FINDINGS.encode()), ("figures/05b_errors__a_ranked_lists.png", b"P")):
        (root / name).parent.mkdir()
        (root / name).write_bytes(content)
    return {path.stem: BeautifulSoup(path.read_text(), "html.parser") for path in build_report(root).iterdir()}


def test_the_report_begins_with_the_findings_one_picture_and_the_contents(small_report):
    text = small_report["index"].body.get_text(" ", strip=True)
    wanted = ["Report of the study study", "Re-ranking helps.", "✓ +8.1 (6.0 to 10.1)", "Augmentation helps."]
    wanted += ["green frames", "02 · Training – net, infonce", "What we see", "Scores", "A question."]
    assert [wanted[n] for n in sorted(range(len(wanted)), key=lambda n: text.index(wanted[n]))] == wanted
    assert len(small_report["index"]("img")) == 1 and "02_training__net" not in text


def test_a_page_begins_with_what_its_notebook_saw_and_folds_code_and_wide_tables(small_report):
    page = small_report["02_training__net_infonce"]
    assert page.title.get_text() == "02 · Training – net, infonce"
    headings = [heading.get_text() for heading in page("h2")]
    assert headings == ["What we see", "Scores"]
    sections = [link["href"] for link in page.nav("a")]
    assert [unquote(link) for link in sections] == [f"#{heading['id']}" for heading in page("h2")]
    (code,) = (tag for tag in page("details") if "secret" in tag.get_text())
    assert code.summary.get_text() == "code" and not code.has_attr("open")
    assert "it works" not in " ".join(tag.get_text() for tag in page("details"))
    short, whole, small = page("table")
    assert [cell.get_text() for cell in short("th")] == ["row", "mAP", "difference"] and len(short("td")) == 3
    assert whole.parent.summary.get_text() == "all 8 columns" and len(whole("td")) == 8
    assert small.find_parent("details") is None and len(small("th")) == 2
