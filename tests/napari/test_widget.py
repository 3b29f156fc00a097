"""The plugin: its manifest, its widget on a stand-in for the viewer, and in a real window if any.

napari and Qt take 370 MB, so the environment of the tests goes without; where they are installed,
`test_in_a_real_window` clicks the same buttons.
"""

import importlib.util
import json
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

magicgui = pytest.importorskip("magicgui")
pytest.importorskip("magicgui.widgets")

from unseg_jax.collective.model import load_model  # noqa: E402
from unseg_jax.metrics import iou  # noqa: E402
from unseg_jax.napari import widget as module  # noqa: E402


def square(top, left):
    pixels = np.full((64, 96, 3), 40, np.uint8)
    pixels[top : top + 20, left : left + 24] = (220, 60, 60)
    return pixels


def assert_square(labels, top, left):
    """Regions are cut at colours, to a few pixels."""
    assert iou(labels > 0, square(top, left)[..., 0] > 100) > 0.9


# In a process of its own: npe2 warns while it is imported.
VALIDATE = """
import json, npe2
manifest = npe2.PluginManifest.from_distribution("unseg_jax")
manifest.validate_imports()
print(json.dumps({"name": manifest.name, **json.loads(manifest.contributions.model_dump_json())}))
"""


def test_npe2_finds_and_validates_the_manifest(python):
    if importlib.util.find_spec("npe2") is None:
        pytest.skip("npe2 is not installed")
    manifest = json.loads(python(VALIDATE, PYTHONWARNINGS="ignore").stdout)
    assert manifest["name"] == "unseg_jax"
    (contributed,), (command,) = manifest["widgets"], manifest["commands"]
    assert contributed["command"] == command["id"]
    assert command["python_name"] == f"{module.__name__}:{module.SegmentWidget.__name__}"


class Signal(list):
    def connect(self, function):
        self.append(function)


class Layers(list):
    """What the widget uses of napari's layers."""

    def __init__(self):
        super().__init__()
        self.events = SimpleNamespace(inserted=Signal(), removed=Signal(), reordered=Signal())

    def append(self, layer):
        super().append(layer)
        for function in self.events.inserted:
            function()


class Viewer:
    """What the widget uses of napari's viewer."""

    def __init__(self):
        self.layers = Layers()
        self.labels = []

    def add_image(self, data, name, rgb):
        place = {"scale": np.ones(data.ndim - rgb), "translate": np.zeros(data.ndim - rgb)}
        self.layers.append(SimpleNamespace(data=data, name=name, rgb=rgb, **place))

    def add_labels(self, data, name, **place):
        self.labels.append(SimpleNamespace(data=data, name=name, **place))


class PathLine(magicgui.widgets.LineEdit):
    """Stands in for `FileEdit`, whose dialogs no backend but Qt has."""

    def __init__(self, label, mode, filter=None):
        super().__init__(label=label)


@pytest.fixture
def widget(monkeypatch):
    """A widget without a window, whose work is done at once."""

    def run(function, done, failed):
        try:
            result = function()
        except Exception as error:
            failed(error)
        else:
            done(result)

    monkeypatch.setattr(magicgui.application.Application, "_instance", None)
    monkeypatch.setattr(module, "FileEdit", PathLine)
    magicgui.use_app("ipynb")
    return module.SegmentWidget(Viewer(), run)


def test_an_image_and_a_stack_become_labels(widget):
    viewer = widget._viewer
    widget.segment.changed.emit(True)
    assert "open one first" in widget.status.value
    viewer.add_image(square(10, 20), "photo", True)
    viewer.add_image(np.stack([square(10, 20), square(30, 60)]), "stack", True)
    assert list(widget.image.choices) == ["photo", "stack"]
    widget.method.value = "spectral-ncut"  # needs no backbone
    widget.segment.changed.emit(True)
    (labels,) = viewer.labels
    assert (labels.name, labels.data.max()) == ("photo objects", 1)
    assert widget.status.value.startswith("1 object, confidence")
    assert_square(labels.data, 10, 20)
    widget.image.value = "stack"
    widget.shown.value = "mask"
    widget.segment.changed.emit(True)
    stack = viewer.labels[1]
    assert (stack.name, len(stack.scale), stack.data.ndim) == ("stack mask", 3, 3)
    assert_square(stack.data[1], 30, 60)


