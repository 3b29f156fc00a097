"""The report says what the records say, names its protocol, and needs nothing but itself."""

import base64
import html
import json
import re

import numpy as np
import pytest

from unseg_jax.bench.report import charts, html_report
from unseg_jax.bench.report.html_report import collect_scores, write_summary
from unseg_jax.bench.report.tables import table
from unseg_jax.bench.score.published import PUBLISHED, published_scores
from unseg_jax.data import LAYOUTS
from unseg_jax.registry import METHODS

IDS = [f"image-{index}" for index in range(7)]
IOUS = {
    "deepcut": [0.1, 0.9, 0.5, 0.7, 0.3, 0.62, 0.0],
    "vit-kmeans": [0.4, 0.8, 0.55, 0.2, 0.3, 0.61, 1.0],
}


def written(folder):
    write_summary(folder)
    return (folder / "report.html").read_text(encoding="utf-8")


class Page:
    """Tables as lists of rows of cell texts, scripts by id, and all without scripts and styles."""

    def __init__(self, text: str):
        scripts = r'<script(?:[^>]* id="([^"]+)")?[^>]*>(.*?)</script>'
        self.scripts = {id or "code": code for id, code in re.findall(scripts, text, re.DOTALL)}
        self.markup = re.sub(r"(<(script|style)\b[^>]*>).*?</\2>", r"\1", text, flags=re.DOTALL)
        self.tables = [
            [[self.words(cell) for cell in self.all("t[hd]", row)] for row in self.all("tr", table)]
            for table in self.all("table", self.markup)
        ]

    def all(self, tag, text):
        return [found[1] for found in re.findall(rf"<({tag})\b[^>]*>(.*?)</\1>", text, re.DOTALL)]

    def words(self, text):
        return " ".join(html.unescape(re.sub("<[^>]+>", "", text)).split())


def page_of(folder) -> Page:
    return Page(written(folder))


def cells(table, row):
    return dict(zip(table[0], next(cells for cells in table if cells[0] == row), strict=True))


@pytest.fixture(scope="module")
def usual(tmp_path_factory, make_folder):
    """A run of two methods with all that can be recorded: its folder, its report and the page."""
    folder = tmp_path_factory.mktemp("usual")
    make_folder(folder, IDS, IOUS, epochs=4, metrics=("boundary", "classes"))
    text = written(folder)
    return folder, text, Page(text)


@pytest.fixture(scope="module")
def failing(tmp_path_factory, make_folder):
    """Reports, by protocol, of a run in which an image failed under the first method."""
    return {
        protocol: written(
            make_folder(
                tmp_path_factory.mktemp("failing"),
                IDS,
                IOUS,
                failed={("deepcut", "image-1")},
                protocol=protocol,
                pictures=False,
            )
        )
        for protocol in ("honest", "unsegmedgat")
    }


def points(kind, text):
    found = re.search(rf'<{kind}[^>]* points="([^"]+)"', text)[1].split()
    return np.array([[float(v) for v in point.split(",")] for point in found])


def test_the_table_holds_the_means_names_the_protocol_and_marks_the_best(usual):
    _, text, found = usual
    assert [row[0] for row in found.tables[0]] == ["method", *IOUS]
    for name, values in IOUS.items():
        row, mean = cells(found.tables[0], name), f"{np.mean(values):.3f}"
        further = ("B-IoU", "HD95", "NSD", "K-mIoU")
        assert [row[name] for name in ("mIoU", *further)] == [mean] * 5
        assert row["median IoU"] == f"{np.median(values):.3f}"
        assert (row["protocol"], row["images"], row["failed"]) == ("honest", "7", "0")
        assert "AP" not in row
        best = 'class="best" title="best of this column"' if name == "vit-kmeans" else ""
        assert re.search(rf"</i>{name}</th>.*?<td ?{best}>{mean}<", text, re.DOTALL)
    epochs = next(table for table in found.tables if "best epoch" in table[0])
    assert cells(epochs, "deepcut")["best epoch"] == "40"
    assert cells(epochs, "deepcut")["best mIoU"] == f"{np.mean(IOUS['deepcut']):.3f}"


def test_published_protocols_are_named_and_warned_of(failing):
    text = failing["unsegmedgat"]
    assert "published (crop + flip)" in text
    assert "crop to the true box + 20 px, better of mask and inverted mask" in text
    assert re.search(r"not comparable\s+with <em>honest</em>", text)


def test_published_numbers_of_the_data_set_stand_beside(usual):
    header, *rows = next(table for table in usual[2].tables if table[0][0] == "system")
    assert header == ["system", "mIoU", "protocol", "source"]
    assert len(rows) == len(published_scores("isic2018"))
    row = next(row for row in rows if row[0] == "ViT-KMeans")
    assert row[1:3] == ["0.686", "crop to the true box + 20 px, better of mask and inverted mask"]


