"""Every Python example of the documentation runs, page by page, in the order of the page."""

import re
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image

DOCS = Path(__file__).resolve().parents[2] / "docs"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PHOTOGRAPHS = ("coffee.png", "astronaut.png", "chelsea.png")


def examples(page: Path) -> list[str]:
    return _BLOCK.findall(page.read_text())


PAGES = [page for page in sorted(DOCS.rglob("*.md")) if examples(page)]
assert len(PAGES) >= 5


@pytest.fixture
def photos(tmp_path, monkeypatch, small_images):
    """A folder `photos/` of small photographs in the working folder of the examples."""
    (tmp_path / "photos").mkdir()
    for name in _PHOTOGRAPHS:
        with Image.open(str(files("skimage") / "data" / name)) as image:
            small = image.convert("RGB").resize((160, 120))
            small.save(tmp_path / "photos" / f"{Path(name).stem}.jpg")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_run(page, photos, capsys):
    names: dict = {"__name__": "__main__"}
    for number, block in enumerate(examples(page), 1):
        exec(compile(block, f"{page.name}, example {number}", "exec"), names)