def test_fitting_writes_the_model_and_turns_to_it_and_errors_are_sentences(
    widget, tmp_path, monkeypatch
):
    widget._viewer.add_image(np.zeros((4, 4, 3), np.uint8), "photo", True)
    widget.method.value = module.MODEL_FILE
    widget.model.value = str(tmp_path / "none.safetensors")
    widget.segment.changed.emit(True)
    assert "none.safetensors" in widget.status.value
    assert widget.segment.enabled
    widget.model.value = str(tmp_path / "model.txt")
    widget.fit.changed.emit(True)
    assert "ends in .safetensors" in widget.status.value
    widget.method.value = "auto"
    asked = []

    def fit(folder, **options):
        asked.append((folder, options))
        save = lambda path: path.write_bytes(b"model")  # noqa: E731
        return SimpleNamespace(images=9, skipped=("one is truncated",), save=save)

    monkeypatch.setattr("unseg_jax.collective.fitting.fit", fit)
    widget.folder.value = str(tmp_path)
    widget.model.value = str(tmp_path / "moths.safetensors")
    widget.fit.changed.emit(True)
    assert asked == [(str(tmp_path), {"steps": 0, "backbone": "auto"})]
    assert (tmp_path / "moths.safetensors").read_bytes() == b"model"
    said = "Fitted on 9 images, 1 left out; written to moths.safetensors;"
    assert widget.status.value.startswith(said)
    assert widget.method.value == module.MODEL_FILE
    widget.fit.changed.emit(True)
    assert "moths.safetensors is there already" in widget.status.value
    assert len(asked) == 1


def test_labels_that_are_drawn_steer_the_fit(
    widget, tmp_path, tiny_weights, small_images, short_training
):
    """On the third plane of a stack nothing is drawn; the folder adds an image."""
    viewer, stack = widget._viewer, np.stack([square(10, 20), square(30, 60), square(0, 0)])
    viewer.add_image(stack, "stack", True)
    drawn = (stack[..., 0] > 100) * np.array([3, 1, 0])[:, None, None]
    viewer.layers.append(SimpleNamespace(data=drawn, name="drawn", brush_size=10))
    assert list(widget.examples.choices) == [module.NO_EXAMPLES, "drawn"]
    assert list(widget.image.choices) == ["stack"]
    widget.examples.value = "drawn"
    widget.backbone.choices = [*widget.backbone.choices, str(tiny_weights)]
    widget.backbone.value = str(tiny_weights)
    for folder, count in (("", 3), (tmp_path / "more", 4)):
        widget.folder.value = str(folder)
        widget.model.value = str(tmp_path / f"{count}.safetensors")
        if folder:
            folder.mkdir()
            Image.fromarray(square(20, 20)).save(folder / "a.png")
        widget.fit.changed.emit(True)
        assert widget.status.value.startswith(f"Fitted on {count} images")
        model = load_model(tmp_path / f"{count}.safetensors")
        assert (model.images, int(model.steering.examples)) == (count, 2)


@pytest.mark.filterwarnings("ignore")
def test_clicks_in_qt_with_the_layers_of_napari(tmp_path, tiny_weights, monkeypatch):
    """The buttons are Qt's and the layers are napari's; its canvas, which needs OpenGL, is not."""
    monkeypatch.setitem(os.environ, "QT_QPA_PLATFORM", "offscreen")
    pytest.importorskip("napari")
    widgets = pytest.importorskip("qtpy.QtWidgets")
    from napari.components import ViewerModel
    from napari.layers import Labels

    application = widgets.QApplication.instance() or widgets.QApplication([])
    monkeypatch.setattr(magicgui.application.Application, "_instance", None)
    for index in range(3):
        Image.fromarray(square(10 + 5 * index, 20)).save(tmp_path / f"{index}.png")
    viewer = ViewerModel()
    widget = module.SegmentWidget(viewer)
    widget.native.show()

    def click(button):
        button.native.click()
        for _ in range(6000):
            application.processEvents()
            if button.enabled:
                return
            time.sleep(0.02)

    viewer.add_image(square(10, 20), name="photo", scale=(2, 2))
    widget.method.value = "spectral-ncut"
    click(widget.segment)
    labels = viewer.layers["photo objects"]
    assert isinstance(labels, Labels)
    assert_square(labels.data, 10, 20)
    assert tuple(labels.scale) == (2, 2)

    widget.backbone.choices = [*widget.backbone.choices, str(tiny_weights)]
    widget.backbone.value = str(tiny_weights)
    widget.folder.value = tmp_path
    widget.model.value = tmp_path / "model.safetensors"
    click(widget.fit)
    assert widget.status.value.startswith("Fitted on 3 images; written to model.safetensors")
    widget.shown.value = "mask"
    click(widget.segment)
    assert viewer.layers["photo mask"].data.shape == (64, 96)
    widget.native.close()