def test_pairs_are_a_matrix_of_differences(tmp_path, make_folder):
    ious = {**IOUS, "ncut-gcn": [0.2] * len(IDS)}
    text = written(make_folder(tmp_path, IDS, ious, pictures=False))
    header, *rows = next(table for table in Page(text).tables if table[0][0] == "")
    means = {name: np.mean(values) for name, values in ious.items()}
    names = sorted(means, key=lambda name: -means[name])
    assert header == ["", *names]
    for first, row in zip(names, rows, strict=True):
        signed = {name: f"{means[first] - means[name]:+.3f}".replace("-", "−") for name in names}
        assert row == [first, *(signed | {first: "–"}).values()]
    words = re.search(r'title="(vit-kmeans − deepcut: [^"]+)"', text)[1]
    wins = sum(a > b for a, b in zip(IOUS["vit-kmeans"], IOUS["deepcut"], strict=True))
    assert f"better on {wins}, equal on 1, " in words
    back = re.search(r'title="deepcut − vit-kmeans: ([^"]+)"', text)[1]
    assert f"worse on {wins} of 7 images." in back


PAPERS = {
    ("deepcut", "ECSSD"): [0.746],
    ("unseggnet", "CUB"): [0.7841],
    ("unsegarmanet", "ISIC-2018"): [0.7872, 0.7316],
    ("unsegmedgat-c", "cvc-colondb"): [0.651],
    ("tokencut", "duts"): [0.576],
    ("dmon-arma", "EMDS-6"): [0.453],
    ("ncut-arma", "isic2016"): [0.623],
    ("deep-spectral", "kvasir"): [0.588],
}


def test_published_numbers_are_whole_and_those_of_the_papers():
    for (method, dataset), values in PAPERS.items():
        scores = published_scores(dataset)
        assert [score.miou for score in scores if score.method == method] == values
    assert published_scores("a set of my own") == ()
    assert len(PUBLISHED) == len({(s.system, s.dataset, s.source) for s in PUBLISHED})
    for score in PUBLISHED:
        assert 0.1 < score.miou < 0.9
        assert score.dataset in LAYOUTS
        assert score.method is None or score.method in METHODS
        assert score.protocol
        assert score.source


def test_later_records_replace_earlier_ones(make_records):
    records = make_records(["a", "b"], {"deepcut": [0.1, 0.2]}, failed={("deepcut", "b")})
    records += make_records(["b"], {"deepcut": [0.7]}) + make_records(["c"], {"another": [0.9]})
    scores = collect_scores(records, ["deepcut"])
    assert (scores.ids, scores.errors) == (("a", "b"), {"deepcut": {}})
    np.testing.assert_array_equal(scores.values["iou"], [[0.1, 0.7]])
    np.testing.assert_allclose(scores.values["dice"], [[0.2 / 1.1, 1.4 / 1.7]])


def test_failures_are_listed_and_counted_as_zero(failing):
    tables = Page(failing["honest"]).tables
    table = next(table for table in tables if table[0] == ["image", "method", "reason"])
    assert table[1:] == [["image-1", "deepcut", "image image-1 is truncated."]]
    deepcut, kmeans, published, _ = (
        {low: int(n) for low, n in re.findall(r"IoU (\d\.\d\d) to \d\.\d\d: (\d+) images", svg)}
        for text in failing.values()
        for svg in re.findall(r'<svg class="chart histogram".*?</svg>', text, re.DOTALL)
    )
    assert sum(deepcut.values()) == sum(kmeans.values()) == len(IDS)
    assert deepcut["0.00"] == 2
    counts, edges = np.histogram(IOUS["vit-kmeans"], 20, (0, 1))
    assert kmeans == {f"{e:.2f}": n for e, n in zip(edges[:-1], counts, strict=True) if n}
    assert sum(published.values()) == len(IDS) - 1


def test_curves_are_drawn_to_scale():
    line = charts.Line([0, 10, 20], [0, 0.5, 0.4], 1, "best 0.500 at epoch 10")
    svg = charts.curves({"deepcut": line}, ["vit-kmeans", "deepcut"], "epoch", "IoU")
    x, y = points("polyline", svg).T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.11)
    assert (y[0] - y[2]) / (y[0] - y[1]) == pytest.approx(0.8, abs=0.01)
    assert "--series-1" in svg
    assert "best 0.500 at epoch 10" in svg


def test_losses_are_drawn_on_a_scale_of_their_own(tmp_path, make_folder, failing):
    text = written(make_folder(tmp_path, IDS, {"deepcut": IOUS["deepcut"]}, epochs=1))
    svg = re.search(r'<svg class="chart loss".*?</svg>', text, re.DOTALL)[0]
    line, band = points("polyline", svg), points("polygon", svg)
    assert len(line) == 10  # the losses before each of ten updates
    # Each falls by one an epoch from the image's IoU.
    np.testing.assert_allclose(np.diff(line, axis=0).std(0), 0, atol=0.1)
    low, high = np.quantile(IOUS["deepcut"], (0.25, 0.75))
    scale = (line[-1, 1] - line[0, 1]) / 9
    assert (band[0, 1] - band[-1, 1]) / scale == pytest.approx(high - low, abs=0.02)
    for value in (high, low - 9):
        assert f">{value:.3g}<" in svg
    assert 'class="chart loss"' not in failing["honest"]


