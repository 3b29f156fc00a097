"""The report says what the records say, names its protocol, and needs nothing but itself."""

import base64
import html
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from unseg_jax.bench.report import charts
from unseg_jax.bench.report.page import collect_scores, write_summary
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


class Page(HTMLParser):
    """Tables as lists of rows of cell texts, scripts, and addresses that a page refers to."""

    def __init__(self, text: str):
        super().__init__()
        self.tables, self.scripts, self.addresses, self.tags = [], {}, [], []
        self._cell = self._script = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append(tag)
        self.addresses += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr" and self.tables:
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = ""
        elif tag == "script":
            self._script = attributes.get("id", "code")
            self.scripts[self._script] = ""

    def handle_data(self, data):
        if self._cell is not None:
            self._cell += data
        if self._script is not None:
            self.scripts[self._script] += data

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[-1][-1].append(" ".join(self._cell.split()))
            self._cell = None
        elif tag == "script":
            self._script = None


def page_of(folder) -> Page:
    return Page(written(folder))


def cells(table, row):
    return dict(zip(table[0], next(cells for cells in table if cells[0] == row), strict=True))


def test_the_table_holds_the_means_and_names_the_protocol(tmp_path, make_folder):
    folder = make_folder(tmp_path, IDS, IOUS, dataset="a set of my own")
    page = page_of(folder)
    for name, values in IOUS.items():
        row = cells(page.tables[0], name)
        assert row["mIoU"] == f"{np.mean(values):.3f}"
        assert row["median IoU"] == f"{np.median(values):.3f}"
        assert row["protocol"] == "honest"
        assert (row["images"], row["failed"]) == ("7", "0")
    assert len(page.tables[0]) == 3


def test_published_protocols_are_named_and_warned_of(tmp_path, make_folder):
    folder = make_folder(tmp_path, IDS, IOUS, protocol="unsegmedgat")
    text = written(folder)
    assert "published (crop + flip)" in text
    assert "crop to the true box + 20 px, better of mask and inverted mask" in text
    assert re.search(r"not comparable\s+with <em>honest</em>", text)


def test_published_numbers_of_the_data_set_stand_beside(tmp_path, make_folder):
    folder = make_folder(tmp_path, IDS, IOUS, dataset="isic2018")
    tables = page_of(folder).tables
    header, *rows = next(table for table in tables if table[0][0] == "system")
    assert header == ["system", "mIoU", "protocol", "source"]
    assert len(rows) == len(published_scores("isic2018"))
    row = next(row for row in rows if row[0] == "ViT-KMeans")
    assert row[1:3] == ["0.686", "crop to the true box + 20 px, better of mask and inverted mask"]
    # The scores measured here stand alone.
    assert [row[0] for row in tables[0]] == ["method", "deepcut", "vit-kmeans"]


def test_pairs_are_a_matrix_of_differences(tmp_path, make_folder):
    third = [0.2] * len(IDS)
    folder = make_folder(tmp_path, IDS, {**IOUS, "ncut-gcn": third})
    header, *rows = next(table for table in page_of(folder).tables if table[0][0] == "")
    means = {name: np.mean(values) for name, values in {**IOUS, "ncut-gcn": third}.items()}
    names = sorted(means, key=lambda name: -means[name])
    assert header == ["", *names]
    for first, row in zip(names, rows, strict=True):
        expected = [
            "–" if first == second else f"{means[first] - means[second]:+.3f}" for second in names
        ]
        expected = [text.replace("-", "−") for text in expected]
        assert row == [first, *expected]
    text = (folder / "report.html").read_text(encoding="utf-8")
    words = re.search(r'title="(vit-kmeans − deepcut: [^"]+)"', text)[1]
    wins = sum(a > b for a, b in zip(IOUS["vit-kmeans"], IOUS["deepcut"], strict=True))
    assert f"better on {wins}, equal on 1, " in words
    back = re.search(r'title="deepcut − vit-kmeans: ([^"]+)"', text)[1]
    assert f"worse on {wins} of 7 images." in back


def test_the_best_of_each_column_is_marked(tmp_path, make_folder):
    text = written(make_folder(tmp_path, IDS, IOUS))
    table = re.search(r'id="score-table">.*?</table>', text, re.DOTALL)[0]
    rows = dict(re.findall(r"</i>([\w-]+)</th>(.*?)</tr>", table, re.DOTALL))
    best = f"{np.mean(IOUS['vit-kmeans']):.3f}"
    assert f'class="best" title="best of this column">{best}<' in rows["vit-kmeans"]
    worse = f"{np.mean(IOUS['deepcut']):.3f}"
    assert f"<td>{worse}<" in rows["deepcut"]


@pytest.mark.parametrize(
    ("method", "dataset", "values"),
    [
        ("deepcut", "ECSSD", [0.746]),
        ("unseggnet", "CUB", [0.7841]),
        ("unsegarmanet", "ISIC-2018", [0.7872, 0.7316]),
        ("unsegmedgat-c", "cvc-colondb", [0.651]),
        ("tokencut", "duts", [0.576]),
        ("dmon-arma", "EMDS-6", [0.453]),
        ("ncut-arma", "isic2016", [0.623]),
        ("deep-spectral", "kvasir", [0.588]),
    ],
)
def test_published_numbers_are_those_of_the_papers(method, dataset, values):
    found = [score.miou for score in published_scores(dataset) if score.method == method]
    assert found == values


