"""A few real photographs with real weights, at a small size."""

import json

import pytest
from PIL import Image

from unseg_jax.backbones import WeightsError, get_weights
from unseg_jax.bench import Settings, run

BACKBONE = "dinov2_vits14_focus"


def test_published_rules_help_on_real_photographs(shared, tmp_path):
    try:
        get_weights(BACKBONE)
    except WeightsError as error:
        pytest.skip(f"no weights: {error}")
    miou = {}
    for protocol in ("honest", "published", "unsegmedgat"):
        settings = Settings(
            str(shared / "data" / "weizmann_horses"),
            str(tmp_path / protocol),
            protocol=protocol,
            backbone=BACKBONE,
            limit=4,
            batch_size=4,
            overrides={"image_size": 112},
        )
        summary = run(settings, quiet=True)
        found = summary["methods"]["deepcut"]
        assert (found["images"], found["failed"]) == (4, 0)
        assert found["protocol"] == ("honest" if protocol == "honest" else "published")
        assert summary["backbone"] == BACKBONE
        miou[protocol] = found["miou"]
    # A horse is found by the very first try at it, and the truth's help can only help.
    assert 0.4 < miou["honest"] <= miou["published"]
    lines = (tmp_path / "honest" / "per_image.jsonl").read_text().splitlines()
    for line in map(json.loads, lines):
        # Most of these masks are smaller than their photograph; scores are at its own size.
        path = shared / "data" / "weizmann_horses" / "images" / f"{line['id']}.jpg"
        with Image.open(path) as image:
            assert line["size"] == [image.height, image.width]
        masks = shared / "data" / "weizmann_horses" / "masks"
        with Image.open(next(masks.glob(f"{line['id']}.*"))) as mask:
            assert line["mask_resized"] == (mask.size != image.size)
