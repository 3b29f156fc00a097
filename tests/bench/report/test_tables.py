"""Tables over several runs, against the runs' own scores."""

import numpy as np
import pytest
from scipy.stats import permutation_test

from unseg_jax.bench import BenchError, write_summary
from unseg_jax.bench.__main__ import main
from unseg_jax.bench.report.tables import compare, table

METHODS = ("vit-kmeans", "deepcut")


@pytest.fixture(scope="module")
def runs(make_folder, tmp_path_factory):
    """Two seeds of two methods, and one run of fewer images; and the scores of each."""
    rng, found = np.random.default_rng(0), {}
    for name, count in (("a", 10), ("b", 10), ("few", 4)):
        ious = dict(zip(METHODS, rng.uniform((0.3, 0.4), (0.8, 0.9), (count, 2)).T, strict=True))
        ids = [f"{index:03d}" for index in range(count)]
        folder = make_folder(
            tmp_path_factory.mktemp("runs") / name, ids, ious, dataset="ellipses", pictures=False
        )
        write_summary(folder)
        found[name] = folder, ious
    return found


def test_seeds_are_a_mean_with_its_deviation_and_the_best_is_bold(runs):
    (a, first), (b, second) = runs["a"], runs["b"]
    header, _, *rows = table([a, b]).splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == ["method", "ellipses"]
    pairs = {name: 100 * np.array([first[name].mean(), second[name].mean()]) for name in METHODS}
    best = max(pairs, key=lambda name: np.mean(pairs[name]))
    for row, name in zip(rows, METHODS, strict=True):
        _, method, cell, _ = (part.strip() for part in row.split("|"))
        assert method == name
        text = f"{np.mean(pairs[name]):.1f} ± {np.std(pairs[name], ddof=1):.1f}"
        assert cell.strip("*") == text
        if name == best:
            assert cell == f"**{text}**"
    assert rf"\textbf{{{np.mean(pairs[best]):.1f} $\pm$" in table([a, b], "latex")
    rows = [f"{name},{100 * first[name].mean():.1f}" for name in METHODS]
    assert table([a], "csv").splitlines() == ["method,ellipses", *rows]


def test_two_runs_are_compared_image_by_image(runs):
    (a, old), (few, new) = runs["a"], runs["few"]
    _, _, *rows = compare(a, few).splitlines()
    for row, name in zip(rows, METHODS, strict=True):
        before, after = 100 * old[name][:4].mean(), 100 * new[name].mean()
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[:2] == [name, "4"]
        assert cells[2:5] == [f"{before:.1f}", f"{after:.1f}", f"{after - before:+.1f}"]
    b, new = runs["b"]
    found = compare(a, b).splitlines()[2 + METHODS.index("deepcut")]
    expected = permutation_test(
        (new["deepcut"], old["deepcut"]),
        lambda x, y: np.mean(x - y),
        permutation_type="samples",
        n_resamples=np.inf,
    )
    assert float(found.split("|")[-2]) == pytest.approx(expected.pvalue, abs=0.05)


def test_what_cannot_be_compared_is_one_sentence(runs, tmp_path, capsys):
    a, b, few = (folder for folder, _ in runs.values())
    with pytest.raises(BenchError, match="hold different images of ellipses"):
        table([a, few])
    with pytest.raises(BenchError, match="holds no run that can be read"):
        table([tmp_path])
    with pytest.raises(ValueError, match="format 'tex' is not known: choose markdown"):
        table([a], "tex")
    (tmp_path / "summary.json").write_text('{"complete": false}')
    with pytest.raises(BenchError, match="is not finished"):
        compare(a, tmp_path)
    assert main(["table", str(a), str(b), "--format", "latex"]) == 0
    assert main(["compare", str(a), str(b)]) == 0
    assert "tabular" in capsys.readouterr().out
