"""`python -P -m reid_utils.paper.report STUDY`: a study's executed notebooks as pages to send away, the tables first.

Every page stands alone: pictures and style lie within it, formulas are MathML, and no script is left, so that it reads
the same from a disk, offline and on a phone.
"""

import argparse
import base64
import html
import shutil
import sys
from pathlib import Path
from urllib.parse import quote

from reid_utils.files import is_clutter, read_json, write_text
from reid_utils.paper.results import REPOSITORY, in_markdown

_STATIC = ["text/html", "text/markdown", "image/svg+xml", "text/latex", "image/png", "image/jpeg", "text/plain"]
_STYLE = """
body { max-width: 62rem; margin: 0 auto !important; padding: 0 0.8rem 3rem !important; }
img, svg { max-width: 100%; height: auto; }
.jp-InputPrompt, .jp-OutputPrompt, .jp-Collapser { display: none !important; }
.jp-Cell { padding: 0.2rem 0 !important; }
.jp-OutputArea-output, .jp-InputArea-editor, .jp-RenderedHTMLCommon { overflow-x: auto; min-width: 0; }
.jp-RenderedHTMLCommon { overflow-wrap: anywhere; padding-right: 0 !important; }
.jp-RenderedHTMLCommon table { margin-left: 0; overflow-wrap: normal; }
math[display="block"] { overflow-x: auto; }
"""


def build_report(root):
    """Write a study's report into root/report, in place of an earlier one, and return that folder (Path).

    root: the study's folder, such as runs/quick. index.html is the executed notebook 06 below its forest plot and the
    links to the other executed notebooks, a page each. Raises ValueError where the study has executed no notebook.
    """
    import nbformat

    root = Path(root)
    executed = sorted((root / "notebooks").glob("*.ipynb"))
    executed = [path for path in executed if not is_clutter(path.name)]
    notebooks = [path for path in executed if not path.stem.endswith((".running", ".failed"))]
    if not notebooks:
        raise ValueError(f"{root} holds no executed notebook; run `python run_all.py {root.name}` first")
    books = {path.stem: nbformat.read(path, as_version=4) for path in notebooks}
    index = books.pop("06_paper_tables", nbformat.v4.new_notebook())
    index.cells.insert(0, nbformat.v4.new_markdown_cell(_opening(root, books)))
    export, part = _exporter(), root / ".report.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for name, book in books.items():
        book.cells.insert(0, nbformat.v4.new_markdown_cell("[← report](index.html)"))
        write_text(part / f"{name}.html", _page(export, book, name))
    write_text(part / "index.html", _page(export, index, f"Report of the {root.name} study"))
    shutil.rmtree(root / "report", ignore_errors=True)
    return part.replace(root / "report")


def _opening(root, names):
    """What the report begins with, in Markdown: the question, the forest plot, links to the pages."""
    study = read_json(root / "study.json") or {}
    links = "\n".join(f"- [{name}]({quote(name)}.html)" for name in names)
    forest = root / "figures" / "06_paper_tables_forest.png"
    data = base64.b64encode(forest.read_bytes()).decode() if forest.exists() else ""
    picture = f'<img alt="All rows of the tables with their intervals" src="data:image/png;base64,{data}">'
    title, question = in_markdown(f"Report of the {root.name} study"), in_markdown(study.get("question", ""))
    parts = [f"# {title}", question, picture if data else "", links]
    return "\n\n".join(filter(None, parts))


def _exporter():
    """nbconvert's HTML exporter with formulas as MathML and static outputs only."""
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        """nbconvert's own, but for formulas."""

        def block_math(self, body):
            return _formula(body, "block")

        def inline_math(self, body):
            return _formula(body, "inline")

    def to_html(source):
        return MarkdownWithMath(renderer=Renderer(escape=False, anchor_link_text="")).render(source)

    exporter = HTMLExporter(filters={"markdown2html": to_html})
    exporter.config.NbConvertBase.display_data_priority = _STATIC
    return exporter


def _formula(text, display):
    """LaTeX (str) as MathML; as it is where it is none, such as a folder's name with two $ in it."""
    import latex2mathml.converter

    try:
        return latex2mathml.converter.convert(text, display=display)
    except Exception:  # it raises whatever its parser stumbles over
        return html.escape(f"${text}$")


def _page(exporter, notebook, title):
    """One notebook as a page of HTML (str) without scripts."""
    from bs4 import BeautifulSoup

    notebook.metadata.pop("widgets", None)
    text, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    soup = BeautifulSoup(text, "html.parser")
    for script in soup("script"):
        script.decompose()
    for image in soup("img", alt="No description has been provided for this image"):  # nbconvert's
        image["alt"] = image.find_previous(["h1", "h2", "h3"]).get_text()
    style = soup.new_tag("style")
    style.string = _STYLE
    soup.head.append(style)
    return str(soup).replace(f"{REPOSITORY}/", "")  # the sender's own folders are left out


def main(arguments=None):
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(prog="python -P -m reid_utils.paper.report", description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", default="quick", help="a folder in runs/ (default: quick)")
    parser.add_argument("--runs", default=REPOSITORY / "runs", type=Path, help="where results lie (default: runs/)")
    options = parser.parse_args(arguments)
    sys.stdout.reconfigure(errors="backslashreplace")  # names in any script, on a terminal of any encoding
    try:
        folder = build_report(options.runs / options.study)
    except (ValueError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    pages = list(folder.iterdir())
    print(f"{folder / 'index.html'}: {len(pages)} pages, {sum(p.stat().st_size for p in pages) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