def test_every_published_number_is_whole():
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
    records += make_records(["b"], {"deepcut": [0.7]})
    records += make_records(["c"], {"another": [0.9]})
    scores = collect_scores(records, ["deepcut"])
    assert scores.ids == ("a", "b")
    np.testing.assert_array_equal(scores.values["iou"], [[0.1, 0.7]])
    np.testing.assert_allclose(scores.values["dice"], [[0.2 / 1.1, 1.4 / 1.7]])
    assert scores.errors == {"deepcut": {}}


def test_histograms_count_every_image_and_failures_as_zero(tmp_path, make_folder):
    def counted(text):
        charts = re.findall(r'<svg class="chart histogram".*?</svg>', text, re.DOTALL)
        return [
            {low: int(n) for low, n in re.findall(r"IoU (\d\.\d\d) to \d\.\d\d: (\d+) images", svg)}
            for svg in charts
        ]

    failed = {("deepcut", "image-1")}
    folder = make_folder(tmp_path / "honest", IDS, IOUS, failed=failed)
    deepcut, kmeans = counted(written(folder))
    assert sum(deepcut.values()) == sum(kmeans.values()) == len(IDS)
    assert deepcut["0.00"] == 2
    counts, edges = np.histogram(IOUS["vit-kmeans"], 20, (0, 1))
    assert kmeans == {f"{e:.2f}": n for e, n in zip(edges[:-1], counts, strict=True) if n}
    folder = make_folder(tmp_path / "published", IDS, IOUS, failed=failed, protocol="published")
    deepcut, _ = counted(written(folder))
    assert sum(deepcut.values()) == len(IDS) - 1


def test_curves_are_drawn_to_scale():
    line = charts.Line([0, 10, 20], [0, 0.5, 0.4], 1, "best 0.500 at epoch 10")
    svg = charts.curves({"deepcut": line}, ["vit-kmeans", "deepcut"], "epoch", "IoU")
    points = re.search(r'<polyline points="([^"]+)"', svg)[1].split()
    x, y = np.array([[float(v) for v in point.split(",")] for point in points]).T
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.11)
    assert (y[0] - y[2]) / (y[0] - y[1]) == pytest.approx(0.8, abs=0.01)
    assert "--series-1" in svg
    assert "best 0.500 at epoch 10" in svg


def test_losses_are_drawn_on_a_scale_of_their_own(tmp_path, make_folder):
    text = written(make_folder(tmp_path, IDS, {"deepcut": IOUS["deepcut"]}, epochs=1))
    svg = re.search(r'<svg class="chart loss".*?</svg>', text, re.DOTALL)[0]

    def points(kind):
        found = re.search(rf'<{kind}[^>]* points="([^"]+)"', svg)[1].split()
        return np.array([[float(v) for v in point.split(",")] for point in found])

    line, band = points("polyline"), points("polygon")
    assert len(line) == 10  # the losses before each of ten updates
    # Each falls by one an epoch from the image's IoU.
    np.testing.assert_allclose(np.diff(line, axis=0).std(0), 0, atol=0.1)
    low, high = np.quantile(IOUS["deepcut"], (0.25, 0.75))
    scale = (line[-1, 1] - line[0, 1]) / 9
    assert (band[0, 1] - band[-1, 1]) / scale == pytest.approx(high - low, abs=0.02)
    for value in (high, low - 9):
        assert f">{value:.3g}<" in svg
    assert 'class="chart loss"' not in written(make_folder(tmp_path / "none", IDS, IOUS))


def test_plots_say_what_the_iou_goes_with(tmp_path, make_folder):
    folder = make_folder(tmp_path, IDS, IOUS, failed={("deepcut", "image-6")})
    page = page_of(folder)
    data = json.loads(page.scripts["data"])
    # Of each method: the surer the better, the larger the worse, and all take as long.
    assert data["rho"] == {"confidence": [1, 1], "size": [-1, -1], "seconds": [None, None]}
    kept = [None if iou is None else round(0.5 - iou / 4, 4) for iou in data["iou"][0]]
    assert data["size"][0] == kept
    # The surest images are the best ones; the failed one is last, as an IoU of 0.
    ious = np.array(sorted(IOUS["deepcut"], reverse=True))
    area = np.mean(np.cumsum(1 - ious) / np.arange(1, 8))
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert f"deepcut, area {area:.3f}" in text
    svg = re.search(r"share of the images, the surest first.*?</svg>", text, re.DOTALL)[0]
    points = re.search(r'<polyline points="([^"]+)"><title>deepcut', svg)[1].split()
    assert len(points) == 7
    blind = make_folder(tmp_path / "blind", IDS, {"deepcut": [None] * 7})
    assert "Risk and coverage" not in written(blind)


