"""Frames written and read again: animated images, folders, films."""

import struct
import sys

import numpy as np
import pytest
from PIL import Image

from unseg_jax.errors import ImageError, InputError
from unseg_jax.video.frames import check_target, open_frames, write_frames

pytestmark = pytest.mark.quick


def clip(count=5, shape=(18, 24)):
    """A bright square that moves to the right over a dark ground."""
    pictures = np.full((count, *shape, 3), (40, 60, 80), np.uint8)
    for index in range(count):
        pictures[index, 6:12, 2 + 3 * index : 8 + 3 * index] = (220, 200, 40)
    return list(pictures)


def assert_close(found, expected, most):
    for frame, picture in zip(found, expected, strict=True):
        assert (frame.shape, frame.dtype) == (picture.shape, np.uint8)
        assert np.abs(frame.astype(int) - picture).mean() < most


def test_animations_and_films_come_back(tmp_path):
    for suffix, most in ((".gif", 3), (".webp", 12), (".apng", 0.01)):
        path = tmp_path / f"clip{suffix}"
        write_frames(path, iter(clip()), rate=5)
        found = open_frames(path)
        assert found.rate == pytest.approx(5)
        assert_close(found, clip(), most)
        assert_close(found, clip(), most)  # and a second time
    pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    write_frames(path, clip(shape=(33, 48)), rate=5)
    found = open_frames(path)
    assert found.rate == pytest.approx(5)
    pictures = [np.pad(frame, ((0, 1), (0, 0), (0, 0)), "edge") for frame in clip(shape=(33, 48))]
    assert_close(found, pictures, 12)


def test_folders_and_iterators_are_gone_through_in_order(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for index, frame in enumerate(clip(11)):
        Image.fromarray(frame).save(folder / f"frame{index}.png")
    (folder / "notes.txt").write_text("not a frame")
    assert_close(open_frames(folder), clip(11), 0.01)
    write_frames(tmp_path / "out", clip(), rate=5)
    assert sorted(path.name for path in (tmp_path / "out").iterdir())[-1] == "00004.png"
    assert_close(open_frames(tmp_path / "out"), clip(), 0.01)
    # Frames of a longer film do not stay.
    (tmp_path / "out/99.png").write_bytes(b"no frame of ours")
    write_frames(tmp_path / "out", clip()[:1], rate=5)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"00000.png", "99.png"}
    found = open_frames(iter(clip()))
    assert_close(found, clip(), 0.01)
    assert_close(found, clip(), 0.01)


def test_what_cannot_be_read_or_written_is_named(tmp_path, monkeypatch):
    pytest.importorskip("av")
    with pytest.raises(ImageError, match="holds no images"):
        open_frames(tmp_path)
    for frames, said in (([clip()[0], clip()[0][:5]], "frame 1 has shape"), ([], "no frames")):
        with pytest.raises(ValueError, match=said):
            write_frames(tmp_path / "clip.gif", frames, rate=5)
    assert not list(tmp_path.iterdir())
    (tmp_path / "broken.gif").write_bytes(b"GIF89a nothing")
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    for said in (r"nothing\.mp4 was not found", r"broken\.gif", r"broken\.mp4"):
        with pytest.raises(ImageError, match=said):
            open_frames(tmp_path / said.replace("\\", "").partition(" ")[0])
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r"unseg_jax\[video\]"):
        write_frames(tmp_path / "clip.mp4", clip(), rate=5)


def test_a_video_never_replaces_its_source(tmp_path):
    source = tmp_path / "clip.gif"
    write_frames(source, clip(), rate=5)
    link, hard, folder = tmp_path / "link.gif", tmp_path / "hard.gif", tmp_path / "frames"
    link.symlink_to(source)
    hard.hardlink_to(source)
    write_frames(folder, clip(), rate=5)
    door = tmp_path / "door"
    door.symlink_to(folder)
    cases = [(source, source), (link, source), (source, link), (source, hard), (str(link), link)]
    cases += [(folder, folder), (folder, door), (door, folder), ([folder / "00000.png"], door)]
    for path, target in cases:
        with pytest.raises(InputError, match="is the source itself"):
            check_target(path, target)
    check_target(source, tmp_path / "new.gif")
    check_target(iter(clip()), folder, overwrite=True)
    check_target(folder, tmp_path / "new")
    mine = tmp_path / "mine.gif"
    mine.write_bytes(b"of the user's")
    for target in (mine, folder):
        with pytest.raises(InputError, match=r"is there already: .*overwrite=True"):
            check_target(source, target)
    check_target(source, mine, overwrite=True)
    (folder / "mine.txt").write_text("")
    with pytest.raises(InputError, match=r"holds other files, such as mine\.txt"):
        check_target(source, folder, overwrite=True)


def test_a_film_with_a_display_matrix_is_turned_upright(tmp_path):
    pytest.importorskip("av")
    frame = np.zeros((48, 64, 3), np.uint8)
    frame[:, :32] = 255  # white on the left
    path = tmp_path / "phone.mp4"
    write_frames(path, [frame] * 3, 5)
    content = bytearray(path.read_bytes())
    # The matrix of the track header: turned clockwise by 90 degrees, as 16.16 and 2.30 numbers.
    start = content.index(b"tkhd") + 4 + 40
    matrix = [0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30]
    content[start : start + 36] = struct.pack(">9i", *matrix)
    path.write_bytes(content)
    upright = next(iter(open_frames(path)))
    assert upright.shape == (64, 48, 3)
    assert upright[:28].mean() > 200  # white on top
    assert upright[36:].mean() < 50
