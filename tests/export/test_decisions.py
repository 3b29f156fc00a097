"""Files of decisions: what is read of them, what a fit takes, and what is refused."""

import json

import numpy as np
import pytest

from unseg_jax.data.folders import ImageFile
from unseg_jax.errors import InputError
from unseg_jax.export.decisions import kept_names, marks_from, read_decisions, read_kinds
from unseg_jax.export.kinds import Kinds, pack

pytestmark = pytest.mark.quick

STROKE = {"thing": True, "radius": 1.5, "points": [[1, 2], [3.5, 2]]}
MASK = {"size": [4, 6], "objects": [{"box": [1, 0, 3, 4], "counts": "08"}]}


def write(path, *images):
    path.write_text(json.dumps({"format": "unseg-jax decisions", "images": images}))
    return path


def test_what_a_fit_takes_of_each_kind_of_decision(tmp_path):
    file = write(
        tmp_path / "decisions.json",
        {"name": "kept", "decision": "keep", **MASK},
        {"name": "inverted", "decision": "reject", "reason": "inverted", **MASK},
        {"name": "wrong", "decision": "reject", "reason": "wrong thing"},
        {"name": "clicked", "decision": "reject", "clicks": [[1, 2.5, True]]},
        {"name": "open", "decision": "undecided", "clicks": [[0, 0, False]], "strokes": [STROKE]},
    )
    names = ("kept", "inverted", "wrong", "clicked", "open", "other")
    images = [ImageFile(tmp_path / f"{name}.png", name) for name in names]
    decisions = read_decisions(file)
    assert kept_names(decisions) == {"kept"}
    sources, examples, clicks = marks_from(decisions, images)
    assert [path.stem for path in sources] == ["kept", "inverted", "clicked", "open", "other"]
    mask = np.zeros((4, 6), bool)
    mask[:, 1:3] = True
    found = {path.stem: one for path, one in examples.items()}
    np.testing.assert_array_equal([found.pop("kept"), found.pop("inverted")], [mask, ~mask])
    assert not found
    assert {path.stem: one for path, one in clicks.items()} == {
        "clicked": ((1, 2.5, True),),
        "open": ((0, 0, False), ([(1, 2), (3.5, 2)], 1.5, True)),
    }
    with pytest.raises(InputError, match="'open' was decided on and is none of the 5 images"):
        marks_from(decisions, [image for image in images if image.name != "open"])
    with pytest.raises(InputError, match="nothing to learn"):
        marks_from(decisions[2:3], images)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no columns name and decision"),
        ("name,file,decision\nx,x,reject\n", "no image is kept"),
        ("", "no image is kept"),
        ("\xff", "cannot be read"),
        ("{", "cannot be read"),
        ('{"format": "another"}', "no decisions of unseg-jax"),
    ],
)
def test_a_file_without_decisions_is_refused(tmp_path, text, message):
    path = tmp_path / "keep.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message):
        kept_names(read_decisions(path))


@pytest.mark.parametrize(
    "change",
    [
        {"decision": "kept"},
        {"reason": "ugly"},
        {"name": 1},
        {"clicks": [[1, 2]]},
        {"strokes": [[[1, 2], 3, True]]},
        {"strokes": [{**STROKE, "points": [1, 2]}]},
        {"strokes": [{**STROKE, "radius": "wide"}]},
        {"size": [2, 6]},
        {"size": [-4, 6]},
        {"objects": [{"box": [-1, 0, 1, 4], "counts": "08"}]},
        {"objects": [{"box": [1, 0, 3, 4], "counts": "09"}]},
    ],
)
def test_an_image_that_cannot_be_is_refused(tmp_path, change):
    file = write(tmp_path / "x.json", {"name": "a", "decision": "keep", **MASK, **change})
    with pytest.raises(InputError, match=r"x[.]json cannot be read"):
        read_decisions(file)


KINDS = Kinds(np.ones(3), np.ones((3, 2)), np.ones((2, 2)), ("kind 1", "kind 2"))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"told": None},
        {"told": {"shape": [3, 2, 9], "values": "AAAA"}},
        {"told": {"shape": [3, 2, 2], "values": "no base64"}},
        {"names": ["a"]},
        {"names": ["a", 1]},
        {"dropped": [3]},
        {"dropped": [[1]]},
    ],
)
def test_kinds_are_read_or_refused(tmp_path, change):
    path = tmp_path / "x.json"
    assert read_kinds(write(path)) is None
    single = (np.float32(part) for part in (KINDS.mean, KINDS.basis, KINDS.centres))
    told = pack(Kinds(*single, KINDS.names))
    stored = {"told": told, "names": [" cat\n ", ""], "dropped": [2], **change}
    path.write_text(json.dumps({"format": "unseg-jax decisions", "images": [], "kinds": stored}))
    if not change:
        kinds = read_kinds(path)
        assert (kinds.names, kinds.dropped) == (("cat", "kind 2"), {2})
        np.testing.assert_array_equal(kinds.basis, KINDS.basis)
        return
    with pytest.raises(InputError, match=r"x[.]json cannot be read .its kinds cannot be used"):
        read_kinds(path)
