"""Fitted models on the Hugging Face hub: hf:ORG/NAME, with a card that says how to use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unseg_jax.backbones import hub

FILE = "model.safetensors"
_TIMEOUT = 10.0

_CARD = """---
library_name: unseg_jax
tags:
- image-segmentation
- unsupervised
---

# {name}

A model of `{method}`, fitted with unseg_jax on {images} images. Features come from the
backbone `{backbone}`, which is named here and not stored.

```
unseg-jax segment photos/ --model hf:{name} --out found
```

```python
import unseg_jax as us

model = us.load_model("hf:{name}")
results = model.segment(["photo.jpg"])
```

{labels} The model suits images like those that it was fitted on.
"""


def model_path(name: str | Path, *, timeout: float = _TIMEOUT) -> Path:
    """The file of a model: a path as it is, or hf:ORG/NAME from the hub or its cache.

    Args:
        name: a path, hf:ORG/NAME, or hf:ORG/NAME@REVISION.
        timeout: seconds to wait for an answer.

    Raises:
        ValueError: a name that begins with hf: and is of another form.
        WeightsError: the repository cannot be reached, or holds no model.
    """
    if not str(name).startswith(hub.PREFIX):
        return Path(name).expanduser()
    return hub.fetch_file(str(name), timeout, FILE)


def push(model: Any, repository: str, *, private: bool) -> str:
    """Uploads a model and its card; see `CollectiveModel.push_to_hub`."""
    import tempfile

    from huggingface_hub import HfApi

    name, _ = hub.parse_name(hub.PREFIX + repository.removeprefix(hub.PREFIX))
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder) / FILE)
        labels = "No labels were used."
        if model.steering is not None:
            marked = int(model.steering.examples)
            by = f"masks of {marked} of the images" if marked else "a word on what to look for"
            labels = f"It was steered by {by}."
        card = _CARD.format(
            name=name,
            method=model.method.name,
            images=model.images,
            backbone=model.backbone.name,
            labels=labels,
        )
        (Path(folder) / "README.md").write_text(card, encoding="utf-8")
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Add the fitted model")
    return hub.PREFIX + name
