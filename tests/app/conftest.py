"""A server in a thread, with a tiny random backbone and a temporary folder of its own."""

import contextlib
import http.client
import json
import tempfile
import threading
import time
from importlib.resources import files
from typing import Any

import pytest
from PIL import Image

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")

PHOTOGRAPHS = ("coffee.png", "chelsea.png", "astronaut.png", "camera.png")


@pytest.fixture(scope="package")
def photographs(tmp_path_factory):
    """Small photographs by name."""
    folder = tmp_path_factory.mktemp("photographs")
    for name in PHOTOGRAPHS:
        with Image.open(str(files("skimage") / "data" / name)) as image:
            image.convert("RGB").resize((96, 72)).save(folder / name)
    return {name: folder / name for name in PHOTOGRAPHS}


class Server:
    """A running server: its address, its application, and where its temporary files lie."""

    def __init__(self, app, port, folder):
        self.app, self.port, self.folder = app, port, folder

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/"

    @property
    def kept(self):
        """All files that lie in the temporary folder."""
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def ask(self, method, path, body=None, **headers) -> tuple[int, Any]:
        """Status and the JSON of the answer, or its bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
        with contextlib.suppress(ValueError):
            return answer.status, json.loads(content)
        return answer.status, content

    def session(self):
        """The path of a new session."""
        return "/sessions/" + self.ask("POST", "/sessions")[1]["id"]


@contextlib.contextmanager
def running(limits, tiny_weights, folder):
    from unseg_jax.app.server import make_app

    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    app = make_app(limits, backbones={"tiny": str(tiny_weights)}, hosts=("127.0.0.1", "localhost"))
    config = uvicorn.Config(app, port=0, log_level="error", ws="none", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        for _ in range(600):
            if server.started:
                break
            time.sleep(0.05)
        yield Server(app, server.servers[0].sockets[0].getsockname()[1], folder)
    finally:
        server.should_exit = True
        thread.join(60)
        tempfile.tempdir = before
    assert not thread.is_alive()
    # Whatever the tests did, nothing is left behind.
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def server(tiny_weights, tmp_path_factory, small_images, short_training):
    from unseg_jax.app.sessions import Limits

    limits = Limits(max_bytes=200_000, max_files=10, max_waiting=3, max_runs=2)
    with running(limits, tiny_weights, tmp_path_factory.mktemp("temporary")) as server:
        yield server
