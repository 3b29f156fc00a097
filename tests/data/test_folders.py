"""One search for images: it ends, goes on, follows links, and says what it left out."""

import os
import sys
from pathlib import Path

import pytest

from unseg_jax.data import load_image, open_dataset
from unseg_jax.data.folders import find_images, list_images, safe_name
from unseg_jax.errors import InputError
from unseg_jax.video.frames import open_frames

from .conftest import draw, put

pytestmark = pytest.mark.quick


def relative(root: Path, files) -> list[str]:
    return [file.relative_to(root).as_posix() for file in files]


def test_files_come_before_folders_each_sorted(tmp_path):
    put(tmp_path, "b.png", "a.JPG", "z/1.jfif", "c/2.png", "c/d/3.png", ".hidden/4.png", ".5.png")
    deep = list_images(tmp_path, recursive=True)
    assert relative(tmp_path, deep.files) == ["a.JPG", "b.png", "c/2.png", "c/d/3.png", "z/1.jfif"]
    flat = list_images(tmp_path)
    assert relative(tmp_path, flat.files) == ["a.JPG", "b.png"]
    assert relative(tmp_path, flat.inner) == ["c", "z"]


def test_links_are_followed_and_no_folder_is_searched_twice(tmp_path):
    root = tmp_path / "root"
    draw(root / "a.png")
    draw(tmp_path / "store" / "b.png")
    (root / "l1").symlink_to(".")
    (root / "l2").symlink_to(".")
    (root / "linked").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "back").symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    (root / "gone.png").symlink_to(tmp_path / "nothing")
    found = list_images(root, recursive=True)
    assert relative(root, found.files) == ["a.png", "gone.png", "linked/b.png"]
    assert list_images(root / "l1").files[0] == root / "l1" / "a.png"


def test_depth_has_no_limit(tmp_path):
    path, limit = tmp_path.joinpath(*["d"] * 400, "a.png"), sys.getrecursionlimit()
    os.makedirs(path.parent)
    path.touch()
    sys.setrecursionlimit(300)
    try:
        assert list_images(tmp_path, recursive=True).files == (path,)
    finally:
        sys.setrecursionlimit(limit)


def test_a_folder_that_cannot_be_read_costs_only_itself(tmp_path, monkeypatch):
    put(tmp_path, "a/1.png", "locked/2.png", "z/3.png")
    scandir = os.scandir

    def guarded(path):
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    found = list_images(tmp_path, recursive=True)
    assert relative(tmp_path, found.files) == ["a/1.png", "z/3.png"]
    said = f"the folder {tmp_path / 'locked'} cannot be read (permission denied) and was left out."
    assert found.left_out == (said,)
    with pytest.raises(InputError, match="locked cannot be read"):
        list_images(tmp_path / "locked")


def test_what_is_left_out_is_counted_by_suffix(tmp_path):
    draw(tmp_path / "a.png")
    for name in ("1.HEIC", "2.HEIC", "3.dcm", "README", "report.html", ".DS_Store"):
        (tmp_path / name).touch()
    found = find_images([tmp_path])
    assert [image.name for image in found] == ["a"]
    said = f"4 files in {tmp_path} left out by suffix: 2 .HEIC, 1 .dcm, 1 no suffix."
    assert found.left_out == (said,)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"holds no images \(4 files .* 2 .HEIC"):
        find_images([tmp_path])
    draw(tmp_path / "inner" / "a.png")
    with pytest.raises(InputError, match=r"name a folder within it, such as .*inner, or use rec"):
        find_images([tmp_path])


def test_own_outputs_are_never_images_again(tmp_path):
    put(tmp_path, "a.png", "a_mask.png", "a_labels.png", "a_overlay.png", "b_mask.png")
    # Without a report they may well be the user's.
    assert len(find_images([tmp_path], out=tmp_path / "out")) == 5
    with pytest.raises(InputError, match=r"a_mask.png would be overwritten.*another folder"):
        find_images([tmp_path], out=tmp_path)
    (tmp_path / "report.html").touch()
    found = find_images([tmp_path])
    assert [image.path.name for image in found] == ["a.png", "b_mask.png"]
    assert found.left_out == (f"3 files in {tmp_path} left out as outputs of an earlier run.",)
    # Named one by one, they are taken as anything else.
    assert len(find_images(tmp_path.glob("a_*.png"))) == 3
    # Masks that a run wrote alone are known by its manifest, unless that cannot be read.
    put(tmp_path / "alone", "a.png", "a_mask.png", "b_mask.png")
    manifest = tmp_path / "alone" / "unseg_jax.json"
    for content, number in (
        (b'{"images": {"a": {"files": {"a_mask.png": [1, 2]}}}}', 2),
        (b"\xff", 3),
    ):
        manifest.write_bytes(content)
        assert len(find_images([tmp_path / "alone"])) == number


def test_every_page_gets_its_name(tmp_path):
    draw(tmp_path / "stack.tif", 10, 200, 90)
    draw(tmp_path / "one.png", 9)
    found = find_images([tmp_path])
    assert [image.name for image in found] == ["one", "stack_p001", "stack_p002", "stack_p003"]
    assert [load_image(image.source)[0, 0, 0] for image in found] == [9, 10, 200, 90]
    second = find_images([tmp_path], page=2)
    assert [(image.name, image.page) for image in second] == [("one", None), ("stack_p002", 2)]


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS has UTF-8 names only")
def test_names_are_kept_and_named_safely(tmp_path):
    path = draw(Path(os.fsdecode(os.fsencode(tmp_path) + b"/images/caf\xe9\x1b[1m.png")))
    (image,) = find_images([path.parent])
    assert (image.path, image.name) == (path, "caf%udce9%x1b[1m")
    (item,) = open_dataset(path.parent).items
    assert item.id == image.name
    load_image(item.image)
    long = "é" * 120
    name = safe_name(long)
    assert len(name.encode()) <= 200
    assert name != safe_name(long + "é")
    assert safe_name("a\0b/c\\d plain name.1") == "a%x00b__c__d plain name.1"


def test_layouts_and_films_search_as_all_others(tmp_path):
    for kind, folder in (("i", "CUB_200_2011/images"), ("s", "segmentations")):
        draw(tmp_path / "store" / kind / "1.png")
        draw(tmp_path / "cub" / folder / "002.B" / "2.png")
        (tmp_path / "cub" / folder / "001.A").symlink_to(tmp_path / "store" / kind)
    assert [item.id for item in open_dataset(f"cub:{tmp_path / 'cub'}").items] == ["1", "2"]
    for number in (10, 9):
        draw(tmp_path / "film" / f"frame{number}.jfif.png", number)
    assert [frame[0, 0, 0] for frame in open_frames(tmp_path / "film")] == [9, 10]
