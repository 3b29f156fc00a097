"""What papers report, with the protocol it was measured by and where it stands.

None of these numbers is comparable with one of another protocol: see `PROTOCOLS`.
"""

import dataclasses
import json
import re
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class PublishedScore:
    """One number of one paper.

    Attributes:
        system: its name there.
        method: the same system by its name here, or None if it is not built.
        dataset: the data set's name in `unseg_jax.data.LAYOUTS`.
        miou: mean IoU, 0..1.
        protocol: how the public evaluation code measured, as far as it is known.
        source: where the number stands.
    """

    system: str
    method: str | None
    dataset: str
    miou: float
    protocol: str
    source: str


_FILE = Path(__file__).with_suffix(".json")
PUBLISHED = tuple(PublishedScore(*row) for row in json.loads(_FILE.read_text("utf-8")))
"""Every number, a system and data set at a time."""

_OTHER_NAMES = {
    "dutste": "duts-te",
    "duts": "duts-te",
    "caltechbirds2011": "cub",
    "cub2002011": "cub",
    "kvasir": "kvasir-seg",
    "clinicdb": "cvc-clinicdb",
    "colondb": "cvc-colondb",
    "isic2018task1": "isic2018",
    "emds6": "emds-6",
}


def published_scores(dataset: str) -> tuple[PublishedScore, ...]:
    """The published scores on a data set, best first.

    Args:
        dataset: its name as `unseg_jax.data.Dataset` has it; case and punctuation do not matter.
    """

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower())

    name = plain(_OTHER_NAMES.get(plain(dataset), dataset))
    scores = (score for score in PUBLISHED if plain(score.dataset) == name)
    return tuple(sorted(scores, key=lambda score: -score.miou))
