"""`python tools/report.py STUDY`: a study's executed notebooks as pages to send away, the findings first.

Each page begins with its contents and what its notebook saw; code and all but six columns of a wide table are folded.
Every page stands alone: pictures and style lie within it, formulas are MathML, and no script is left, so that it reads
the same from a disk, offline and on a phone.
"""

import argparse
import base64
import copy
import html
import shutil
import sys
from pathlib import Path
from urllib.parse import quote

from reid_utils.files import read_json, write_text
from reid_utils.paper.results import REPOSITORY

sys.path.append(str(REPOSITORY))  # run by its name, this file does not see the package it is in
from tools.publish import headlines_of, read_findings

TABLES = "06_paper_tables"
SEEN = "## What we see"
WIDE = 7  # a table of more columns shows those of MATTERS, or its first, and the rest on demand
MATTERS = ("row", "claim", "compared", "verdict", "mAP", "difference", "diff low", "diff high", "p (Holm)")
_STATIC = ["text/html", "text/markdown", "image/svg+xml", "text/latex", "image/png", "image/jpeg", "text/plain"]
_STYLE = """<style>
body { max-width: 62rem; margin: 0 auto !important; padding: 0 0.8rem 3rem !important; }
img, svg { max-width: 100%; height: auto; }
.jp-InputPrompt, .jp-OutputPrompt, .jp-Collapser { display: none !important; }
.jp-OutputArea-output, .jp-InputArea-editor, .jp-RenderedHTMLCommon { overflow-x: auto; min-width: 0; }
.jp-RenderedHTMLCommon { overflow-wrap: anywhere; padding-right: 0 !important; }
.jp-RenderedHTMLCommon table { margin-left: 0; overflow-wrap: normal; }
math[display="block"] { overflow-x: auto; }
details > summary { cursor: pointer; color: #555; padding: 0.2rem 0; }
nav li { margin: 0.1rem 0; }
</style>"""


def build_report(root):
    """Write a study's report into root/report, in place of an earlier one, and return that folder (Path).

    root: the study's folder, such as runs/quick. index.html is the executed notebook 06 below the findings, a picture
    and links to the other executed notebooks, a page each. Raises ValueError where no notebook has been executed.
    """
    import nbformat

    root = Path(root)
    paths = sorted((root / "notebooks").glob("[!.]*.ipynb"))
    executed = [path for path in paths if not path.stem.endswith((".running", ".failed"))]
    if not executed:
        raise ValueError(f"{root} holds no executed notebook; run `python run_all.py {root.name}` first")
    books = {path.stem: nbformat.read(path, as_version=4) for path in executed}
    index = books.pop(TABLES, nbformat.v4.new_notebook())
    names = {run_id: readable(run_id, book) for run_id, book in books.items()}
    back = "<p><a href='index.html'>← report</a></p>"
    pages = {run_id: _page(book, names[run_id], back) for run_id, book in books.items()}
    title = f"Report of the {root.name} study"
    pages["index"] = _page(index, title, f"<h1>{html.escape(title)}</h1>{first_screen(root)}{_links(names)}")
    shutil.rmtree(root / "report", ignore_errors=True)
    for name, page in pages.items():
        write_text(root / "report" / f"{name}.html", page)
    return root / "report"


def readable(run_id, notebook):
    """A run's name (str) in words: its notebook's title, and what sets it apart from the notebook's other runs."""
    stem, _, label = run_id.partition("__")
    first = notebook.cells[0].source.partition("\n")[0] if notebook.cells else ""
    title = first.removeprefix("# ") if first.startswith("# ") else stem
    return " – ".join(filter(None, (title, label.replace("_", ", "))))


def first_screen(root):
    """The findings and one picture of a study as HTML (str); empty where it has neither."""
    parts = []
    if (root / "tables" / "findings.csv").exists():
        data = (read_json(root / "study.json") or {}).get("data", root.name)
        parts.append(_markdown(headlines_of({f"{data} data": read_findings(root)})))
    for picture in sorted((root / "figures").glob("05b_*_ranked_lists.png"))[:1]:
        packed = base64.b64encode(picture.read_bytes()).decode()
        words = "Queries and what is ranked first, before and after re-ranking; green frames are the same player."
        parts.append(f"<p><img alt='ranked lists' src='data:image/png;base64,{packed}'><br><em>{words}</em></p>")
    return "".join(parts)


