"""Tiny data sets in every layout that is read, built from scratch."""

import itertools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from unseg_jax.data import LAYOUTS, DatasetError, MaskRule, load_image, open_dataset, read_mask
from unseg_jax.data.sources import masks_by_stem

from .conftest import draw, put


def ids(dataset) -> list[str]:
    return [item.id for item in dataset.items]


def test_folder_pairs_pair_by_stem_in_order(tmp_path):
    put(tmp_path / "images", "b.jpg", "a.PNG", "c.one.jpg", "._b.jpg")
    put(tmp_path / "masks", "a.png", "b.png", "c.one.jpg")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    dataset = open_dataset(tmp_path)
    assert ids(dataset) == ["a", "b", "c.one"]
    assert [Path(item.mask).name for item in dataset.items] == ["a.png", "b.png", "c.one.jpg"]
    assert dataset.name == tmp_path.name
    assert (len(dataset), dataset.scored) == (3, 3)
    where = tmp_path / "images"
    assert dataset.notes == (f"1 file in {where} left out by suffix: 1 .txt.",)
    assert dataset.rule == MaskRule()
    assert ids(open_dataset(str(tmp_path), limit=2)) == ["a", "b"]
    assert open_dataset(tmp_path, foreground=[1, 3]).rule == MaskRule(values=(1, 3))
    assert open_dataset(tmp_path, void=[9]).rule == MaskRule(void=(9,))
    assert pickle.loads(pickle.dumps(dataset)) == dataset  # it travels between processes
    put(tmp_path / "masks", "z.png")
    assert open_dataset(tmp_path).notes[1].startswith("1 masks in")


def test_images_without_masks_are_not_scored(tmp_path):
    put(tmp_path, "plain/a.jpg", "plain/b.jpg", "nested/images/a.jpg")
    says = "segmented and not scored"
    for path, names, note in (
        ("plain", ["a", "b"], says),
        ("nested", ["a"], says),
        ("plain/b.jpg", ["b"], "has no mask"),
    ):
        dataset = open_dataset(tmp_path / path)
        assert (ids(dataset), dataset.scored) == (names, 0)
        assert note in dataset.notes[0]


@pytest.mark.parametrize(
    ("images", "masks", "says"),
    [
        ("abcdef", ["a.png"], r"5 of 6 images have no mask in .*\(b.jpg, c.jpg, d.* add masks"),
        ("a", ["a_segmentation.png"], "rename the masks, which end in _segmentation"),
        ("a", ["a.png", "a.bmp"], r"holds both a\.bmp and a\.png"),
    ],
)
def test_what_does_not_pair_is_one_error_that_names_it(tmp_path, images, masks, says):
    put(tmp_path / "images", *(f"{stem}.jpg" for stem in images))
    put(tmp_path / "masks", *masks)
    with pytest.raises(DatasetError, match=says):
        open_dataset(tmp_path)


def test_masks_pair_page_by_page(tmp_path):
    for name, images, masks in (("s.tif", (10, 20, 30), (0, 255, 0)), ("t.png", (9,), (255,))):
        draw(tmp_path / "images" / name, *images)
        draw(tmp_path / "masks" / name, *masks)
    dataset = open_dataset(tmp_path)
    assert ids(dataset) == ["s_p001", "s_p002", "s_p003", "t"]
    assert [item.page for item in dataset.items] == [1, 2, 3, None]
    shares = [read_mask(item.mask, dataset.rule).share for item in dataset.items]
    assert shares == [0, 1, 0, 1]
    assert [load_image(item.image)[0, 0, 0] for item in dataset.items] == [10, 20, 30, 9]
    draw(tmp_path / "masks" / "s.tif", 9)
    with pytest.raises(DatasetError, match=r"has 3 pages and its mask .* has 1"):
        open_dataset(tmp_path)


def test_masks_of_some_images_are_found_by_stem(tmp_path):
    put(tmp_path, "a.jpg", "b.jpg", "c.jpg", "other/b.jpg")
    images = [tmp_path / f"{stem}.jpg" for stem in "abc"]
    (tmp_path / "masks").mkdir()
    with pytest.raises(DatasetError, match="holds no masks: put one there"):
        masks_by_stem(tmp_path / "masks", images)
    put(tmp_path / "masks", "b.png")
    found = masks_by_stem(tmp_path / "masks", images)
    assert found == {images[1]: tmp_path / "masks" / "b.png"}
    with pytest.raises(DatasetError, match=r"b\.jpg and .*b\.jpg both pair with .*b\.png"):
        masks_by_stem(tmp_path / "masks", [*images, tmp_path / "other" / "b.jpg"])
    put(tmp_path / "masks", "none.png")
    with pytest.raises(DatasetError, match=r"none\.png has no image of the stem 'none': name it"):
        masks_by_stem(tmp_path / "masks", images)


