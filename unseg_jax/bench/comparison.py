"""How the methods of a run compare: the best of each score, and all pairs as a matrix."""

from collections.abc import Iterable, Mapping
from typing import Any


def signed(value: float) -> str:
    """A difference, with a real minus sign."""
    return f"{value:+.3f}".replace("-", "−")


def best_values(summary: Mapping[str, Any], keys: Iterable[str]) -> dict[str, set[str]]:
    """The methods with the best value of each column, if there is more than one method.

    Args:
        summary: as in `summary.json`.
        keys: names of scores; only single numbers are compared.
    """
    methods = summary["methods"]
    best: dict[str, set[str]] = {"images_per_second": set()}
    for key in ("images_per_second", *keys):
        values = {name: method.get(key) for name, method in methods.items()}
        values = {name: round(value, 3) for name, value in values.items() if _is_number(value)}
        if len(values) > 1:
            top = min(values.values()) if key == "mae" else max(values.values())
            best[key] = {name for name, value in values.items() if value == top}
    return best


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


# A difference of so much IoU has the matrix's full colour.
_FULL_DIFFERENCE = 0.3


def difference_matrix(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Differences of mean IoU of all pairs of methods, best method first; None for fewer than two.

    Pairs that were not tested, of very many methods, have the difference of their means alone.
    """
    means = {name: method["miou"] for name, method in summary["methods"].items()}
    names = sorted(
        (name for name, mean in means.items() if mean is not None), key=lambda name: -means[name]
    )
    if len(names) < 2:
        return None
    tested = {}
    for pair in summary["paired"]:
        tested[pair["first"], pair["second"]] = pair
        tested[pair["second"], pair["first"]] = _swapped(pair)
    rows = []
    for first in names:
        cells = [
            None if first == second else _cell(first, second, means, tested.get((first, second)))
            for second in names
        ]
        rows.append({"name": first, "cells": cells})
    return {"names": names, "rows": rows}


def _swapped(pair: Mapping[str, Any]) -> dict[str, Any]:
    """The same pair with second minus first."""
    low, high = (None if end is None else -end for end in pair["interval"])
    return {
        **pair,
        "mean": -pair["mean"],
        "interval": [high, low],
        "wins": pair["losses"],
        "losses": pair["wins"],
    }


def _cell(first: str, second: str, means: Mapping[str, float], pair: Any) -> dict[str, Any]:
    mean = means[first] - means[second] if pair is None else pair["mean"]
    words = f"{first} − {second}: {signed(mean)}"
    if pair is None:
        words += ", the difference of their means (this pair was not tested)."
    else:
        low, high = pair["interval"]
        words += "" if low is None else f", 95 % interval {signed(low)} to {signed(high)}"
        words += f", p = {pair['p_value']:.3g}; better on {pair['wins']}, equal on {pair['ties']}, "
        words += f"worse on {pair['losses']} of {pair['images']} images."
    strength = round(55 * min(1.0, abs(mean) / _FULL_DIFFERENCE))
    return {
        "mean": mean,
        "words": words,
        "sign": "more" if mean >= 0 else "less",
        "strength": strength,
    }
