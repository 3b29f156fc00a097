"""What the documentation's own code makes of the registry and of kept results."""

import json
import re

import pytest

from benchmarks import tables
from benchmarks.measure import common
from benchmarks.tables import pictures

load_config = pytest.importorskip("mkdocs.config").load_config
hooks = pytest.importorskip("docs.hooks")
METHODS = hooks.METHODS


def test_the_page_of_collective_says_what_it_does():
    page = hooks.method_page(METHODS["collective"])
    for word in ("cues", "Ridge regression", "Convolution", "guided filter"):
        assert word in page
    assert "AdamW" not in page
    (row,) = [line for line in hooks.methods_table().splitlines() if "[collective]" in line]
    assert "gcn" not in row
    assert "convolution" in row
    assert "100 steps of AdamW" in hooks.method_page(METHODS["unseggnet"])

    # Scores over other images are other tables.
    for name in ("deepcut", "unsegmedgat", "collective"):
        found = hooks._scores(name)
        assert found
        for title, rows in found.items():
            assert len({row["images"] for row in rows}) == 1 or title == "All images of each set"
        assert ("All images of each set" in found) == (name == "collective")


def test_pictures_are_those_of_the_code(monkeypatch):
    monkeypatch.setattr("sys.argv", ["pictures", "--check"])
    pictures.main()
    sizes = {path.stem: path.stat().st_size for path in pictures.IMAGES.glob("*/*.webp")}
    assert sizes.keys() == METHODS.keys() | pictures.GALLERY.keys()
    assert max(sizes.values()) <= 40_000
    # Comments and docstrings make none old.
    before = 'def f(x):\n    """Old."""\n    return x  # old\n'
    assert pictures.code_of(before) == pictures.code_of('def f(x):\n  "New."\n\n  return (x)')
    assert pictures.code_of(before) != pictures.code_of("def f(x):\n    return -x\n")


def test_the_page_of_a_method_says_where_it_fails():
    record = json.loads(pictures.RECORD.read_text())
    for name, method in METHODS.items():
        shown = hooks.method_page(method).partition("## How it works")[0]
        failed = [stem for stem, value in record["ious"][name].items() if value < 0.5]
        assert f"images/methods/{name}.webp" in shown
        assert ("a failure: " + ", ".join(failed) in shown) == bool(failed)


def test_tables_plots_and_scores_are_those_of_the_kept_results(monkeypatch):
    monkeypatch.setattr("sys.argv", ["tables", "--check"])
    tables.main()


def test_a_plot_is_put_into_the_page_with_scores_on_its_axis():
    for name, draw in tables.plots.PLOTS.items():
        drawing = draw(common.RESULTS)
        page = hooks.on_page_markdown(f"![What it shows](images/{name}.svg)", None, None, None)
        assert page.startswith('<figure class="plot"><svg ')
        assert "What it shows" in page
        # Legible on light and dark pages: text has the colour of the page's text.
        assert "currentColor" in drawing
        assert not re.search(r'fill="(#000|black|#fff|white)', drawing)
        inside = [float(x) for x in re.findall(r'cx="([\d.]+)"', drawing)]
        assert 0 < min(inside) <= max(inside) < tables.plots.WIDTH
    drawing = tables.plots.quality(common.RESULTS)
    zero, hundred = (
        float(re.search(rf'<text x="([\d.]+)"[^>]*>{tick}</text>', drawing)[1]) for tick in (0, 100)
    )
    runs = [tables._read(path) for path in sorted((common.RESULTS / "bench").glob("*-all.json"))]
    drawn = [float(x) for x in re.findall(r'cx="([\d.]+)" cy="[\d.]+" r="6"', drawing)]
    expected = [zero + run["methods"]["collective"]["miou"] * (hundred - zero) for run in runs]
    assert sorted(drawn) == pytest.approx(sorted(expected), abs=0.1)


def test_the_site_links_to_the_repository_and_its_issues(monkeypatch):
    config = load_config(str(hooks.ROOT / "mkdocs.yml"))
    monkeypatch.delenv("GITHUB_REPOSITORY", raising=False)
    pages = len(hooks.on_config(config).nav)
    monkeypatch.setenv("GITHUB_REPOSITORY", "someone/unseg_jax")
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://example.org")
    repository = "https://example.org/someone/unseg_jax"
    links = [{"Repository": repository}, {"Report an issue": f"{repository}/issues"}]
    assert hooks.on_config(config).nav[pages:] == links
    assert not config.repo_url  # or the theme's script would ask GitHub for stars


def test_short_names_stay_on_one_line_and_notebooks_are_pages_with_their_outputs():
    page = "<p><code>--shard I/N</code></p><pre><code>unseg-jax x.png --out=y\n</code></pre>"
    found = hooks.on_page_content(page, None, None, None)
    expected = page.replace("<code>--shard", '<code class="whole">--shard')
    assert found == expected.replace("--out", '<span class="whole">--out</span>')
    shown = {"image/png": "iVBO\nRw==", "text/plain": "x"}
    outputs = [
        {"output_type": "stream", "text": ["1\n"]},
        {"output_type": "display_data", "data": shown},
    ]
    cells = [
        {"cell_type": "markdown", "source": ["# A title"]},
        {"cell_type": "code", "source": ["print(1)\n", "draw()"], "outputs": outputs},
    ]
    assert hooks.notebook_page({"cells": cells}) == (
        "# A title\n\n```python\nprint(1)\ndraw()\n```\n\n``` { .text .output }\n1\n```\n\n"
        "![What the code above shows](data:image/png;base64,iVBORw==)\n"
    )
