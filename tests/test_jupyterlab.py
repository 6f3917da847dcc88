"""The notebooks in a real browser: JupyterLab as `make lab` starts it, over a copy of the repository."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

RUN_NUMBERS = """
() => [...document.querySelectorAll(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell .jp-InputPrompt")]
      .map(prompt => /\\d+/.test(prompt.textContent) ? +prompt.textContent.match(/\\d+/)[0] : 0)
"""
IDLE = "() => document.querySelector('#jp-main-statusbar')?.innerText.includes('| Idle')"
SHOWN = ".jp-NotebookPanel:not(.lm-mod-hidden) "
ERRORS = SHOWN + '.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.error"]'
PATIENCE = 180_000  # milliseconds; a busy machine imports slowly


@pytest.fixture(scope="module")
def lab(small_study, tmp_path_factory):
    """A running JupyterLab server: its url and token."""
    tree, private = small_study.parents[1], tmp_path_factory.mktemp("jupyter")
    environment = {
        **os.environ,
        "PYTHONPATH": str(tree),
        "JUPYTER_CONFIG_PATH": str(tree / ".jupyter"),
        "JUPYTER_CONFIG_DIR": str(private / "config"),
        "JUPYTER_RUNTIME_DIR": str(private / "runtime"),
        "IPYTHONDIR": str(private / "ipython"),
    }
    environment.pop("MPLBACKEND")  # the kernel draws inline
    settings = private / "config/lab/user-settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"windowingMode": "none"}')  # else cells out of sight are not in the page
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=localhost", "--port=0"]
    with (private / "log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--notebook-dir=."], cwd=tree, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:
        end = time.monotonic() + PATIENCE / 1000
        while not any(path.read_text().endswith("}") for path in (private / "runtime").glob("jpserver-*.json")):
            assert server.poll() is None and time.monotonic() < end, (private / "log").read_text()[-3000:]
            time.sleep(0.1)
        yield json.loads(next((private / "runtime").glob("jpserver-*.json")).read_text())
    finally:
        server.terminate()
        server.wait(30)
        if any((private / "runtime").glob("kernel-*.json")):
            os.killpg(server.pid, signal.SIGKILL)


def _open(page, lab, name, stem):
    """Follow a link of the page that leads through the notebooks, and wait for its kernel."""
    page.click('.lm-TabBar-tabLabel:text-is("README.md")')
    page.click(f'.jp-MarkdownViewer:visible a:has-text("{name}")')
    page.wait_for_selector(f'.lm-TabBar-tab.lm-mod-current[title*="{stem}"]')
    page.wait_for_selector(f"{SHOWN} .jp-CodeCell")
    deadline = time.monotonic() + PATIENCE / 1000
    while not _has_idle_kernel(lab, stem):
        assert time.monotonic() < deadline, f"{stem} has no kernel"
        page.wait_for_timeout(100)
    page.wait_for_function(IDLE)


def _has_idle_kernel(lab, stem):
    """Whether the server says that the kernel of this notebook waits for work."""
    with urllib.request.urlopen(f"{lab['url']}api/sessions?token={lab['token']}") as answer:
        sessions = json.load(answer)
    return any(stem in session["path"] and session["kernel"]["execution_state"] == "idle" for session in sessions)


def _run_all(page):
    """Start all cells of the notebook shown; returns the number of the last execution before."""
    before = max(page.evaluate(RUN_NUMBERS))
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
    return before


def _finish(page, before):
    """Wait until every cell shown has run after `before`; returns the texts of the errors shown."""
    deadline = time.monotonic() + PATIENCE / 1000
    while min(numbers := page.evaluate(RUN_NUMBERS)) <= before:
        assert time.monotonic() < deadline, f"cells that have not run: {numbers}"
        page.wait_for_timeout(200)
    page.wait_for_function(IDLE)
    return page.locator(ERRORS).all_inner_texts()


def test_notebooks_are_closed_to_who_has_no_token(lab):
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{lab['url']}api/contents")
    assert refused.value.code == 403 and lab["token"]


def test_the_way_through_the_notebooks_opens_them_and_they_run_and_react(lab, chromium):
    page = chromium.new_page(viewport={"width": 1500, "height": 1000})
    page.set_default_timeout(PATIENCE)
    page.goto(f"{lab['url']}lab/tree/notebooks/README.md?token={lab['token']}")
    page.wait_for_selector(".jp-MarkdownViewer table")
    assert page.locator(".jp-MarkdownViewer table a").count() == 8
    _open(page, lab, "05b Errors", "05b_errors")
    _run_all(page)  # goes on while 01 is looked at
    _open(page, lab, "01 Data exploration", "01_data")
    before = _run_all(page)
    assert _finish(page, before) == []
    _change_a_parameter(page)
    page.click('.lm-TabBar-tabLabel:has-text("05b_errors")')
    assert _finish(page, 0) == []
    _touch_the_explorer(page)
    page.close()


def _change_a_parameter(page):
    """Fewer sample players make a lower figure."""
    figure = page.locator(f"{SHOWN} .jp-OutputArea-output img").first
    height = figure.evaluate("image => image.naturalHeight")
    page.locator(f"{SHOWN} .cm-line", has_text="sample_players = 6").click()
    page.keyboard.press("Home")
    page.keyboard.type("sample_players = 2  # ")
    before = _run_all(page)
    assert _finish(page, before) == []
    assert figure.evaluate("image => image.naturalHeight") < height


def _touch_the_explorer(page):
    """Another query shows other images; without re-ranking nothing has moved."""
    view = page.locator(f"{SHOWN} .widget-html-content").first
    view.scroll_into_view_if_needed()
    first = view.inner_text()
    query, run, processing = (page.locator(f"{SHOWN} .widget-dropdown select").nth(k) for k in range(3))
    assert query.inner_text().startswith("AP") and run.input_value() and "▲" in first
    query.select_option(index=3)
    page.wait_for_function("([e, t]) => e.innerText != t", arg=[view.element_handle(), first])
    processing.select_option("none")
    page.wait_for_function("e => !/[▲▼] \\d/.test(e.innerText)", arg=view.element_handle())
    chosen = query.evaluate("list => list.selectedOptions[0].innerText.replaceAll('\\u00a0', ' ')")
    assert chosen.split(" · ")[1] + "," in view.inner_text()  # the list names the query that is shown
    images = view.locator("img")
    assert images.count() == 11
    assert images.evaluate_all("images => images.every(image => image.naturalWidth > 0)")
