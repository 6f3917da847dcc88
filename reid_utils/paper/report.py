"""`python -m reid_utils.paper.report STUDY`: a study's tables, figures and executed notebooks as pages to send away.

Every page stands alone: pictures and style lie within it, formulas are MathML, and no script is left, so that it reads
the same from a disk, offline and on a phone.
"""

import argparse
import base64
import hashlib
import html
import shutil
import sys
from pathlib import Path
from urllib.parse import quote

from reid_utils.files import read_json
from reid_utils.paper.publish import TABLES
from reid_utils.paper.results import REPOSITORY, load_results
from reid_utils.study.study_file import StudyError

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
    """Write a study's report into root/report and return that folder (Path).

    root: the study's folder, such as runs/quick. index.html holds findings, tables, figures, settings and environment;
    each executed notebook has a page. What an earlier report left there goes. Raises StudyError where the study has
    executed no notebook.
    """
    import nbformat

    root = Path(root)
    executed = sorted((root / "notebooks").glob("*.ipynb"))
    notebooks = [path for path in executed if not path.stem.endswith((".running", ".failed"))]
    if not notebooks:
        raise StudyError(f"{root} holds no executed notebook; run `python run_all.py {root.name}` first")
    export = _exporter()
    part = root / ".report.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for path in notebooks:
        notebook = nbformat.read(path, as_version=4)
        notebook.cells.insert(0, nbformat.v4.new_markdown_cell("[← report](index.html)"))
        (part / f"{path.stem}.html").write_text(_page(export, notebook, path.stem), encoding="utf-8")
    index = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in _index(root, notebooks)])
    (part / "index.html").write_text(_page(export, index, f"Report of the {root.name} study"), encoding="utf-8")
    shutil.rmtree(root / "report", ignore_errors=True)
    return part.replace(root / "report")


def _exporter():
    """nbconvert's HTML exporter with formulas as MathML and static outputs only."""
    import latex2mathml.converter
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    class Renderer(IPythonRenderer):
        """nbconvert's own, but for formulas."""

        def block_math(self, body):
            return latex2mathml.converter.convert(body, display="block")

        def inline_math(self, body):
            return latex2mathml.converter.convert(body)

    def to_html(source):
        return MarkdownWithMath(renderer=Renderer(escape=False, anchor_link_text="")).render(source)

    exporter = HTMLExporter(filters={"markdown2html": to_html})
    exporter.config.NbConvertBase.display_data_priority = _STATIC
    return exporter


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
    return str(soup).replace(f"{REPOSITORY}/", "")  # where the sender keeps the repository is nobody's business


def _index(root, notebooks):
    """The index page as texts in Markdown, one a section."""
    results = [load_results(path.parent) for path in sorted((root / "results").glob("*/results.json"))]
    study = read_json(root / "study.json") or {}
    data = ", ".join(sorted({str(r["values"]["note"]) for r in results if "note" in r["values"]}))
    yield f"# Report of the {root.name} study\n\n{study.get('question', '')}\n\nData: {data or study.get('data', '')}."
    found = {path.stem: path.read_text(encoding="utf-8") for path in sorted((root / "tables").glob("*.md"))}
    if "findings" in found:
        yield f"## Do the paper's claims hold here?\n\n{found.pop('findings')}"
    yield "## Notebooks, as executed\n\n" + "\n".join(f"- [{p.stem}]({quote(p.stem)}.html)" for p in notebooks)
    yield "## Tables"
    for name, asked, *_ in TABLES:
        yield f"### {name} · {asked}\n\n{found.pop(name, 'This study has not made this table.')}"
    for name, table in found.items():
        yield f"### {name}\n\n{table}"
    yield "## Figures"
    for path in sorted((root / "figures").glob("*.png")):
        yield f"### {path.stem}\n\n{_picture(path)}"
    yield "## Settings of each run\n\n" + "\n".join(_settings(result) for result in results)
    yield "## Environment\n\n" + "\n".join(f"- {line}" for line in _environment(results))


def _picture(path):
    """A PNG file as an <img> that holds it."""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{html.escape(path.stem)}" src="data:image/png;base64,{data}">'


def _settings(result):
    """One run's settings as an item of a list."""
    settings = ", ".join(f"{name} `{value}`" for name, value in result["settings"].items())
    return f"- **{result['run']}**: {settings or 'none'} ({result['seconds']:.0f} s, {result['peak_memory_mib']} MiB)"


def _environment(results):
    """Where and with what the runs were made, as lines of Markdown; differing values are all named."""
    facts = {
        "device": {result["device"] for result in results},
        "commit": {_commit(result["git"]) for result in results},
        "data fingerprint": {result["data_fingerprint"] for result in results},
    }
    for result in results:
        for name, version in result["versions"].items():
            facts.setdefault(name, set()).add(version)
    for name, values in facts.items():
        yield f"{name}: {', '.join(sorted(map(str, values)))}"
    lock = REPOSITORY / "requirements.lock"
    if lock.exists():
        yield f"requirements.lock: SHA-256 {hashlib.sha256(lock.read_bytes()).hexdigest()}"


def _commit(git):
    """A commit, and whether files differed from it."""
    return f"{git['commit']}{' with changes' if git['dirty'] else ''}" if git["commit"] else "not in git"


def main(arguments=None):
    """The command line -> exit status."""
    parser = argparse.ArgumentParser(prog="python -m reid_utils.paper.report", description=__doc__.splitlines()[0])
    parser.add_argument("study", nargs="?", default="quick", help="a folder in runs/ (default: quick)")
    parser.add_argument("--runs", default=REPOSITORY / "runs", type=Path, help="where results lie (default: runs/)")
    options = parser.parse_args(arguments)
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
