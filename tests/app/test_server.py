"""What the server refuses, keeps apart and deletes; and the command, run as a user runs it."""

import http.client
import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import weakref
import zipfile
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

import unseg_jax
from unseg_jax.app.__main__ import serve
from unseg_jax.app.sessions import Limits, Refused, Session, Sessions
from unseg_jax.app.work import Settings, Stopped, Worker
from unseg_jax.cli.main import main
from unseg_jax.collective.example_views import VIEWS
from unseg_jax.segmenter import BatchSegmenter

from .conftest import Server

ROOT = Path(unseg_jax.__file__).parents[1]


def run(server, session, **settings):
    return server.ask("POST", session + "/run", json.dumps(settings))


def run_to_end(server, session, **settings):
    run(server, session, **settings)
    while (state := server.ask("GET", session)[1])["phase"] not in ("failed", "done"):
        time.sleep(0.05)
    return state


def test_other_pages_and_names_are_refused_and_nothing_is_loaded_from_elsewhere(server):
    for status, method, path, headers in (
        (200, "GET", "/", {}),
        (403, "GET", "/", {"Host": "elsewhere.example"}),
        (403, "POST", "/sessions", {"Origin": "http://elsewhere.example"}),
        (200, "POST", "/sessions", {"Origin": server.url.rstrip("/")}),
    ):
        assert server.ask(method, path, **headers)[0] == status
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", "/")
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert answer.headers["Cache-Control"] == "no-store"
    assert "http" not in re.sub(r'href="(?:page.css|data:,)"', "", text)


def test_limits_of_files(server):
    session = server.session()
    for name, content, error in (
        ("big.png", bytes(200_001), "big.png has more than 0.2 MB"),
        *((f"{index}.png", b"x", None) for index in range(10)),
        ("more.png", b"x", "10 files are the most"),
    ):
        status, said = server.ask("POST", f"{session}/files?name={name}", content)
        assert status == (413 if error else 200)
        assert error is None or error in said["error"]
    assert server.ask("DELETE", session + "/files/3")[0] == 204
    assert server.ask("POST", session + "/files?name=more.png", b"x")[0] == 200
    server.ask("POST", session + "/close")
    assert server.ask("GET", session)[0] == 404


@pytest.mark.parametrize(
    "name",
    ["../../escape.png", "..", "", "a/b\\c.png", "nul\0.png", ".hidden.png", "x" * 300 + ".png",
     "CON:a|b?.png", "line\nbreak.png", "ü" * 120 + ".tif"],
)  # fmt: skip
def test_no_name_leaves_the_folder(tmp_path, name):
    session = Session(tmp_path)
    for _ in range(2):
        part = session.folder / "a.part"
        part.write_bytes(b"x")
        session.add(name, part, 9)
    paths = [upload.path for upload in session.uploads.values()]
    assert sorted(paths) == sorted(session.files.iterdir())
    assert len({path.name.casefold() for path in paths}) == 2
    for path in paths:
        assert len(path.name.encode()) < 240
        assert path.name.isprintable()
        assert not path.name.startswith(".")
        assert path.suffix == Path(name).suffix.replace("\0", "") or name in ("..", "")


def test_what_the_page_does_not_offer_is_refused(server):
    session = server.session()
    for settings, said in (
        ({"backbone": "/etc/passwd"}, "no backbone '/etc/passwd'"),
        ({"method": "deepcutt"}, "did you mean 'deepcut'"),
        ({"clusters": 1000}, "K=1000 is out of range"),
        ({"clusters": "4"}, "no whole number"),
        ({"kind": "much"}, "no kind 'much'"),
        ({"kind": "parts", "parts": 99}, "99 parts are out of range"),
        ({"kind": "parts", "method": "collective"}, "makes no parts"),
        ({}, "no images yet"),
    ):
        status, answer = run(server, session, **settings)
        assert (status, said in answer["error"]) == (400, True), answer
    server.ask("POST", session + "/close")


