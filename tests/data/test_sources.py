"""Tiny data sets in every layout that is read, built from scratch."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unseg_jax.data import LAYOUTS, DatasetError, MaskRule, load_mask, open_dataset


def put(folder: Path, *names: str, value: int = 255) -> None:
    """Small images of one grey level by these names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 8), value, np.uint8)).save(path)


def ids(dataset) -> list[str]:
    return [item.id for item in dataset.items]


def test_folder_pairs_pair_by_stem_in_order(tmp_path):
    put(tmp_path / "images", "b.jpg", "a.PNG", "c.one.jpg")
    put(tmp_path / "masks", "a.png", "b.png", "c.one.jpg")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    put(tmp_path / "images", "._b.jpg")
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


def test_images_without_masks_are_not_scored(tmp_path):
    put(tmp_path / "plain", "a.jpg", "b.jpg")
    put(tmp_path / "nested" / "images", "a.jpg")
    for folder, number in (("plain", 2), ("nested", 1)):
        dataset = open_dataset(tmp_path / folder)
        assert (len(dataset), dataset.scored) == (number, 0)
        assert "segmented and not scored" in dataset.notes[0]
    single = open_dataset(tmp_path / "plain" / "b.jpg")
    assert (ids(single), single.scored) == (["b"], 0)


def test_missing_masks_are_one_error_that_names_them(tmp_path):
    put(tmp_path / "images", *(f"{stem}.jpg" for stem in "abcdef"))
    put(tmp_path / "masks", "a.png")
    with pytest.raises(DatasetError, match=r"5 of 6 images have no mask in .*\(b.jpg, c.jpg, d"):
        open_dataset(tmp_path)


def test_masks_with_an_ending_are_not_guessed_at_but_named(tmp_path):
    put(tmp_path / "images", "a.jpg")
    put(tmp_path / "masks", "a_segmentation.png")
    with pytest.raises(DatasetError, match="rename the masks, which end in _segmentation"):
        open_dataset(tmp_path)


def test_masks_without_images_are_a_note(tmp_path):
    put(tmp_path / "images", "a.jpg")
    put(tmp_path / "masks", "a.png", "z.png")
    assert open_dataset(tmp_path).notes[0].startswith("1 masks in")


@pytest.mark.parametrize("folder", ["images", "masks"])
def test_two_files_of_one_stem_are_refused(tmp_path, folder):
    put(tmp_path / "images", "a.jpg")
    put(tmp_path / "masks", "a.png")
    put(tmp_path / folder, "a.bmp")
    with pytest.raises(DatasetError, match=r"holds both a\.bmp and a\.(jpg|png)"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nowhere", "nowhere was not found"),
        ("empty", "holds no images: put files"),
        ("ecsd:empty", "did you mean 'ecssd'"),
        ("ecssd:nowhere", "is published at https"),
        ("ecssd:empty", "does not look like ECSSD.*images with ground_truth_mask"),
    ],
)
def test_nothing_there_is_said(tmp_path, monkeypatch, spec, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=says):
        open_dataset(spec)


def test_bad_arguments_are_refused(tmp_path):
    put(tmp_path, "a.jpg")
    with pytest.raises(DatasetError, match="limit=0"):
        open_dataset(tmp_path, limit=0)
    with pytest.raises(DatasetError, match="mask_key"):
        open_dataset(tmp_path, mask_key="mask")
    with pytest.raises(DatasetError, match="no split 'test': it has none"):
        open_dataset(tmp_path, split="test")


def test_csv_lists(tmp_path):
    put(tmp_path, "one/x.jpg", "two/x.jpg", "y.jpg", "x_mask.png")
    listing = tmp_path / "list.csv"
    listing.write_text("image,mask,split\none/x.jpg,x_mask.png,train\ntwo/x.jpg,,test\ny.jpg,,\n")
    dataset = open_dataset(listing)
    assert len(set(ids(dataset))) == 3
    assert [item.split for item in dataset.items] == ["train", "test", None]
    assert dataset.scored == 1
    assert Path(dataset.items[0].mask) == tmp_path / "x_mask.png"
    assert all(Path(item.image).is_file() for item in dataset.items)
    assert len(open_dataset(listing, split="test")) == 1
    with pytest.raises(DatasetError, match="no split 'dev': it has test, train"):
        open_dataset(listing, split="dev")