@pytest.mark.parametrize(
    ("spec", "options", "says"),
    [
        ("nowhere", {}, "nowhere was not found"),
        ("empty", {}, "holds no images: put files"),
        ("ecsd:empty", {}, "did you mean 'ecssd'"),
        ("ecssd:nowhere", {}, "is published at https"),
        ("ecssd:empty", {}, "does not look like ECSSD.*images with ground_truth_mask"),
        ("a.jpg", {"limit": 0}, "limit=0"),
        ("a.jpg", {"mask_key": "mask"}, "mask_key"),
        ("a.jpg", {"split": "test"}, "no split 'test': it has none"),
    ],
)
def test_what_is_not_there_is_said(tmp_path, monkeypatch, spec, options, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    put(tmp_path, "a.jpg")
    with pytest.raises(DatasetError, match=says):
        open_dataset(spec, **options)


def test_lists(tmp_path):
    name = "two\nlines.jpg"
    put(tmp_path, "one/x.jpg", "two/x.jpg", name, "x_mask.png")
    mask, one = tmp_path / "x_mask.png", tmp_path / "one" / "x.jpg"
    rows = ["image,mask,split,id", "one/x.jpg,x_mask.png,train,", "two/x.jpg,,test,"]
    rows.append(f'"{name}",,,"third, with ""quotes"""')
    (tmp_path / "list.csv").write_bytes("\r\n".join(rows).encode())
    dataset = open_dataset(tmp_path / "list.csv")
    assert len(set(ids(dataset))) == 3
    assert ids(dataset)[2] == 'third, with "quotes"'
    assert [item.split for item in dataset.items] == ["train", "test", None]
    assert [item.mask for item in dataset.items] == [mask, None, None]
    assert all(Path(item.image).is_file() for item in dataset.items)
    assert len(open_dataset(tmp_path / "list.csv", split="test")) == 1
    with pytest.raises(DatasetError, match="no split 'dev': it has test, train"):
        open_dataset(tmp_path / "list.csv", split="dev")
    rows = [
        {"image": "one/x.jpg", "mask": "x_mask.png", "id": "first\u2028line"},
        {"image": str(one), "id": "second/part"},
    ]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "list.jsonl").write_text(text + "\n\n", encoding="utf-8")
    first, second = open_dataset(tmp_path / "list.jsonl").items
    assert (first.image, first.mask) == (one, mask)
    assert (second.image, second.mask, second.id) == (one, None, "second__part")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "picture,mask\nx,y\n", "no column 'image'"),
        ("a.csv", "a.png;b.png\n", r"no column 'image' in its first line, 'a\.png;b\.png'"),
        ("a.csv", "image,mask\n,y\n", "line 2 of .* names no image"),
        ("a.csv", "image,mask\n", "holds no images"),
        ("a.csv", "image,id\nx.jpg,one\ny.jpg,one\n", "names 'one' twice"),
        ("a.csv", "image\ncaf\u00e9.png\n", r"is not utf-8 .* at byte 9\): save it as UTF-8"),
        ("a.jsonl", '{"image": "x"}\n{nonsense\n', "line 2 of .* is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 of .* is not an object"),
    ],
)
def test_bad_lists_are_named_by_line(tmp_path, name, text, says):
    (tmp_path / name).write_text(text, encoding="latin-1")
    with pytest.raises(DatasetError, match=says):
        open_dataset(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_lists_of_spreadsheets_are_read(tmp_path, encoding):
    row = {"image": "caf\u00e9, 1.png", "mask": "m; 1.png", "id": "one"}
    headers = ("image", "mask"), ("Mask", "IMAGE "), ("id", "Image", "mask")
    for separator, header in itertools.product(",;\t|", headers):
        cells = [f'"{row[name.strip().lower()]}"' for name in header]
        text = separator.join(header) + "\r\n" + separator.join(cells) + "\r\n"
        (tmp_path / "list.csv").write_bytes(text.encode(encoding))
        (item,) = open_dataset(tmp_path / "list.csv").items
        assert (item.image, item.mask) == (tmp_path / row["image"], tmp_path / row["mask"])


# Paths of an image and of its mask.
TREES = {
    "ecssd": ("images/{}.jpg", "ground_truth_mask/{}.png"),
    "duts-te": ("DUTS-TE-Image/{}.jpg", "DUTS-TE-Mask/{}.png"),
    "cub": ("CUB_200_2011/images/001.Albatross/{}.jpg", "segmentations/001.Albatross/{}.png"),
    "isic2016": (
        "ISBI2016_ISIC_Part1_Test_Data/{}.jpg",
        "ISBI2016_ISIC_Part1_Test_GroundTruth/{}_Segmentation.png",
    ),
    "isic2018": (
        "ISIC2018_Task1-2_Training_Input/{}.jpg",
        "ISIC2018_Task1_Training_GroundTruth/{}_segmentation.png",
    ),
    "kvasir-seg": ("Kvasir-SEG/images/{}.jpg", "Kvasir-SEG/masks/{}.jpg"),
    "cvc-clinicdb": ("Original/{}.tif", "Ground Truth/{}.tif"),
    "cvc-colondb": ("CVC-ColonDB/images/{}.png", "CVC-ColonDB/masks/{}.png"),
    "emds-6": ("EMDS5-Original/01/{}.png", "EMDS5-Ground Truth/01/{}-GTM.png"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_as_it_is_handed_out(tmp_path, name):
    for paths in TREES[name]:
        put(tmp_path, *(paths.format(stem) for stem in ("p1", "p2", "p3")))
    dataset = open_dataset(f"{name}:{tmp_path}")
    assert dataset.name == name
    assert ids(dataset) == ["p1", "p2", "p3"]
    for item in dataset.items:
        assert Path(item.image).name.startswith(item.id)
        assert Path(item.mask).name.startswith(item.id)
        assert item.image != item.mask
        assert read_mask(item.mask, dataset.rule).mask.all()
    assert any("holds 3 images" in note and "http" in note for note in dataset.notes)
    with pytest.raises(DatasetError, match="holds 3 images"):
        open_dataset(f"{name}:{tmp_path}", strict=True)
    put(tmp_path, TREES[name][0].format("p4"))
    with pytest.raises(DatasetError, match="1 of 4 images have no mask"):
        open_dataset(f"{name}:{tmp_path}")
    put(tmp_path / "copy", "images/a.jpg", "masks/a.png")  # works for every layout
    assert ids(open_dataset(f"{name}:{tmp_path / 'copy'}")) == ["a"]


def test_mask_rules():
    values = np.arange(256)
    for name, first in (("duts-te", 255), ("cub", 200), ("ecssd", 128), ("emds-6", 128)):
        np.testing.assert_array_equal(LAYOUTS[name].rule(values), values >= first)


def test_a_complete_layout_has_no_note_of_its_count(tmp_path):
    for number in range(100):
        put(tmp_path / "ISIC2018_Task1-2_Validation_Input", f"{number:03d}.png")
        put(tmp_path / "ISIC2018_Task1_Validation_GroundTruth", f"{number:03d}_segmentation.png")
    dataset = open_dataset(f"isic2018:{tmp_path}", split="validation", strict=True)
    assert len(dataset) == 100
    assert len(dataset.notes) == 1


def test_cub_splits_come_from_its_own_files(tmp_path):
    root, names = tmp_path / "CUB_200_2011", ["001.A/x_1", "001.A/x_2", "002.B/y_1"]
    put(root / "images", *(f"{name}.jpg" for name in names))
    put(tmp_path / "segmentations", *(f"{name}.png" for name in names))
    assert {item.split for item in open_dataset(f"cub:{tmp_path}").items} == {None}
    (root / "images.txt").write_text("".join(f"{i} {n}.jpg\n" for i, n in enumerate(names, 1)))
    (root / "train_test_split.txt").write_text("1 1\n2 0\n3 0\n")
    splits = {item.id: item.split for item in open_dataset(f"cub:{tmp_path}").items}
    assert splits == {"x_1": "train", "x_2": "test", "y_1": "test"}
    assert ids(open_dataset(f"cub:{tmp_path}", split="test")) == ["x_2", "y_1"]


def test_stems_that_repeat_in_subfolders_get_their_folder(tmp_path):
    for folder in ("01", "02"):
        put(tmp_path, *(tree.replace("01", folder).format("a") for tree in TREES["emds-6"]))
    dataset = open_dataset(f"emds-6:{tmp_path}")
    assert ids(dataset) == ["01__a", "02__a"]
    for item in dataset.items:
        assert Path(item.image).parent.name == Path(item.mask).parent.name == item.id[:2]
