"""Methods that learn from the whole set first: the model is kept, so that resuming finds it."""

import json

import pytest

import unseg_jax as us
from unseg_jax.bench import Settings, run
from unseg_jax.collective import fitting

TIMES = {"seconds", "shared_seconds", "run", "crc"}


def records(out):
    lines = [json.loads(line) for line in (out / "per_image.jsonl").read_text().splitlines()]
    return {line["id"]: {k: v for k, v in line.items() if k not in TIMES} for line in lines}


@pytest.mark.parametrize("method", ["unsegmedgat-c", "collective"])
def test_a_set_is_learnt_once_and_resumed(data, weights, tmp_path, monkeypatch, method):
    overrides = {"image_size": 48, "stride": 8, "epochs": 1, "collective_steps": 1}
    if method == "unsegmedgat-c":
        overrides["collective_epochs"] = 1
    settings = {
        "data": str(data),
        "out": str(tmp_path / "run"),
        "methods": (method,),
        "backbone": str(weights),
        "batch_size": 2,
        "limit": 4,
        "overrides": overrides,
        "value_range": (0.0, 200.0),
    }
    summary = run(Settings(**settings), quiet=True)
    assert summary["methods"][method]["failed"] == 0
    # One range for the fit and for what is scored.
    model = us.load_model(tmp_path / "run" / "models" / f"{method}.safetensors", backbone=weights)
    assert model.reading.value_range == (0, 200)
    whole = records(tmp_path / "run")
    path = tmp_path / "run" / "per_image.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:1]))

    def never(*_, **__):
        raise AssertionError("the set is fitted again")

    monkeypatch.setattr(fitting, "fit_set", never)
    again = run(Settings(**settings, resume=True), quiet=True)
    assert records(tmp_path / "run") == whole
    assert again["methods"][method]["miou"] == summary["methods"][method]["miou"]
