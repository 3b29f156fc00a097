"""The widget: segments an image layer into a Labels layer, and fits a model on a folder."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from magicgui.widgets import ComboBox, Container, FileEdit, Label, PushButton, SpinBox

from unseg_jax.napari.planes import SHOWN, labels_of, marks_of, planes_of

MODEL_FILE = "model file"
"""The method that reads the file named below it."""
NO_EXAMPLES = "none"
"""The choice of no Labels layer."""


class SegmentWidget(Container):
    """What the plugin adds to napari's window.

    Attributes:
        image: the layer to segment.
        method, clusters, backbone: how; 0 clusters are the method's own.
        shown: what the Labels layer holds.
        segment: the button.
        folder, model, fit: images to fit on, the file that the model goes to, and the button.
        examples: the Labels layer drawn on the image layer, which steers the fit.
        status: one sentence on what happened.
    """

    image: Any
    method: Any
    clusters: Any
    backbone: Any
    shown: Any
    segment: Any
    folder: Any
    model: Any
    examples: Any
    fit: Any
    status: Any

    def __init__(self, napari_viewer: Any, run: Callable[..., Any] | None = None):
        """
        Args:
            napari_viewer: with `layers`, `add_labels`; napari gives it.
            run: takes a function, and what is to be called with its result or its exception; None
                works beside the window, which stays alive.
        """
        from unseg_jax.backbones import list_backbones
        from unseg_jax.registry import list_methods

        self._viewer = napari_viewer
        self._run = run or in_background
        self.image = ComboBox(label="Image", choices=self._images, nullable=False)
        self.method = ComboBox(
            label="Method", choices=["auto", *list_methods(), MODEL_FILE], value="auto"
        )
        self.clusters = SpinBox(label="K (0: the method's)", min=0, max=32, value=0)
        self.backbone = ComboBox(
            label="Backbone", choices=["auto", *list_backbones()], value="auto"
        )
        self.shown = ComboBox(label="Labels show", choices=SHOWN, value=SHOWN[0])
        self.segment = PushButton(text="Segment")
        self.folder = FileEdit(label="Folder", mode="d")  # type: ignore[arg-type]
        self.model = FileEdit(label="Model file", mode="w", filter="*.safetensors")  # type: ignore[arg-type]
        self.examples = ComboBox(label="Examples", choices=self._labels, nullable=False)
        self.fit = PushButton(text="Fit on the folder")
        self.status = Label(value="")
        super().__init__(
            widgets=[
                self.image,
                self.method,
                self.clusters,
                self.backbone,
                self.shown,
                self.segment,
                self.folder,
                self.model,
                self.examples,
                self.fit,
                self.status,
            ]
        )
        self.segment.changed.connect(self._on_segment)
        self.fit.changed.connect(self._on_fit)
        for event in ("inserted", "removed", "reordered"):
            getattr(napari_viewer.layers.events, event).connect(self._on_layers)
        self._on_layers()

    def _images(self, *_: Any) -> list[str]:
        return [layer.name for layer in self._viewer.layers if hasattr(layer, "rgb")]

    def _labels(self, *_: Any) -> list[str]:
        layers = self._viewer.layers
        return [NO_EXAMPLES, *(layer.name for layer in layers if hasattr(layer, "brush_size"))]

    def _layer(self, name: str) -> Any:
        """A layer, and its data at full size; None where there is none of this name."""
        layer = next((layer for layer in self._viewer.layers if layer.name == name), None)
        return layer and (
            layer,
            layer.data[0] if getattr(layer, "multiscale", False) else layer.data,
        )

    def _on_layers(self, *_: Any) -> None:
        self.image.reset_choices()
        self.examples.reset_choices()
        if self.image.choices and self.image.value is None:
            self.image.value = self.image.choices[0]

    def _begin(self, words: str, function: Callable[[], Any], finish: Callable[[Any], str]) -> None:
        """Runs a function, then says what `finish` makes of its result."""
        start = time.perf_counter()
        self.segment.enabled = self.fit.enabled = False
        self.status.value = words

        def end(words: str) -> None:
            self.segment.enabled = self.fit.enabled = True
            self.status.value = words

        def done(result: Any) -> None:
            said = finish(result)
            end(f"{said} {time.perf_counter() - start:.1f} s.")

        self._run(function, done, lambda error: end(_sentence(error)))

    def _on_segment(self, *_: Any) -> None:
        name = self.image.value
        chosen = self._layer(name)
        if chosen is None:
            self.status.value = "There is no image: open one first."
            return
        layer, data = chosen
        shown, method, model = self.shown.value, self.method.value, str(self.model.value)
        clusters, backbone = self.clusters.value or None, self.backbone.value
        leading = tuple(data.shape[: len(data.shape) - (3 if layer.rgb else 2)])

        def work() -> tuple[np.ndarray, list[Any]]:
            planes = planes_of(data, layer.rgb)
            if method == MODEL_FILE:
                results = read_model(model, Path(model).stat().st_mtime_ns).segment(planes)
            else:
                results = find(planes, method, clusters, backbone)
            return labels_of(results, leading, shown), results

        def show(found: tuple[np.ndarray, list[Any]]) -> str:
            labels, results = found
            place = {"scale": layer.scale, "translate": layer.translate}
            self._viewer.add_labels(labels, name=f"{name} {shown}", **place)
            count = sum(len(result.objects) for result in results)
            sure = np.mean([result.confidence for result in results])
            said = "1 object" if count == 1 else f"{count} objects"
            return f"{said}, confidence {sure:.2f};"

        self._begin("Segmenting; the first time takes longest.", work, show)

    def _on_fit(self, *_: Any) -> None:
        folder, path = str(self.folder.value), Path(str(self.model.value))
        backbone, drawn = self.backbone.value, self._layer(self.examples.value)
        seen = drawn and self._layer(self.image.value)
        if path.suffix != ".safetensors":
            self.status.value = "Name a model file that ends in .safetensors first."
            return
        if path.exists():
            self.status.value = f"{path.name} is there already: name another file, or remove it."
            return

        def work() -> Any:
            from unseg_jax.collective.fitting import fit, list_sources

            if not (drawn and seen):
                model = fit(folder, steps=0, backbone=backbone)
            else:
                (image, pixels), (_, labels) = seen, drawn
                images = [*planes_of(pixels, image.rgb)]
                images += list_sources(folder) if folder not in ("", ".") else []
                model = fit(images, examples=marks_of(labels), backbone=backbone)
            model.save(path)
            return model

        def show(model: Any) -> str:
            self.method.value = MODEL_FILE
            said = "1 image" if model.images == 1 else f"{model.images} images"
            said += f", {len(model.skipped)} left out" if model.skipped else ""
            return f"Fitted on {said}; written to {path.name};"

        self._begin("Fitting.", work, show)


def find(planes: list[np.ndarray], method: str, clusters: int | None, backbone: Any) -> list[Any]:
    """Segments planes by a method; one that learns from a set is fitted on them.

    Args:
        planes: (H, W), (H, W, 3) or (H, W, 4).
        method: "auto" or a name.
        clusters: K; None is the method's.
        backbone: name, path, or loaded.

    Returns:
        A `Segmentation` each.

    Raises:
        ImageError: the first plane that cannot be segmented.
        ValueError: see `unseg_jax.segment`.
    """
    return make_segmenter(method, clusters, backbone)(planes)


@functools.lru_cache(maxsize=4)
def make_segmenter(method: str, clusters: int | None, backbone: Any) -> Any:
    """A segmenter, compiled once however often the button is pressed."""
    from unseg_jax.api import Segmenter

    overrides: dict[str, Any] = {} if clusters is None else {"num_clusters": clusters}
    return Segmenter(method, backbone=backbone, batch_size=4, **overrides)


@functools.lru_cache(maxsize=2)
def read_model(path: str, changed: int) -> Any:
    """A model from its file; `changed` tells one content from the next."""
    from unseg_jax.collective.model import load_model

    return load_model(path)


def in_background(
    function: Callable[[], Any], done: Callable[[Any], None], failed: Callable[[Exception], None]
) -> None:
    """Runs a function in a thread of napari's, and what follows in the thread of the window."""
    from napari.qt.threading import create_worker

    def guarded() -> tuple[Any, Exception | None]:
        try:
            return function(), None
        except Exception as error:  # shown as a sentence; napari would open a traceback
            return None, error

    def end(outcome: tuple[Any, Exception | None]) -> None:
        result, error = outcome
        done(result) if error is None else failed(error)

    create_worker(guarded, _connect={"returned": end})


def _sentence(error: Exception) -> str:
    text = str(error).strip()
    return text[:1].upper() + text[1:] if text else type(error).__name__
