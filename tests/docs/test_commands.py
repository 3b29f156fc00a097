"""Commands in the documentation and in messages run in any shell, that of Windows included."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.quick

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]
SOURCES = [*(ROOT / "unseg_jax").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
_BLOCK = re.compile(r"^```(?:\w+)?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_COMMAND = re.compile(r"^(?:unseg-jax|pip|python) .*", re.MULTILINE)
_SPAN = re.compile(r"`((?:unseg-jax|pip|python) [^`]*)`")
# Requirements in single quotes, which cmd.exe hands on as they are.
_SINGLE = re.compile(r"'(?:unseg_jax|\.)\[[\w,-]+\]'")
# Phrases that were found in earlier pages, and their kind.
_STILTED = re.compile(
    r"gains? on (?:four|some|many) sets|at hand\b|counted and said|said to be|centred by nothing|"
    r"is one sentence\b|of one's own|are no claim|does as well\b|is said\b|are said\b|"
    r"makes? them anew|goes on with",
    re.IGNORECASE,
)


def commands(text: str) -> list[str]:
    """The commands in the code blocks and code spans of a page."""
    blocks = "\n".join(_BLOCK.findall(text))
    return _COMMAND.findall(blocks) + _SPAN.findall(_BLOCK.sub("", text))


def test_commands_have_no_single_quotes_and_pages_are_written_as_engineers_write():
    found = [(page, command) for page in PAGES for command in commands(page.read_text())]
    assert len(found) > 30
    assert [(page, command) for page, command in found if "'" in command] == []
    texts = {page: " ".join(page.read_text().split()) for page in PAGES}
    assert {page: said for page, text in texts.items() if (said := _STILTED.findall(text))} == {}


def test_pages_say_what_to_use_instead_and_answer_questions():
    instead = (ROOT / "docs" / "alternatives.md").read_text()
    for tool in ("rembg", "Cellpose", "Segment Anything", "MaskCut", "TokenCut", "nnU-Net"):
        assert re.search(rf"\[[^]]*{tool}[^]]*\]\(https://github.com/", instead), tool
    assert "a supervised model" in instead
    questions = re.split(r"^### ", (ROOT / "docs" / "questions.md").read_text(), flags=re.M)[1:]
    assert len(questions) >= 20
    assert all(len(question.partition("\n")[2].split()) >= 8 for question in questions)


def test_messages_quote_requirements_for_any_shell():
    notebooks = list((ROOT / "notebooks").glob("*.ipynb"))
    found = [
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in [*SOURCES, *PAGES, *notebooks]
        for match in _SINGLE.finditer(path.read_text())
    ]
    assert not found
    assert _SINGLE.search("pip install 'unseg_jax[onnx]'")
