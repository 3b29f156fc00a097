"""The library where Python lacks what only Unix has, and where terminals lack letters."""

import io
import subprocess
import sys

import pytest
from PIL import Image

from unseg_jax.cli.main import main

# As on Windows, and on platforms without locks of files.
NO_UNIX = """
import os, signal, sys, warnings
warnings.simplefilter("error")
warnings.filterwarnings("ignore", message="only soft file lock is available")
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_DIRECTORY", "O_CLOEXEC", "fork", "getpgid", "killpg",
             "mkfifo", "fchmod", "chown", "statvfs", "sched_getaffinity"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGPIPE"):
    if hasattr(signal, name):
        delattr(signal, name)
"""


EVERYTHING = """
import importlib, pkgutil, unseg_jax
modules = pkgutil.walk_packages(unseg_jax.__path__, 'unseg_jax.')
names = [m.name for m in modules if not m.name.endswith('__main__')]
for name in names: importlib.import_module(name)
assert len(names) > 100
from pathlib import Path
from unseg_jax.bench.run.runner import Timing
from unseg_jax.data import read_image
from unseg_jax.files import write_text
from unseg_jax.runs.result_store import ResultStore
assert Timing().as_json()['peak_memory_mb'] is None
folder = Path(sys.argv[1])
print(read_image(folder / 'red.png').pixels.shape)
write_text(folder / 'inner' / 'one.txt', 'one')
write_text(folder / 'inner' / 'one.txt', 'two')
with ResultStore(folder / 'run', sync=True) as store:
    store.write({'masks/one.png': b'1', 'summary.json': b'{}'})
    store.open_journal('records.jsonl').append([{'id': 'one'}])
with ResultStore(folder / 'run') as store:
    print([store.is_ours(name) for name in ('masks/one.png', 'records.jsonl', 'two')])
"""


def test_every_module_is_imported_and_files_are_whole_without_unix(python, tmp_path):
    Image.new("RGB", (9, 7), (250, 0, 0)).save(tmp_path / "red.png")
    done = python(NO_UNIX + EVERYTHING, tmp_path)
    assert done.stdout.split("\n")[:2] == ["(7, 9, 3)", "[True, True, False]"]
    assert {path.name: path.read_text() for path in (tmp_path / "inner").iterdir()} == {
        "one.txt": "two"
    }


@pytest.mark.parametrize("stub", [NO_UNIX, "import os, sys"], ids=["soft", "own"])
def test_one_process_at_a_time_has_a_folder(python, tmp_path, stub):
    hold = f"{stub}\nfrom pathlib import Path; from unseg_jax.runs.locking import LOCK, RunLock\n"
    hold += "folder = Path(sys.argv[1]); lock = RunLock(folder); print('held', flush=True)\n"
    command = [sys.executable, "-c", hold + "sys.stdin.read(); os._exit(1)", str(tmp_path)]
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **options) as holder:
        assert holder.stdout.readline() == "held\n"
        second = python(hold, tmp_path, check=False)
        assert "another process is writing to" in second.stderr.splitlines()[-1]
        holder.stdin.close()
    # The holder ended without letting go, as if it had been killed.
    code = hold + "lock.release(); (folder / LOCK).write_text('my notes'); RunLock(folder)"
    third = python(code, tmp_path, check=False)
    assert "was not written by this run" in third.stderr.splitlines()[-1]
    assert (tmp_path / ".unseg_jax.lock").read_text() == "my notes"


def test_a_terminal_without_the_letters_of_a_name_shows_it_escaped(tmp_path, monkeypatch):
    Image.new("RGB", (9, 7)).save(tmp_path / "夜の鳥.png")
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    assert main(["segment", str(tmp_path), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    assert main(["bench", "-h"]) == 0
    sys.stdout.flush()
    assert rb"\u591c\u306e\u9ce5.png" in written.getvalue()
    assert b"--protocol" in written.getvalue()