def _links(names):
    """The contents of a report: a link to each page. names: {run id: in words}."""
    entries = (f"<li><a href='{quote(run_id)}.html'>{html.escape(name)}</a></li>" for run_id, name in names.items())
    summary = f"<summary>All {len(names)} executed notebooks</summary>"
    return f"<details>{summary}<nav><ul>{''.join(entries)}</ul></nav></details>"


def _page(notebook, title, opening):
    """One notebook as a page of HTML (str) without scripts, below the HTML `opening`: what it saw, then the rest."""
    from bs4 import BeautifulSoup
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(filters={"markdown2html": _markdown})
    exporter.config.NbConvertBase.display_data_priority = _STATIC
    notebook.metadata.pop("widgets", None)
    cells = notebook.cells
    seen = next((n for n, cell in enumerate(cells) if cell.source.startswith(SEEN)), len(cells))
    notebook.cells = [*cells[:1], *cells[seen:], *cells[1:seen]]
    text, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    page = BeautifulSoup(text, "html.parser")
    for script in page("script"):
        script.decompose()
    for code in page.select(".jp-CodeCell .jp-Cell-inputWrapper"):
        _fold(page, code, "code")
    for table in page("table"):
        _narrow(page, table)
    page.head.append(BeautifulSoup(_STYLE, "html.parser"))
    headings = [(heading["id"], heading.get_text()) for heading in page("h2") if heading.get("id")]
    sections = "".join(f"<li><a href='#{quote(place)}'>{html.escape(name)}</a></li>" for place, name in headings)
    page.body.insert(0, BeautifulSoup(f"{opening}<nav><ul>{sections}</ul></nav>", "html.parser"))
    return str(page).replace(f"{REPOSITORY}/", "")  # the sender's own folders are left out


def _fold(page, part, summary):
    """Fold a part of a page away, in place, behind a line that opens it."""
    folded, line = page.new_tag("details"), page.new_tag("summary")
    line.string = summary
    part.wrap(folded)
    folded.insert(0, line)


def _narrow(page, table):
    """Leave the columns that matter of a wide table, in place, and fold the whole of it below."""
    rows = [row(["th", "td"]) for row in table("tr")]
    heads = [cell.get_text(strip=True) for cell in rows[0]] if rows else []
    if len(heads) <= WIDE or {len(row) for row in rows} != {len(heads)}:
        return
    wanted = [number for number, head in enumerate(heads) if head in MATTERS] or range(len(heads))
    short = copy.copy(table)
    for row in short("tr"):
        for number, cell in enumerate(row(["th", "td"])):
            if number not in list(wanted)[:6]:
                cell.decompose()
    table.insert_before(short)
    _fold(page, table, f"all {len(heads)} columns")


def _markdown(source):
    """Markdown as HTML, formulas as MathML."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    renderer = IPythonRenderer(escape=False, anchor_link_text="")
    renderer.block_math = lambda body: _formula(body, "block")
    renderer.inline_math = lambda body: _formula(body, "inline")
    return MarkdownWithMath(renderer=renderer).render(source)


def _formula(text, display):
    """LaTeX (str) as MathML; as it is where it is none, such as a folder's name with two $ in it."""
    import latex2mathml.converter

    try:
        return latex2mathml.converter.convert(text, display=display)
    except Exception:  # it raises whatever its parser stumbles over
        return html.escape(f"${text}$")


def main(arguments=None):
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(prog="python tools/report.py", description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", default="quick", help="a folder in runs/ (default: quick)")
    parser.add_argument("--runs", default=REPOSITORY / "runs", type=Path, help="where results lie (default: runs/)")
    options = parser.parse_args(arguments)
    try:
        folder = build_report(options.runs / options.study)
    except (ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    print(folder / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
