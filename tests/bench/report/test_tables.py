"""Tables over several runs, against the runs' own files."""

import json

import numpy as np
import pytest
from scipy.stats import permutation_test

from unseg_jax.bench import BenchError, run
from unseg_jax.bench.__main__ import main
from unseg_jax.bench.report.tables import compare, table

METHODS = ("vit-kmeans", "deepcut")


@pytest.fixture(scope="module")
def runs(settings, tmp_path_factory):
    """Two seeds of two methods, and one run of fewer images."""
    folder = tmp_path_factory.mktemp("runs")
    for name, changes in (("a", {}), ("b", {"seed": 1}), ("few", {"limit": 4})):
        run(settings(folder / name, methods=METHODS, **changes), quiet=True)
    return folder


def means(folder):
    summary = json.loads((folder / "summary.json").read_text())
    return {name: 100 * method["miou"] for name, method in summary["methods"].items()}


def scores(folder, method):
    lines = map(json.loads, (folder / "per_image.jsonl").read_text().splitlines())
    return {line["id"]: line["iou"] or 0.0 for line in lines if line["method"] == method}


def test_seeds_are_a_mean_with_its_deviation_and_the_best_is_bold(runs):
    header, _, *rows = table([runs / "a", runs / "b"]).splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["method", "ellipses"]
    pairs = {name: [means(runs / "a")[name], means(runs / "b")[name]] for name in METHODS}
    best = max(pairs, key=lambda name: np.mean(pairs[name]))
    assert len(rows) == 2
    for row, name in zip(rows, METHODS, strict=True):
        _, method, cell, _ = (part.strip() for part in row.split("|"))
        assert method == name
        text = f"{np.mean(pairs[name]):.1f} ± {np.std(pairs[name], ddof=1):.1f}"
        assert cell.strip("*") == text
        if name == best:
            assert cell == f"**{text}**"
    latex = table([runs / "a", runs / "b"], "latex")
    assert rf"\textbf{{{np.mean(pairs[best]):.1f} $\pm$" in latex
    lines = table([runs / "a"], "csv").splitlines()
    assert lines == [
        "method,ellipses",
        *(f"{name},{means(runs / 'a')[name]:.1f}" for name in METHODS),
    ]


def test_two_runs_are_compared_image_by_image(runs):
    _, _, *rows = compare(runs / "a", runs / "few").splitlines()
    for row, name in zip(rows, METHODS, strict=True):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        old, new = scores(runs / "a", name), scores(runs / "few", name)
        pairs = np.array([[new[id], old[id]] for id in new])
        assert cells[:2] == [name, "4"]
        assert cells[2:5] == [
            f"{100 * pairs[:, 1].mean():.1f}",
            f"{100 * pairs[:, 0].mean():.1f}",
            f"{100 * (pairs[:, 0] - pairs[:, 1]).mean():+.1f}",
        ]
    found = compare(runs / "a", runs / "b").splitlines()[2 + METHODS.index("deepcut")]
    pairs = [list(scores(runs / name, "deepcut").values()) for name in "ba"]
    expected = permutation_test(
        pairs, lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    assert float(found.split("|")[-2]) == pytest.approx(expected.pvalue, abs=0.05)


def test_what_cannot_be_compared_is_one_sentence(runs, tmp_path, capsys):
    with pytest.raises(BenchError, match="hold different images of ellipses"):
        table([runs / "a", runs / "few"])
    with pytest.raises(BenchError, match="holds no run that can be read"):
        table([tmp_path])
    with pytest.raises(ValueError, match="format 'tex' is not known: choose markdown"):
        table([runs / "a"], "tex")
    (tmp_path / "summary.json").write_text('{"complete": false}')
    with pytest.raises(BenchError, match="is not finished"):
        compare(runs / "a", tmp_path)
    assert main(["table", str(runs / "a"), str(runs / "b"), "--format", "latex"]) == 0
    assert main(["compare", str(runs / "a"), str(runs / "b")]) == 0
    assert "tabular" in capsys.readouterr().out
