"""Images as people hold them: columns of tables, rows and pairs of data sets, paths with ~."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from unseg_jax.data import open_dataset, read_image
from unseg_jax.data.decoding import as_iterable
from unseg_jax.errors import ImageError
from unseg_jax.terminal.console import expand

from .conftest import photograph


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder with two photographs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a", "b"):
        Image.fromarray(photograph(ord(name))).save(tmp_path / f"{name}.png")
    return tmp_path


class Pairs:
    """A map-style data set of PyTorch: no iterator, and no IndexError."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index % len(self)], index


def holders(home):
    """Name → something that holds the two photographs, as paths or as pictures."""
    paths = [str(home / "a.png"), str(home / "b.png")]
    pictures = [Image.fromarray(photograph(ord(letter))) for letter in "ab"]
    encoded = [Path(path).read_bytes() for path in paths]
    return {
        "series": pd.Series(paths, index=[7, 9]),
        "strings of pandas": pd.Series(paths, dtype="string"),
        "categories": pd.Series(paths, dtype="category"),
        "index": pd.Index(paths),
        "array of strings": np.array(paths),
        "array of objects": np.array(paths, object),
        "tilde": ["~/a.png", "~/b.png"],
        "rows": [{"image": picture, "label": 1} for picture in pictures],
        "rows of bytes": [{"bytes": data, "path": "no.png"} for data in encoded],
        "rows of paths": [{"image": {"bytes": None, "path": path}} for path in paths],
        "pairs": [(pictures[0], 3), (pictures[1], np.int64(3))],
        "pairs with boxes": [(picture, {"boxes": []}) for picture in pictures],
        "data set of pairs": Pairs(pictures),
        "pair of paths": (paths[0], paths[1]),
    }


def test_two_images_are_read(home):
    for name, held in holders(home).items():
        found = [read_image(source, (8, 8)).pixels for source in as_iterable(held)]
        assert len(found) == 2, name
        for pixels, letter in zip(found, "ab", strict=True):
            np.testing.assert_array_equal(pixels, photograph(ord(letter)), err_msg=name)
    for name in ("rows", "pairs", "tilde"):  # one of them is one image
        (source,) = as_iterable(holders(home)[name][0])
        np.testing.assert_array_equal(read_image(source).pixels, photograph(ord("a")))


@pytest.mark.parametrize(
    ("read", "source", "said"),
    [
        (read_image, {"picture": 1, "label": 2}, "has picture, label: give the image in it"),
        (read_image, (photograph(), photograph()), "holds 2 values: give the image in it, as in"),
        (as_iterable, pd.DataFrame({"image": ["a.png"]}), r"its column of paths, as in table\['im"),
    ],
)
def test_what_does_not_say_which_is_the_image_is_refused(read, source, said):
    with pytest.raises(ImageError, match=said):
        read(source)


def test_command_lines_and_data_sets_know_the_home_folder(home):
    assert expand(["~/[ab].png"]) == [str(home / "a.png"), str(home / "b.png")]
    assert len(open_dataset("~")) == 2
    (home / "list.csv").write_text("image\n~/a.png\n")
    assert open_dataset("~/list.csv").items[0].image == home / "a.png"
    (source,) = as_iterable(np.array("~/a.png"))
    np.testing.assert_array_equal(read_image(source).pixels, photograph(ord("a")))