def test_unknown_sessions_and_pictures(server, photographs):
    assert server.ask("GET", "/sessions/unknown")[0] == 404
    assert server.ask("POST", "/sessions/unknown/close")[0] == 204
    session = server.session()
    for path in ("results", "unseg_jax.zip", "pictures/0/mask"):
        status, said = server.ask("GET", f"{session}/runs/1/{path}")
        assert (status, "press Segment" in said["error"]) == (404, True)
    path = f"{session}/files?name={quote('café.png')}"
    assert server.ask("POST", path, photographs["coffee.png"].read_bytes())[1]["name"] == "café.png"
    server.ask("POST", session + "/close")


NOTHING = {"format": "unseg-jax decisions", "images": []}


def test_a_run_deletes_nothing_of_those_before_and_decisions_on_none_are_refused(
    server, photographs
):
    session = server.session()
    upload = f"{session}/files?name=a.png", photographs["coffee.png"].read_bytes()

    def labels(number):
        status, content = server.ask("GET", f"{session}/runs/{number}/unseg_jax.zip")
        assert status == 200, content
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return archive.read("a_labels.png")

    added = server.ask("POST", *upload)[1]
    assert run_to_end(server, session, method="spectral-ncut", clusters=2)["phase"] == "done"
    first = labels(1)
    # Neither a run that fails, nor another, nor that its picture is removed. Weights of another
    # width cannot carry the model that ships: one sentence, and no trace.
    state = run_to_end(server, session, method="auto", backbone="tiny")
    assert (state["phase"], "384" in state["message"]) == ("failed", True)
    assert "Traceback" not in state["message"]
    assert labels(1) == first
    assert server.ask("GET", f"{session}/runs/2/unseg_jax.zip")[0] == 404
    assert run_to_end(server, session, method="spectral-ncut", clusters=3)["phase"] == "done"
    assert labels(1) == first != labels(3)
    server.ask("DELETE", f"{session}/files/{added['number']}")
    # The same name belongs to what run 1 shows.
    assert server.ask("POST", *upload)[1]["name"] == "a (2).png"
    assert labels(1) == first
    for refit, decisions, status, said in (
        (9, NOTHING, 404, "no results of run 9"),
        ("1", NOTHING, 400, "reload the page"),
        (1, NOTHING, 400, "nothing to learn"),
        (1, {"images": []}, 400, "no decisions of unseg-jax"),
    ):
        found, answer = run(server, session, refit=refit, decisions=decisions)
        assert (found, said in answer["error"]) == (status, True), answer
    # Only the limit, two runs here, takes the oldest, and the answer tells the page.
    assert run_to_end(server, session, method="spectral-ncut", clusters=2)["phase"] == "done"
    assert server.ask("GET", f"{session}/runs/4/results")[1]["kept"] == [3, 4]
    status, said = server.ask("GET", f"{session}/runs/1/unseg_jax.zip")
    assert status == 404
    assert said["error"] == "there are no results of run 1: the runs kept are 3, 4."
    assert not [path for path in server.kept if path.parent.name in ("1", "2")]
    server.ask("POST", session + "/close")