def test_jsonl_lists(tmp_path):
    put(tmp_path, "a.jpg", "m.png")
    listing = tmp_path / "list.jsonl"
    rows = [
        {"image": "a.jpg", "mask": "m.png", "id": "first"},
        {"image": str(tmp_path / "a.jpg"), "id": "second/part"},
    ]
    listing.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    dataset = open_dataset(listing)
    assert ids(dataset) == ["first", "second__part"]
    assert Path(dataset.items[1].image) == tmp_path / "a.jpg"
    assert dataset.items[1].mask is None


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "picture,mask\nx,y\n", "no column 'image'"),
        ("a.csv", "image,mask\n,y\n", "line 2 of .* names no image"),
        ("a.csv", "image,mask\n", "holds no images"),
        ("a.csv", "image,id\nx.jpg,one\ny.jpg,one\n", "names 'one' twice"),
        ("a.jsonl", '{"image": "x"}\n{nonsense\n', "line 2 of .* is not JSON"),
        ("a.jsonl", "[1]\n", "line 1 of .* is not an object"),
    ],
)
def test_bad_lists_are_named_by_line(tmp_path, name, text, says):
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match=says):
        open_dataset(tmp_path / name)


TREES = {
    "ecssd": [("images/{}.jpg", "ground_truth_mask/{}.png")],
    "duts-te": [("DUTS-TE-Image/{}.jpg", "DUTS-TE-Mask/{}.png")],
    "cub": [("CUB_200_2011/images/001.Albatross/{}.jpg", "segmentations/001.Albatross/{}.png")],
    "isic2016": [
        (
            "ISBI2016_ISIC_Part1_Test_Data/{}.jpg",
            "ISBI2016_ISIC_Part1_Test_GroundTruth/{}_Segmentation.png",
        )
    ],
    "isic2018": [
        (
            "ISIC2018_Task1-2_Training_Input/{}.jpg",
            "ISIC2018_Task1_Training_GroundTruth/{}_segmentation.png",
        )
    ],
    "kvasir-seg": [("Kvasir-SEG/images/{}.jpg", "Kvasir-SEG/masks/{}.jpg")],
    "cvc-clinicdb": [("Original/{}.tif", "Ground Truth/{}.tif")],
    "cvc-colondb": [("CVC-ColonDB/images/{}.png", "CVC-ColonDB/masks/{}.png")],
    "emds-6": [("EMDS5-Original/01/{}.png", "EMDS5-Ground Truth/01/{}-GTM.png")],
}


def test_every_layout_has_a_tree_here():
    assert set(TREES) == set(LAYOUTS)


@pytest.mark.parametrize("name", TREES)
def test_a_layout_as_it_is_handed_out(tmp_path, name):
    for images, masks in TREES[name]:
        put(tmp_path, *(images.format(stem) for stem in ("p1", "p2", "p3")))
        put(tmp_path, *(masks.format(stem) for stem in ("p1", "p2", "p3")))
    dataset = open_dataset(f"{name}:{tmp_path}")
    assert dataset.name == name
    assert ids(dataset) == ["p1", "p2", "p3"]
    for item in dataset.items:
        assert Path(item.image).name.startswith(item.id)
        assert Path(item.mask).name.startswith(item.id)
        assert item.image != item.mask
        assert load_mask(item.mask, dataset.rule).all()
    assert any("holds 3 images" in note and "http" in note for note in dataset.notes)
    with pytest.raises(DatasetError, match="holds 3 images"):
        open_dataset(f"{name}:{tmp_path}", strict=True)


@pytest.mark.parametrize("name", TREES)
def test_images_and_masks_side_by_side_work_for_every_layout(tmp_path, name):
    put(tmp_path / "images", "a.jpg")
    put(tmp_path / "masks", "a.png")
    assert ids(open_dataset(f"{name}:{tmp_path}")) == ["a"]


