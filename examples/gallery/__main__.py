"""Run the gallery, write a page and a picture of each program: python -m examples.gallery [--quick] [name ..]."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import time
from pathlib import Path

import matplotlib
import torch

PROGRAMS = ("quadratures", "any_width", "pitch_tracker", "on_request", "growing", "two_processes")
FOLDER = Path(__file__).parents[2] / "docs" / "gallery"
PAGE = """\
# {title}

{text}

![{title}]({name}.png)

What it printed, in {seconds:.1f} s on one thread:

```text
{printed}
```

The program, [examples/gallery/{name}.py](../../examples/gallery/{name}.py):

```python
{code}
```
"""

INDEX = """\
# Gallery

Short programs, each run by `make gallery`, which writes these pages and their pictures.

| | |
|---|---|
{rows}
"""


def run(name: str, folder: Path, quick: bool) -> None:
    """Run one program; write its page and its picture."""
    program = importlib.import_module(f"examples.gallery.{name}")
    title, _, text = program.__doc__.strip().partition("\n")
    printed, start = io.StringIO(), time.perf_counter()
    torch.manual_seed(0)
    with contextlib.redirect_stdout(printed):
        figure = program.main(quick)
    seconds = time.perf_counter() - start
    figure.savefig(folder / f"{name}.png", dpi=110, metadata={"Software": None})
    _, _, code = Path(program.__file__).read_text().strip().removeprefix('"""').partition('"""')
    parts = {
        "title": title.rstrip("."),
        "text": text.strip(),
        "printed": printed.getvalue().rstrip(),
        "seconds": seconds,
    }
    (folder / f"{name}.md").write_text(PAGE.format(name=name, code=code.strip(), **parts))
    print(f"{seconds:5.1f} s  {folder / name}.md", flush=True)


def index_row(name: str, folder: Path) -> str:
    """A row of the first page, with the title of a page that is there."""
    title = (folder / f"{name}.md").read_text().partition("\n")[0].removeprefix("# ")
    return f"| [{title}]({name}.md) | [![{title}]({name}.png)]({name}.md) |"


def main() -> None:
    """Run all programs, or those that are named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"some of {', '.join(PROGRAMS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="few steps: to see that everything runs")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where pages and pictures go")
    options = parser.parse_args()
    if unknown := set(options.names) - set(PROGRAMS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PROGRAMS)}")
    matplotlib.use("Agg")
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.names or PROGRAMS:
        run(name, options.folder, options.quick)
    written = [name for name in PROGRAMS if (options.folder / f"{name}.md").exists()]
    rows = "\n".join(index_row(name, options.folder) for name in written)
    (options.folder / "index.md").write_text(INDEX.format(rows=rows))


if __name__ == "__main__":
    main()