def test_a_second_refit_reads_no_image_again(server, photographs, monkeypatch):
    """Its masks are those of one that reads all. Another kind of marks lets go what was read."""
    passes = []
    real = BatchSegmenter.kept_features

    def record(segmenter, pixels):
        passes.append(len(pixels))
        return real(segmenter, pixels)

    def decided(*verdicts):
        images = [{"name": name, **verdict} for name, verdict in verdicts]
        return {"format": "unseg-jax decisions", "images": images}

    def refit(session, *verdicts):
        passes.clear()
        options = {"backbone": "tiny", "refit": 1, "decisions": decided(*verdicts)}
        state = run_to_end(server, session, method="auto", **options)
        assert (state["phase"], "steered" in state["message"]) == ("done", True), state
        number = state["number"]
        with zipfile.ZipFile(
            io.BytesIO(server.ask("GET", f"{session}/runs/{number}/unseg_jax.zip")[1])
        ) as archive:
            return sum(passes), archive.read("a_mask.png"), archive.read("b_mask.png")

    def prepared():
        session = server.session()
        for name, photo in (("a", "coffee.png"), ("b", "chelsea.png")):
            content = photographs[photo].read_bytes()
            server.ask("POST", f"{session}/files?name={name}.png", content)
        run_to_end(server, session, method="vit-kmeans", backbone="tiny", clusters=2)
        return session

    monkeypatch.setattr(BatchSegmenter, "kept_features", record)
    session, keep = prepared(), {"decision": "keep"}
    first = refit(session, ("a", keep))
    assert first[0] == 2 + len(VIEWS)  # two images and views of one, each once
    session_again = prepared()
    second = refit(session, ("b", keep))
    assert second[0] == len(VIEWS)
    fresh = refit(session_again, ("b", keep))
    assert fresh[0] == 2 + len(VIEWS)
    assert second[1:] == fresh[1:]
    clicks = {"decision": "undecided", "clicks": [[48, 36, True]]}
    assert refit(session_again, ("a", clicks))[0] == 2
    for path in (session, session_again):
        server.ask("POST", path + "/close")
    assert server.kept == []


def test_a_session_keeps_what_fits_of_one_kind_read(tmp_path):
    session = Session(tmp_path)
    masks = session.cache_of(("auto", True))
    gone = weakref.ref(masks)
    assert session.cache_of(("auto", True)) is masks
    del masks
    clicks = weakref.ref(session.cache_of(("auto", False)))
    assert gone() is None
    session.delete()
    assert clicks() is None


def test_one_post_of_an_image_gives_a_mask_or_json(server, photographs):
    photo = photographs["coffee.png"].read_bytes()
    path = "/segment?method=spectral-ncut"
    status, content = server.ask("POST", path, photo)
    assert status == 200, content
    mask = np.asarray(Image.open(io.BytesIO(content))) > 0
    assert mask.shape == (72, 96)
    status, found = server.ask("POST", f"{path}&format=json&name=cup.png", photo)
    assert (status, found["file"], found["size"]) == (200, "cup.png", [72, 96])
    assert found["coverage"] == pytest.approx(mask.mean(), abs=1e-6)
    assert server.ask("POST", f"{path}&format=coco", photo)[1]["annotations"]
    assert len(server.ask("POST", f"{path}&format=json&kind=one", photo)[1]["objects"]) == 1
    status, content = server.ask("POST", f"{path}&format=cutout", photo)
    assert Image.open(io.BytesIO(content)).mode == "RGBA"
    for query, body, said in (
        ("&name=a.png", b"no image", "a.png is not an image"),
        ("&format=gif", photo, "no format 'gif'"),
        ("&k=two", photo, "K=two is no whole number"),
        ("&method=x", photo, "no method 'x'"),
    ):
        status, answer = server.ask("POST", path + query, body)
        assert (status, said in answer["error"]) == (400, True), answer
        assert str(server.folder) not in answer["error"]
    assert server.kept == []


