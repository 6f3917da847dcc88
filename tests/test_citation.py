"""What README gives to cite is what CITATION.cff says."""

import re

import yaml
from conftest import ROOT


def test_the_bibtex_of_readme_agrees_with_the_citation_file():
    ours = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = ours["references"]
    (shown,) = re.findall(r"```bibtex\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    entries = [dict(re.findall(r"(\w+) = \{+(.*?)\}", entry)) for entry in shown.split("@")[1:]]
    assert [entry["title"] for entry in entries] == [paper["title"], ours["title"]]
    assert entries[0]["doi"] == paper["doi"] and entries[0]["year"] == str(paper["year"])
    assert entries[1]["author"] == ours["authors"][0]["name"] and entries[1]["version"] == ours["version"]
