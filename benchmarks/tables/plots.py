"""The plots of the results pages: SVG written from the JSON, legible on light and dark pages.

Text and axes take `currentColor`. As an image of its own the plot follows the reader's system;
docs/hooks.py puts it into the page, where it follows the page's theme.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path

from benchmarks.measure import common

WIDTH, MARGIN = 480, 14
OURS, PEER, PUBLISHED = "#0d9488", "#8b949e", "#d97706"
TITLES = {
    "weizmann_horses": "Weizmann Horses",
    "ecssd": "ECSSD, everyday things",
    "isic2018": "ISIC-2018, skin lesions",
    "kvasir-seg": "Kvasir-SEG, polyps",
    "cvc-clinicdb": "CVC-ClinicDB, polyps in video",
}
_SHOWN = ("deepcut", "unseggnet", "unsegarmanet", "unsegmedgat")
"""Heads whose epoch is drawn; the table has them all."""
_STYLE = (
    ".plot{color:#1f2328;font:13px system-ui,sans-serif}"
    "@media(prefers-color-scheme:dark){.plot{color:#e6edf3}}"
    ".plot text{fill:currentColor}.plot .soft{opacity:.7}"
)


def quality(results: Path) -> str:
    """A row a set: `collective` with its interval, the supervised probe, and every other method."""
    probe = json.loads((results / "quality.json").read_text())["probe"]
    place = _scale(0, 1, lambda value: value)
    marks, top = [], 106
    for name, title in TITLES.items():
        run = json.loads((results / "bench" / f"{name}-all.json").read_text())
        ours = run["methods"]["collective"]
        others = results / "bench" / f"{name}-honest-every.json"
        marks.append(_text(MARGIN, top, f"{title} ({ours['images']} images)"))
        y = top + 18
        marks.append(_line(place(0), y, place(1), y, 0.15))
        if others.is_file():
            found = json.loads(others.read_text())["methods"]
            scores = [one["miou"] for key, one in found.items() if key != "collective"]
            marks += [_circle(place(score), y, 3, PEER) for score in scores]
        low, high = ours["miou_interval"]
        marks.append(
            f'<line x1="{place(low)}" y1="{y}" x2="{place(high)}" y2="{y}" stroke="{OURS}" '
            'stroke-width="3"/>'
        )
        marks.append(_diamond(place(probe[name]["miou"]), y))
        marks.append(_circle(place(ours["miou"]), y, 6, OURS))
        marks.append(_text(WIDTH - MARGIN, top, f"{100 * ours['miou']:.1f}", "end", OURS))
        top += 46
    axis = [(place(tick / 100), str(tick)) for tick in range(0, 101, 20)]
    legend = [
        (_circle, OURS, "collective, with its 95 % interval"),
        (lambda x, y, *_: _diamond(x, y), "", "probe trained on 60 true masks"),
        (_circle, PEER, "published methods, first 40 images"),
    ]
    return _svg("Mean IoU, honest protocol", legend, marks, axis, top)


def speed(results: Path) -> str:
    """A row a program on a logarithmic axis: published, fastest other, unseg_jax, limit."""
    rows = []
    whole = json.loads((results / "versus_reference.json").read_text())["settings"]
    for title, measured in whole.items():
        times = {name: side["image"]["median"] for name, side in measured["sides"].items()}
        rows.append((f"one image, {title.split(': ')[-1]}", _fastest(times, "published"), None))
    for case in json.loads((results / "vit.json").read_text())["cases"]:
        times = {name: one["median"] for name, one in case["seconds_an_image"].items()}
        times = {name: value for name, value in times.items() if name.endswith("fp32")}
        rate = json.loads((results / "vit.json").read_text())["rates"]["fp32"]
        if (case["size"], case["batch"]) == (224, 8):
            title = "the transformer alone, 224×224, float32"
            rows.append((title, _fastest(times, "none"), case["operations_an_image"] / rate))
    for name, head in json.loads((results / "optimisation.json").read_text())["heads"].items():
        if name not in _SHOWN:
            continue
        times = {kind: one["median"] for kind, one in head["epoch"].items()}
        title = f"an epoch of {name}, {head['nodes']} nodes"
        rows.append(
            (title.replace(" at stride 4", ""), _fastest(times, "pyg"), head["limit_seconds"])
        )
    place = _scale(3e-4, 40.0, math.log10)
    marks, top = [], 122
    for title, (published, peer, ours), limit in rows:
        marks.append(_text(MARGIN, top, title))
        gain = common.ratio(published or peer, ours)
        against = "published code" if published else "the best peer"
        marks.append(_text(WIDTH - MARGIN, top, f"{gain} {against}", "end", OURS))
        y = top + 16
        marks.append(_line(place(3e-4), y, place(40.0), y, 0.15))
        if limit:
            marks.append(_line(place(limit), y - 7, place(limit), y + 7, 1))
        if published:
            marks.append(_circle(place(published), y, 4.5, PUBLISHED))
        marks.append(_circle(place(peer), y, 4.5, PEER))
        marks.append(_circle(place(ours), y, 6, OURS))
        top += 42
    ticks = ((1e-3, "1 ms"), (1e-2, "10 ms"), (0.1, "100 ms"), (1.0, "1 s"), (10.0, "10 s"))
    legend = [
        (_circle, OURS, "unseg_jax"),
        (_circle, PEER, "the fastest other program: dense PyTorch or onnxruntime"),
        (_circle, PUBLISHED, "the published code or its loop in PyTorch Geometric"),
        (lambda x, y, *_: _line(x, y - 6, x, y + 6, 1), "", "limit: its products at full speed"),
    ]
    axis = [(place(seconds), label) for seconds, label in ticks]
    return _svg("Seconds, on two cores (left is faster)", legend, marks, axis, top)


def limit(results: Path) -> str:
    """A row a number of photographs: the bare passes of the transformer and the whole command."""
    counts = json.loads((results / "limit.json").read_text())["counts"]
    place, marks, top = _scale(1.0, 100.0, math.log10), [], 92
    for count, measured in counts.items():
        bare = int(count) * statistics.median(one["seconds"] for one in measured["bare"])
        warm = statistics.median(one["seconds"] for one in measured["warm"])
        first = measured["first"]["seconds"]
        marks.append(_text(MARGIN, top, f"{count} photographs"))
        words = f"{common.ratio(warm, bare)} the bare passes"
        marks.append(_text(WIDTH - MARGIN, top, words, "end", OURS))
        y = top + 16
        marks.append(_line(place(1.0), y, place(100.0), y, 0.15))
        marks.append(_line(place(bare), y - 7, place(bare), y + 7, 1))
        marks.append(_circle(place(first), y, 4.5, PEER))
        marks.append(_circle(place(warm), y, 6, OURS))
        top += 42
    axis = [(place(seconds), f"{seconds:g} s") for seconds in (1.0, 3.0, 10.0, 30.0, 100.0)]
    legend = [
        (_circle, OURS, "unseg-jax segment, without an option"),
        (_circle, PEER, "the same, the first time: it compiles"),
        (
            lambda x, y, *_: _line(x, y - 6, x, y + 6, 1),
            "",
            "limit: bare passes of the transformer",
        ),
    ]
    return _svg("Seconds of a folder, on two cores", legend, marks, axis, top)


def examples(results: Path) -> str:
    """A row a set: `auto`, and the other images with 1, 3 and 10 true masks as examples."""
    sets = json.loads((results / "any_folder.json").read_text())["sets"]
    place, marks, top = _scale(0, 1, lambda value: value), [], 98
    for name, found in sets.items():
        marks.append(_text(MARGIN, top, name))
        y = top + 14
        marks.append(_line(place(0), y, place(1), y, 0.15))
        marks.append(_circle(place(found["auto"]), y, 6, PEER))
        for count, radius in ((1, 3), (3, 4.5), (10, 6)):
            if (key := f"examples {count}") in found:
                marks.append(_circle(place(found[key]), y, radius, OURS))
        marks.append(_diamond(place(found["probe"]), y))
        top += 36
    axis = [(place(tick / 100), str(tick)) for tick in range(0, 101, 20)]
    legend = [
        (_circle, PEER, "auto, without an option"),
        (_circle, OURS, "1, 3 and 10 examples (small to large), on the other images"),
        (lambda x, y, *_: _diamond(x, y), "", "probe on half of the true masks, on the other half"),
    ]
    return _svg("Mean IoU on sets of other kinds", legend, marks, axis, top)


def headline_quality(results: Path) -> str:
    """The first sentences of the results page."""
    quality = json.loads((results / "quality.json").read_text())

    def span(*names: str) -> str:
        runs = [json.loads((results / "bench" / f"{name}-all.json").read_text()) for name in names]
        found = sorted({round(100 * run["methods"]["collective"]["miou"]) for run in runs})
        return " to ".join(str(score) for score in (found[0], found[-1])[: len(found)])

    def mean(key: str) -> str:
        found = [one["miou"] for one in quality[key].values()]
        return f"{100 * sum(found) / len(found):.1f}"

    return (
        "On photographs of objects the masks of `collective` reach a mean IoU of "
        f"{span('weizmann_horses', 'ecssd')} %, on skin lesions {span('isic2018')} %, on polyps "
        f"{span('cvc-clinicdb', 'kvasir-seg')} %. It sees no label. A linear probe trained on 60 "
        f"true masks of each set reaches {mean('probe')} % on average where `collective`, fitted "
        f"alone and scored in the same way, reaches {mean('library')} %."
    )


def headline_speed(results: Path) -> str:
    """The same for speed."""
    whole = json.loads((results / "versus_reference.json").read_text())["settings"]
    sides = next(iter(whole.values()))["sides"]
    published, peer, ours = _fastest(
        {name: side["image"]["median"] for name, side in sides.items()}, "published"
    )
    heads = json.loads((results / "optimisation.json").read_text())["heads"]
    shares = []
    for head in heads.values():
        times = {kind: one["median"] for kind, one in head["epoch"].items()}
        shares.append(head["limit_seconds"] / _fastest(times, "pyg")[2])
    return (
        f"On two CPU cores DeepCut takes {common.seconds(ours)} for a whole image: "
        f"{common.ratio(published, ours)} as fast as its published code and "
        f"{common.ratio(peer, ours)} as fast as the best PyTorch version that we could write. "
        f"An epoch of a graph network reaches {100 * min(shares):.0f} to {100 * max(shares):.0f} % "
        "of the speed at which its products alone would run."
    )


def _fastest(times: dict[str, float], published: str) -> tuple[float | None, float, float]:
    """Seconds of what was published, of the fastest other program, and of unseg_jax."""
    ours = {name for name in times if name.startswith(("unseg_jax", "jax"))}
    first = next((value for name, value in times.items() if name.startswith(published)), None)
    others = set(times) - ours - {name for name in times if name.startswith(published)}
    return first, min(times[name] for name in others), min(times[name] for name in ours)


def _scale(low: float, high: float, shape: Callable[[float], float]) -> Callable[[float], float]:
    def place(value: float) -> float:
        share = (shape(value) - shape(low)) / (shape(high) - shape(low))
        return round(MARGIN + 6 + share * (WIDTH - 2 * MARGIN - 12), 1)

    return place


def _svg(title: str, legend: list, marks: list[str], axis: list, bottom: int) -> str:
    keys, y = [], 34
    for draw, colour, label in legend:
        keys += [draw(MARGIN + 6, y, 5, colour), _text(MARGIN + 20, y + 4, label, soft=True)]
        y += 16
    ticks: Iterable[str] = (
        _line(x, y + 4, x, bottom - 14, 0.08) + _text(x, bottom + 4, label, "middle", soft=True)
        for x, label in axis
    )
    body = "\n".join([*ticks, *keys, *marks])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="plot" role="img" '
        f'viewBox="0 0 {WIDTH} {bottom + 14}" aria-label="{escape(title)}">\n'
        f"<style>{_STYLE}</style>\n<title>{escape(title)}</title>\n"
        f'<text x="{MARGIN}" y="16" font-weight="600">{escape(title)}</text>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, anchor: str = "start", colour="", soft=False) -> str:
    paint = f' style="fill:{colour}"' if colour else ' class="soft"' if soft else ""
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"{paint}>{escape(text)}</text>'


def _circle(x: float, y: float, radius: float, colour: str) -> str:
    opacity = 1 if colour == OURS else 0.75
    return f'<circle cx="{x}" cy="{y}" r="{radius}" fill="{colour}" opacity="{opacity}"/>'


def _diamond(x: float, y: float) -> str:
    path = f"M{x} {y - 6}l6 6-6 6-6-6z"
    return f'<path d="{path}" fill="none" stroke="{PUBLISHED}" stroke-width="2"/>'


def _line(x1: float, y1: float, x2: float, y2: float, opacity: float) -> str:
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="currentColor" '
        f'stroke-width="1.5" opacity="{opacity}"/>'
    )


PLOTS: dict[str, Callable[[Path], str]] = {
    "quality": quality,
    "speed": speed,
    "limit": limit,
    "examples": examples,
}
HEADLINES: dict[str, Callable[[Path], str]] = {
    "headline/quality": headline_quality,
    "headline/speed": headline_speed,
}
