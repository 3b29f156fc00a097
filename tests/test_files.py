"""Files are written whole or not at all, and options about them are read or refused."""

import pytest

from unseg_jax.errors import printable
from unseg_jax.files import atomic, write_text
from unseg_jax.terminal.shared_options import parse_page, parse_range

pytestmark = pytest.mark.quick


def test_a_file_is_written_whole_or_left_as_it_was(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_text(path, "first")
    with pytest.raises(RuntimeError), atomic(path) as partial:  # noqa: PT012
        partial.write_text("half of the sec")
        raise RuntimeError
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


def test_names_that_are_not_utf8_can_be_written_about(tmp_path):
    write_text(tmp_path / "a.html", "caf\udce9 é")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == r"caf\udce9 é"
    # Messages hold no control characters.
    assert printable("a\x1b[2Jb\nc\u202ed") == r"a\x1b[2Jb\nc\u202ed"
    assert printable("größe 图") == "größe 图"


def test_pages_and_ranges_are_numbers_or_words():
    assert parse_page("all") is None
    assert parse_page("12") == 12
    assert parse_range("image") is None
    assert parse_range("SET") == "set"
    assert parse_range("-1024:3071.5") == (-1024.0, 3071.5)
    for text in ("0", "-1", "two", ""):
        with pytest.raises(ValueError, match=f"--page {text} is not a page"):
            parse_page(text)
    for text in ("5", "5:5", "9:1", "0:inf", "nan:1", "a:b", ""):
        with pytest.raises(ValueError, match=f"--range {text} is not a range"):
            parse_range(text)
