"""`python tools/report.py STUDY`: a study's executed notebooks as pages to send away, the tables first.

Every page stands alone: pictures and style lie within it, formulas are MathML, and no script is left, so that it reads
the same from a disk, offline and on a phone.
"""

import argparse
import html
import shutil
import sys
from pathlib import Path
from urllib.parse import quote

from reid_utils.files import write_text
from reid_utils.paper.results import REPOSITORY

_STATIC = ["text/html", "text/markdown", "image/svg+xml", "text/latex", "image/png", "image/jpeg", "text/plain"]
_STYLE = """<style>
body { max-width: 62rem; margin: 0 auto !important; padding: 0 0.8rem 3rem !important; }
img, svg { max-width: 100%; height: auto; }
.jp-InputPrompt, .jp-OutputPrompt, .jp-Collapser { display: none !important; }
.jp-OutputArea-output, .jp-InputArea-editor, .jp-RenderedHTMLCommon { overflow-x: auto; min-width: 0; }
.jp-RenderedHTMLCommon { overflow-wrap: anywhere; padding-right: 0 !important; }
.jp-RenderedHTMLCommon table { margin-left: 0; overflow-wrap: normal; }
math[display="block"] { overflow-x: auto; }
</style>"""


def build_report(root):
    """Write a study's report into root/report, in place of an earlier one, and return that folder (Path).

    root: the study's folder, such as runs/quick. index.html is the executed notebook 06 below links to the other
    executed notebooks, a page each. Raises ValueError where the study has executed no notebook.
    """
    import nbformat

    root = Path(root)
    paths = sorted((root / "notebooks").glob("[!.]*.ipynb"))
    executed = [path for path in paths if not path.stem.endswith((".running", ".failed"))]
    if not executed:
        raise ValueError(f"{root} holds no executed notebook; run `python run_all.py {root.name}` first")
    books = {path.stem: nbformat.read(path, as_version=4) for path in executed}
    title = html.escape(f"Report of the {root.name} study")
    index = books.pop("06_paper_tables", nbformat.v4.new_notebook())
    links = "".join(f"<li><a href='{quote(name)}.html'>{html.escape(name)}</a></li>" for name in books)
    pages = {name: _page(book, name, "<a href='index.html'>← report</a>") for name, book in books.items()}
    pages["index"] = _page(index, f"Report of the {root.name} study", f"<h1>{title}</h1><ul>{links}</ul>")
    shutil.rmtree(root / "report", ignore_errors=True)
    for name, page in pages.items():
        write_text(root / "report" / f"{name}.html", page)
    return root / "report"


def _page(notebook, title, opening):
    """One notebook as a page of HTML (str) without scripts, below the HTML `opening`."""
    from bs4 import BeautifulSoup
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(filters={"markdown2html": _markdown})
    exporter.config.NbConvertBase.display_data_priority = _STATIC
    notebook.metadata.pop("widgets", None)
    text, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": title}})
    page = BeautifulSoup(text, "html.parser")
    for script in page("script"):
        script.decompose()
    page.head.append(BeautifulSoup(_STYLE, "html.parser"))
    page.body.insert(0, BeautifulSoup(opening, "html.parser"))
    return str(page).replace(f"{REPOSITORY}/", "")  # the sender's own folders are left out


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
