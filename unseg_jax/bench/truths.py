"""What the true masks of a run say: empty, full, void, and whether the object's values occur."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unseg_jax.data.truths import NONZERO, Truth, Value

_EDGE = 1e-9
_FEW = 16


def truth_fields(truth: Truth) -> dict[str, Any]:
    """What a record keeps of its truth, under the key "truth": shares and the values that occur."""
    return {
        "share": round(truth.share, 6),
        "void_share": round(truth.void_share, 6),
        # Masks that number their objects may hold thousands of values.
        "foreground": list(truth.foreground[:64]),
        "void": list(truth.void[:64]),
    }


class TruthTally:
    """Counts over a run's records, one image once."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self.images = self.empty = self.full = self.with_void = 0
        self.foreground: set[Value] = set()
        self.void: set[Value] = set()
        self._noted: dict[str, str] = {}

    def add(self, record: Mapping[str, Any]) -> None:
        """Counts a record; those without a truth are passed over."""
        if record.get("notes"):
            self._noted.setdefault(record["id"], " ".join(record["notes"]))
        truth = record.get("truth")
        if not isinstance(truth, Mapping) or record["id"] in self._ids:
            return
        self._ids.add(record["id"])
        self.images += 1
        self.empty += truth["share"] <= _EDGE
        self.full += truth["share"] >= 1 - _EDGE
        self.with_void += truth["void_share"] > 0
        self.foreground |= set(truth["foreground"])
        self.void |= set(truth["void"])

    def as_json(self, values: Sequence[Value] | str | None) -> dict[str, Any]:
        """For `summary.json`, under the key "truths".

        Args:
            values: as `--foreground` named them, or None.
        """
        return {
            "images": self.images,
            "empty": self.empty,
            "full": self.full,
            "with_void": self.with_void,
            "notes": self.notes(),
            "error": self.error(values),
        }

    def notes(self) -> list[str]:
        """What a reader of the scores should know, a sentence each."""
        notes = []
        if self._noted:
            id, said = next(iter(self._noted.items()))
            notes.append(
                f"{len(self._noted)} images were changed while they were read, as {id}: {said}"
            )
        for count, word in ((self.empty, "empty"), (self.full, "full")):
            if count:
                notes.append(f"{count} of {self.images} true masks are {word}.")
        if self.with_void:
            values = ", ".join(sorted(map(str, self.void)))
            notes.append(
                f"{self.with_void} of {self.images} true masks have void pixels ({values}), "
                f"which are left out of every score."
            )
        both = sorted(map(str, self.foreground & self.void))
        if both:
            notes.append(
                f"the value {', '.join(both)} is void in some true masks and the object in "
                f"others: say which it is with --foreground and --void."
            )
        return notes

    def error(self, values: Sequence[Value] | str | None) -> str | None:
        """Says that values of `--foreground` occur in no mask; None if they do."""
        missing = self.missing(values)
        # Of a range such as 1-255 not all values need to occur, but one must.
        if not missing or (len(missing) < len(values or ()) and len(values or ()) > _FEW):
            return None
        named = ",".join(map(str, missing[:_FEW]))
        return (
            f"--foreground {named} occurs in none of the {self.images} true masks: "
            f"check the values that the masks store, and leave it out."
        )

    def missing(self, values: Sequence[Value] | str | None) -> list[Value]:
        """Those of the values of `--foreground` that occur in no mask; none without any mask."""
        if values is None or values == NONZERO or not self.images:
            return []
        return [value for value in values if value not in self.foreground]