@pytest.mark.parametrize(
    ("name", "first_foreground"), [("duts-te", 255), ("cub", 200), ("ecssd", 128), ("emds-6", 128)]
)
def test_mask_rules(name, first_foreground):
    values = np.arange(256)
    np.testing.assert_array_equal(LAYOUTS[name].rule(values), values >= first_foreground)


def test_a_layout_with_a_missing_mask_is_refused(tmp_path):
    images, masks = TREES["isic2016"][0]
    put(tmp_path, images.format("a"), images.format("b"), masks.format("a"))
    with pytest.raises(DatasetError, match="1 of 2 images have no mask"):
        open_dataset(f"isic2016:{tmp_path}")


def test_a_complete_layout_has_no_note_of_its_count(tmp_path):
    names = [f"{number:03d}" for number in range(100)]
    put(tmp_path / "ISIC2018_Task1-2_Validation_Input", *(f"{name}.jpg" for name in names))
    put(
        tmp_path / "ISIC2018_Task1_Validation_GroundTruth",
        *(f"{name}_segmentation.png" for name in names),
    )
    dataset = open_dataset(f"isic2018:{tmp_path}", split="validation", strict=True)
    assert len(dataset) == 100
    assert len(dataset.notes) == 1


def test_cub_splits_come_from_its_own_files(tmp_path):
    root = tmp_path / "CUB_200_2011"
    names = ["001.A/x_1", "001.A/x_2", "002.B/y_1"]
    put(root / "images", *(f"{name}.jpg" for name in names))
    put(tmp_path / "segmentations", *(f"{name}.png" for name in names))
    (root / "images.txt").write_text("".join(f"{i} {n}.jpg\n" for i, n in enumerate(names, 1)))
    (root / "train_test_split.txt").write_text("1 1\n2 0\n3 0\n")
    assert [item.split for item in open_dataset(f"cub:{tmp_path}").items] == [
        "train",
        "test",
        "test",
    ]
    assert ids(open_dataset(f"cub:{tmp_path}", split="test")) == ["x_2", "y_1"]


def test_stems_that_repeat_in_subfolders_get_their_folder(tmp_path):
    for folder in ("01", "02"):
        put(tmp_path / "EMDS5-Original" / folder, "a.png")
        put(tmp_path / "EMDS5-Ground Truth" / folder, "a-GTM.png")
    dataset = open_dataset(f"emds-6:{tmp_path}")
    assert ids(dataset) == ["01__a", "02__a"]
    for item in dataset.items:
        assert Path(item.image).parent.name == Path(item.mask).parent.name == item.id[:2]


def test_datasets_travel_between_processes(tmp_path):
    put(tmp_path / "images", "a.jpg")
    put(tmp_path / "masks", "a.png")
    dataset = open_dataset(tmp_path)
    assert pickle.loads(pickle.dumps(dataset)) == dataset


def test_the_development_sets_open(shared):
    counts = {"isic2018": 200, "kvasir-seg": 200, "cvc-clinicdb": 200, "weizmann_horses": 120}
    for name, count in counts.items():
        dataset = open_dataset(shared / "data" / name)
        assert (len(dataset), dataset.scored) == (count, count)


def test_a_list_keeps_newlines_within_quotes(tmp_path):
    name = "two\nlines.png"
    put(tmp_path, name, "b.png")
    text = f'image,mask,id\r\n"{name}","{name}",first\r\nb.png,b.png,"second, with ""quotes"""\r\n'
    (tmp_path / "list.csv").write_bytes(text.encode())
    dataset = open_dataset(tmp_path / "list.csv")
    assert [Path(item.image).name for item in dataset.items] == [name, "b.png"]
    assert ids(dataset) == ["first", 'second, with "quotes"']
    lines = [
        json.dumps({"image": name, "id": "a\u2028b"}, ensure_ascii=False),
        '{"image": "b.png"}',
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(lines), encoding="utf-8")
    dataset = open_dataset(tmp_path / "list.jsonl")
    assert [Path(item.image).name for item in dataset.items] == [name, "b.png"]
