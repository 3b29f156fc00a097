"""The page as HTML: what can be chosen, and the limits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unseg_jax.app.sessions import Limits
from unseg_jax.app.work import MAX_CLUSTERS, MAX_PARTS
from unseg_jax.export import report
from unseg_jax.method import Method
from unseg_jax.registry import GROUPS, METHODS, TITLES

_TEMPLATES = Path(__file__).with_name("templates")
ASSETS = {name: _TEMPLATES / name for name in ("page.css", "page.js")}
_SHARED = Path(report.__file__).with_name("templates")
ASSETS |= {name: _SHARED / name for name in ("decisions.css", "decisions.js")}
"""Name → file of what the page loads, all of it from the same server."""

AUTO_WORDS = (
    "The model that ships with the library; 8 images or more that have a black frame in common are "
    "fitted together, without labels."
)


def render_page(limits: Limits, backbones: Sequence[str] = ()) -> str:
    """The page.

    Args:
        limits: that it tells.
        backbones: names beside the known ones, which come first.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("unseg_jax.app", "templates"), autoescape=True
    )
    return environment.get_template("page.html").render(
        groups=method_groups(),
        auto_words=AUTO_WORDS,
        backbones=backbone_rows(backbones),
        limits=limits,
        max_clusters=MAX_CLUSTERS,
        max_parts=MAX_PARTS,
    )


def method_groups() -> dict[str, list[dict[str, Any]]]:
    """The methods by the titles of their groups."""
    return {
        TITLES[group].capitalize(): [_row(METHODS[name]) for name in names]
        for group, names in GROUPS.items()
    }


def _row(method: Method) -> dict[str, Any]:
    return {
        "name": method.name,
        "words": _words(method),
        "clusters": method.num_clusters if _takes_clusters(method) else None,
        "patches": method.nodes == "patches",
    }


def _takes_clusters(method: Method) -> bool:
    """Whether K changes anything: TokenCut cuts in two, and sets are told from their background."""
    return method.foreground not in ("set", "own")


def _words(method: Method) -> str:
    how = "optimised on each image"
    if method.learns_from_set:
        how = "fitted on all images together, without labels"
    elif method.algorithm != "gnn":
        how = "nothing is trained"
    return f"{method.source[:1].upper()}{method.source[1:]}: {how}."


def backbone_rows(names: Sequence[str]) -> list[dict[str, str]]:
    """The backbones that can be chosen: value, and what the page calls them."""
    from unseg_jax.backbones import list_weights

    rows = [{"name": name, "words": name} for name in names]
    for entry in list_weights():
        here = "" if entry["cached"] else f" (fetches {entry['size'] / 1e6:.0f} MB)"
        rows.append({"name": entry["name"], "words": entry["name"] + here})
    return rows