def test_plots_say_what_the_iou_goes_with(failing):
    text = failing["honest"]
    data = json.loads(Page(text).scripts["data"])
    # Of each method: the surer the better, the larger the worse, and all take as long.
    assert data["rho"] == {"confidence": [1, 1], "size": [-1, -1], "seconds": [None, None]}
    kept = [None if iou is None else round(0.5 - iou / 4, 4) for iou in data["iou"][0]]
    assert data["size"][0] == kept
    # The surest images are the best ones; the failed one is last, as an IoU of 0.
    ious = np.array([*sorted(set(IOUS["deepcut"]) - {IOUS["deepcut"][1]}, reverse=True), 0])
    area = np.mean(np.cumsum(1 - ious) / np.arange(1, 8))
    assert f"deepcut, area {area:.3f}" in text
    svg = re.search(r"share of the images, the surest first.*?</svg>", text, re.DOTALL)[0]
    line = re.search(r'<polyline points="[^"]+"><title>deepcut', svg)[0]
    assert len(points("polyline", line)) == 7


def test_the_table_for_a_paper_is_that_of_the_command(tmp_path, make_folder):
    folder = make_folder(tmp_path, IDS, IOUS, pictures=False)
    text = html.unescape(written(folder))
    for form in ("markdown", "latex", "csv"):
        assert f'data-form="{form}" data-text="{table([folder], form)}"' in text
    lines = (folder / "per_image.jsonl").read_text().splitlines(keepends=True)
    (folder / "per_image.jsonl").write_text("".join(lines[:-2]) + '{"id": "torn')
    (folder / "summary.json").unlink()
    text = written(folder)
    assert "This run is not complete" in text
    assert "data-form" not in text  # as the command, which takes finished runs


def test_a_table_pairs_images_in_whatever_order_they_were_scored(tmp_path, make_folder):
    best = np.linspace(0.1, 0.9, 12)
    ious = {"deepcut": best.tolist(), "vit-kmeans": (best - 0.02).tolist()}
    folder = make_folder(tmp_path, [f"{index:02d}" for index in range(12)], ious)
    written(folder)
    path = folder / "per_image.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:12] + lines[:11:-1]))
    summary = json.loads((folder / "summary.json").read_text()) | {"paired": []}
    (folder / "summary.json").write_text(json.dumps(summary))
    # On every image a little worse, which a test of pairs tells: only the best is bold.
    assert table([folder], "latex").count("textbf") == 1


def test_the_page_holds_all_pictures_and_needs_nothing_but_itself(usual):
    folder, text, found = usual
    addresses = re.findall(r'\b(?:src|href)="([^"]*)"', found.markup)
    assert all(address.startswith("#") for address in addresses)
    assert "<link" not in found.markup
    style = re.search(r"<style>.*?</style>", text, re.DOTALL)[0]
    assert not any(word in style for word in ("url(", "@import"))
    assert "fetch(" not in found.scripts["code"]
    data = json.loads(found.scripts["data"])
    assert data["ids"] == IDS
    assert data["iou"] == [*IOUS.values()]
    for id, place in zip(data["ids"], data["pictures"], strict=True):
        parts = [base64.b64decode(part) for part in found.scripts[f"picture-{place}"].split("|")]
        names = [f"image/{id}.jpg", *(f"{kind}/{id}.png" for kind in ("truth", *IOUS))]
        assert parts == [(folder / "thumbnails" / name).read_bytes() for name in names]


def test_what_users_name_cannot_break_the_page(tmp_path, make_folder):
    evil = "</script><img src=x onerror=alert(1)>"
    ids = ["plain", evil]
    given = {"dataset": evil, "notes": [evil], "failed": {("deepcut", evil)}, "pictures": False}
    found = page_of(make_folder(tmp_path, ids, {"deepcut": [0.5, 0.4]}, **given))
    assert "<img" not in found.markup
    assert json.loads(found.scripts["data"])["ids"] == sorted(ids)


def test_images_without_truth_are_shown_without_scores(tmp_path, make_folder):
    text = written(make_folder(tmp_path, IDS, {"deepcut": [None] * len(IDS)}))
    assert "Risk and coverage" not in text
    found = Page(text)
    assert cells(found.tables[0], "deepcut")["images"] == "7"
    assert set(json.loads(found.scripts["data"])["iou"][0]) == {None}


def test_of_very_many_images_an_even_choice_is_listed(tmp_path, make_folder, monkeypatch):
    monkeypatch.setattr(html_report, "_LISTED", 50)
    ids = [f"{index:05d}" for index in range(71)]
    ious = {"deepcut": np.linspace(0, 1, 71).tolist()}
    found = page_of(make_folder(tmp_path, ids, ious, pictures=False))
    listed = json.loads(found.scripts["data"])["ids"]
    assert (len(listed), listed[0], listed[-1]) == (50, "00000", "00070")
    assert set(np.diff([int(id) for id in listed])) == {1, 2}
    assert cells(found.tables[0], "deepcut")["mIoU"] == "0.500"