def test_the_dockerfile_serves_what_the_project_has():
    text = re.sub(r"\s*\\\n\s*", " ", (ROOT / "Dockerfile").read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line and line[0] != "#"]
    steps = {word: [rest for key, rest in lines if key == word] for word, _ in lines}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    copied = [name for rest in steps["COPY"] for name in rest.split()[:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert {f"!{name}" for name in copied} <= {*(ROOT / ".dockerignore").read_text().split()}
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', " ".join(steps["RUN"]))
    assert {*extras.split(",")} <= project["optional-dependencies"].keys()
    assert json.loads(steps["ENTRYPOINT"][0])[0] in project["scripts"]
    assert main([*json.loads(steps["CMD"][0]), "--help"]) == 0
    assert int(steps["EXPOSE"][0]) == inspect.signature(serve).parameters["port"].default
    linter = shutil.which("hadolint", path=Path(sys.executable).parent)
    assert linter, "hadolint is of the extra test"
    checked = subprocess.run([linter, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def make_session(sessions, photographs):
    session = sessions.open()
    part = session.folder / "a.part"
    part.write_bytes(photographs["coffee.png"].read_bytes())
    session.add("coffee.png", part, 9)
    return session


def test_the_queue_is_bounded_and_who_leaves_leaves_nothing(tmp_path, monkeypatch, photographs):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    limits = Limits(max_waiting=2, max_sessions=3)
    sessions, worker = Sessions(limits), Worker(limits)  # the worker is not started
    first, second, third = (make_session(sessions, photographs) for _ in range(3))
    with pytest.raises(Refused, match="3 pages are open"):
        sessions.open()
    jobs = [worker.submit(session, Settings()) for session in (first, second)]
    with pytest.raises(Refused, match="are being segmented"):
        worker.submit(first, Settings())
    with pytest.raises(Refused, match="2 runs are waiting"):
        worker.submit(third, Settings())
    assert [worker.before(job) for job in jobs] == [1, 2]
    sessions.close(first.id)
    assert jobs[0].phase == "stopped"
    assert not first.folder.exists()
    assert worker.before(jobs[1]) == 1
    worker.submit(third, Settings())
    sessions.close_all()
    assert list(tmp_path.iterdir()) == []
    # A page that is gone is forgotten.
    sessions = Sessions(Limits(idle_seconds=60))
    gone, here = (make_session(sessions, photographs) for _ in range(2))
    gone.seen -= 61
    sessions.close_idle()
    assert not gone.folder.exists()
    assert sessions.get(here.id) is here
    with pytest.raises(Refused, match="has ended"):
        sessions.get(gone.id)
    sessions.close_all()
    # A run under way deletes what it writes after the user left.
    sessions, worker = Sessions(Limits()), Worker(Limits())
    session = make_session(sessions, photographs)
    job = worker.submit(session, Settings())
    assert job.start()
    sessions.close(session.id)
    assert session.folder.exists()
    with pytest.raises(Stopped):
        job.step("segmenting", 1, 1)
    job.finish("stopped")
    assert not session.folder.exists()
    sessions.close_all()


def test_the_command_serves_on_loopback_and_leaves_nothing(tmp_path, tiny_weights, photographs):
    """Nothing but compiled programs is left anywhere after it was stopped."""
    for name in ("home", "tmp", "cache", "work"):
        (tmp_path / name).mkdir()
    folders = {
        "HOME": "home",
        "TMPDIR": "tmp",
        "UNSEG_JAX_CACHE": "cache",
        "XDG_CACHE_HOME": "cache",
    }
    environment = {name: str(tmp_path / folder) for name, folder in folders.items()}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "unseg_jax.cli.main", "serve", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--backbone", str(tiny_weights)],
        env={**os.environ, **environment},
        cwd=tmp_path / "work",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"open http://127\.0\.0\.1:(\d+)/ in .*\n", line)
        assert found, process.communicate(timeout=60)
        server = Server(None, int(found[1]), tmp_path / "tmp")
        session = server.session()
        server.ask("POST", session + "/files?name=a.png", photographs["coffee.png"].read_bytes())
        # Of no backbone, and compiled fast.
        state = run_to_end(server, session, method="spectral-ncut")
        assert state["phase"] == "done", state
        assert [path.name for path in server.kept].count("a_mask.png") == 1
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert "Traceback" not in said
    left = [path for path in tmp_path.rglob("*") if path.is_file() and "cache" not in path.parts]
    assert left == []
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not any(path.suffix in (".png", ".jpg") for path in tmp_path.rglob("*"))


def test_wrong_options_are_one_sentence(capsys, tmp_path):
    missing = str(tmp_path / "missing.npz")
    assert main(["serve", "--backbone", missing, "--port", "0"]) == 1
    said = capsys.readouterr().err
    assert said == f"unseg-jax: {missing} was not found: --backbone takes a weights file.\n"
    assert main(["serve", "--host", "203.0.113.7", "--port", "0"]) == 1
    assert "cannot listen on 203.0.113.7" in capsys.readouterr().err