def test_the_table_for_a_paper_is_that_of_the_command(tmp_path, make_folder):
    folder = make_folder(tmp_path, IDS, IOUS)
    text = html.unescape(written(folder))
    for form in ("markdown", "latex", "csv"):
        assert f'data-form="{form}" data-text="{table([folder], form)}"' in text
    lines = (folder / "per_image.jsonl").read_text().splitlines(keepends=True)
    (folder / "per_image.jsonl").write_text("".join(lines[:-1]))
    assert "data-form" not in written(folder)  # as the command, which takes finished runs


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


def test_further_metrics_have_columns_of_their_own(tmp_path, make_folder):
    page = page_of(make_folder(tmp_path, IDS, IOUS, metrics=("boundary", "classes")))
    row = cells(page.tables[0], "deepcut")
    mean = f"{np.mean(IOUS['deepcut']):.3f}"
    assert [row[name] for name in ("B-IoU", "HD95", "NSD", "K-mIoU")] == [mean] * 4
    assert "AP" not in row


def test_epochs_are_reported_where_they_were_recorded(tmp_path, make_folder):
    folder = make_folder(tmp_path, IDS, IOUS, epochs=4)
    page = page_of(folder)
    table = next(table for table in page.tables if "best epoch" in table[0])
    row = cells(table, "deepcut")
    assert row["best epoch"] == "40"
    assert row["best mIoU"] == f"{np.mean(IOUS['deepcut']):.3f}"


def test_failures_are_listed_with_their_reason(tmp_path, make_folder):
    folder = make_folder(tmp_path, IDS, IOUS, failed={("vit-kmeans", "image-3")})
    tables = page_of(folder).tables
    table = next(table for table in tables if table[0] == ["image", "method", "reason"])
    assert table[1:] == [["image-3", "vit-kmeans", "image image-3 is truncated."]]


def test_the_page_needs_nothing_but_itself(tmp_path, make_folder):
    folder = make_folder(tmp_path, IDS, IOUS, epochs=4)
    page = page_of(folder)
    assert all(address.startswith("#") for address in page.addresses)
    assert "link" not in page.tags
    text = written(folder)
    style = re.search(r"<style>.*?</style>", text, re.DOTALL)[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "fetch(" not in page.scripts["code"]


def test_pictures_are_in_the_page_in_the_order_of_the_data(tmp_path, make_folder):
    folder = make_folder(tmp_path, IDS, IOUS)
    page = page_of(folder)
    data = json.loads(page.scripts["data"])
    assert data["ids"] == IDS
    assert data["iou"] == [IOUS["deepcut"], IOUS["vit-kmeans"]]
    for id, place in zip(data["ids"], data["pictures"], strict=True):
        parts = [base64.b64decode(part) for part in page.scripts[f"picture-{place}"].split("|")]
        kinds = ("image", "truth", "deepcut", "vit-kmeans")
        for kind, part in zip(kinds, parts, strict=True):
            suffix = "jpg" if kind == "image" else "png"
            assert part == (folder / "thumbnails" / kind / f"{id}.{suffix}").read_bytes()


def test_what_users_name_cannot_break_the_page(tmp_path, make_folder):
    evil = "</script><img src=x onerror=alert(1)>"
    ids = ["plain", evil]
    folder = make_folder(
        tmp_path,
        ids,
        {"deepcut": [0.5, 0.4]},
        dataset=evil,
        notes=[evil],
        failed={("deepcut", evil)},
        pictures=False,
    )
    page = page_of(folder)
    assert "img" not in page.tags
    assert json.loads(page.scripts["data"])["ids"] == sorted(ids)


def test_images_without_truth_are_shown_without_scores(tmp_path, make_folder):
    folder = make_folder(tmp_path, IDS, {"deepcut": [None] * len(IDS)})
    page = page_of(folder)
    assert "mIoU" in page.tables[0][0] or "images" in page.tables[0][0]
    assert cells(page.tables[0], "deepcut")["images"] == "7"
    assert set(json.loads(page.scripts["data"])["iou"][0]) == {None}


def test_a_run_that_was_cut_short_says_so_and_needs_no_summary(tmp_path, make_folder):
    folder = make_folder(tmp_path, IDS, IOUS)
    lines = (folder / "per_image.jsonl").read_text().splitlines(keepends=True)
    (folder / "per_image.jsonl").write_text("".join(lines[:-2]) + '{"id": "torn')
    text = written(folder)
    assert "This run is not complete" in text


def test_of_very_many_images_an_even_choice_is_listed(tmp_path, make_folder):
    ids = [f"{index:05d}" for index in range(7001)]
    ious = {"deepcut": np.linspace(0, 1, 7001).tolist()}
    folder = make_folder(tmp_path, ids, ious, pictures=False)
    page = page_of(folder)
    data = json.loads(page.scripts["data"])
    assert len(data["ids"]) == 5000
    assert (data["ids"][0], data["ids"][-1]) == ("00000", "07000")
    assert cells(page.tables[0], "deepcut")["mIoU"] == "0.500"
