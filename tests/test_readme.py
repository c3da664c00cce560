"""README says what is so: its example runs and prints what it shows, its links exist, its numbers are the CSV's."""

import copy
import doctest
import functools
import json
import re
import runpy
import sys
import types
from pathlib import Path

import pytest
import torch

from inn_kernels import ops

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_example_prints_what_it_shows():
    blocks = "\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.S))
    test = doctest.DocTestParser().get_doctest(blocks, {}, "README", "README.md", 0)
    assert test.examples
    assert doctest.DocTestRunner().run(test).failed == 0


PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    *(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md")),
)


@pytest.mark.parametrize("page", PAGES)
def test_files_named_exist(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#:]+)[^)]*\)", text)
    paths = re.findall(r"`((?:inn_kernels|python_api|csrc|tests|bench|docs|examples)/[\w./-]+)`", text)
    missing = [p for p in links + paths if not (ROOT / page).parent.joinpath(p).exists() and not (ROOT / p).exists()]
    assert not missing
    assert not [p for p in links if (ROOT / page).parent.joinpath(p).is_dir()]  # which a site cannot show


def test_every_page_is_in_the_sites_navigation():
    site = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    pages = {str(page.relative_to(ROOT).with_suffix("")) for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]}
    assert {"README", *site["PAGES"], *(f"docs/gallery/{name}" for name in site["GALLERY"])} == pages


def test_results_are_the_csvs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delitem(sys.modules, "bench", raising=False)
    from bench import report

    assert report.redrawn(TEXT) == TEXT
    page = (ROOT / "docs" / "bench.md").read_text()
    assert report.redrawn_page(page) == page


def test_networks_are_the_records(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.studies import report

    records = report.load()
    assert set(report.STUDIES) <= set(records)
    sections = report.sections(records)
    for page in (ROOT / "README.md", ROOT / "docs" / "paper.md"):
        assert report.redrawn(page.read_text(), sections) == page.read_text()
    assert "<!-- crepe: written" in TEXT
    assert "<!-- fashion-vgg: written" in (ROOT / "docs" / "paper.md").read_text()


def test_what_it_opens_with_is_the_records(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import front

    assert front.redrawn(TEXT) == TEXT
    assert TEXT.index("docs/figures/front.svg") < TEXT.index(front.BEGIN) < TEXT.index("## ")
    matplotlib = pytest.importorskip("matplotlib")
    committed = front.FIGURE.read_text()
    if f"Matplotlib v{matplotlib.__version__}" not in committed:
        pytest.skip("the committed picture was drawn by another matplotlib")
    front.draw(front.records()[0], json.loads(front.LATENCY.read_text()), tmp_path / "front.svg")
    assert (tmp_path / "front.svg").read_text() == committed


@pytest.mark.skipif(ops.compiled_missing is not None or torch.cuda.is_available(), reason="written with cpp, on a CPU")
def test_what_runs_where_was_tried(monkeypatch, threads):
    threads(1)
    monkeypatch.syspath_prepend(str(ROOT))
    from bench import support

    page = support.PAGE.read_text()
    assert support.redrawn(page) == page
    assert "differs" not in page


class Network(torch.nn.Module):
    """What docs/coming_from.md calls net: its layers have the names that the page uses."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = torch.nn.Conv2d(3, 16, 3), torch.nn.BatchNorm2d(16), torch.nn.Linear(16, 10)
        self.conv2 = torch.nn.Conv2d(16, 16, 3)

    def forward(self, x):
        return self.fc(self.conv2(self.bn(self.conv(x)).relu()).relu().mean((2, 3)))


def test_the_calls_beside_those_of_others_run(threads):
    import integral_nn

    threads(1)
    inn = types.SimpleNamespace(**vars(integral_nn))
    inn.convert = functools.partial(integral_nn.convert, time_limit=0.1)
    rows = re.findall(r"^\|.*\| (.*) \|$", (ROOT / "docs" / "coming_from.md").read_text(), re.M)
    calls = [span for row in rows for span in re.findall(r"`([^`]+)`", row)]
    calls = [call for call in calls if re.match(r"(model = )?(inn|model)\.", call)]
    assert len(calls) > 25
    net, x = Network().eval(), torch.randn(2, 3, 8, 8)
    model = inn.convert(net, x, fold=False)
    known = {"net": net, "x": x, "batches": [x] * 2, "loss_fn": lambda model, batch: model(batch).square().mean()}
    for call in calls:
        exec(call, known | {"inn": inn, "model": copy.deepcopy(model), "function": torch.sin})


def test_every_public_name_is_in_the_reference():
    import integral_nn as inn

    shown = re.findall(r"auto(?:function|class|exception):: (\w+)", (ROOT / "docs" / "api.md").read_text())
    assert sorted(shown) == sorted(inn.__all__)


def test_it_can_be_read_at_one_sitting():
    assert len(TEXT.splitlines()) < 120


def test_figures_are_the_csvs(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(ROOT))
    figures = pytest.importorskip("bench.figures")
    from bench.harness import RESULTS, read_csv

    committed = (ROOT / "docs" / "figures" / "growth.svg").read_text()
    if f"Matplotlib v{figures.matplotlib.__version__}" not in committed:
        pytest.skip("the committed figure was drawn by another matplotlib")
    figures.draw(read_csv(RESULTS / "cpu.csv"), tmp_path)
    assert (tmp_path / "growth.svg").read_text() == committed
