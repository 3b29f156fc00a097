"""Programs of earlier processes: found, the same bit for bit, and never trusted blindly."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from unseg_jax import programs
from unseg_jax.programs import Program

pytestmark = pytest.mark.quick
X = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "kept_in", lambda: tmp_path / "kept")
    return tmp_path / "kept"


@pytest.fixture
def new():
    """`new(function, made_from)`: the `Program` of another process, and what it has traced."""

    def make(function=jax.nn.softmax, made_from="softmax"):
        traced = []

        def counted(tree, power=1):
            traced.append(power)
            return {"found": function(tree["x"]) ** power}

        return Program(jax.jit(counted, static_argnames="power"), made_from), traced

    return make


def test_a_kept_program_is_not_traced_again_and_gives_the_same_bits(folder, new):
    expected = np.asarray(jax.jit(jax.nn.softmax)(X))
    for times in (2, 0):
        program, traced = new()
        for power in (1, 2, 1):
            found = program({"x": X}, power=power)["found"]
            np.testing.assert_array_equal(found, expected**power)
        assert (len(traced), program.compilations) == (times, 2)
    program({"x": X[:2]}, power=1)
    assert (len(traced), program.compilations, len(list(folder.iterdir()))) == (1, 3, 3)
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def of_another_program(path):
    """Whole, but it takes other arguments."""
    Program(jax.jit(lambda tree: tree["x"].sum()), "sum")({"x": X[0]})
    (newest,) = (file for file in path.parent.iterdir() if file != path)
    newest.replace(path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-40] + bytes(40)),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        lambda path: path.chmod(0o666),  # open to others
        of_another_program,
    ],
    ids=["damaged", "cut", "open", "another"],
)
def test_a_file_that_cannot_be_trusted_is_replaced(folder, new, spoil):
    expected = new()[0]({"x": X})["found"]
    (path,) = folder.iterdir()
    spoil(path)
    for times in (1, 0):
        program, traced = new()
        np.testing.assert_array_equal(program({"x": X})["found"], expected)
        assert len(traced) == times


def test_settings_code_and_users_count(folder, new, monkeypatch):
    program, traced = new(function=jnp.log, made_from="log")
    program({"x": X})
    with jax.default_matmul_precision("float32"):
        program({"x": X})
    assert (len(traced), len(list(folder.iterdir()))) == (2, 2)
    with jax.debug_nans(True), pytest.raises(FloatingPointError):
        program({"x": X})
    mine = os.getuid()
    for name, value in (("_surroundings", "newer code"), ("os.getuid", mine + 1)):
        monkeypatch.setattr(f"unseg_jax.programs.{name}", lambda value=value: value)
        program, traced = new(function=jnp.log, made_from="log")
        program({"x": X})
        assert traced
        assert len(list(folder.iterdir())) == 3


def call_back(x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


@pytest.mark.parametrize(
    ("function", "made_from"),
    [(jnp.sin, None), (call_back, "callback"), (lambda x: jnp.linalg.qr(x)[0], "qr")],
)
def test_what_another_process_could_not_run_is_not_kept(folder, new, function, made_from):
    """Functions of the user's own, and programs that need more than themselves."""
    program, _ = new(function, made_from)
    np.testing.assert_array_equal(program({"x": X})["found"], jax.jit(function)(X))
    assert not folder.exists()


def test_a_program_that_is_traced_is_part_of_another(folder, new):
    program, _ = new()
    whole = jax.jit(lambda x: program({"x": x})["found"].sum(-1))
    np.testing.assert_allclose(whole(X), 1, rtol=1e-6)
    assert not folder.exists()


def test_the_oldest_files_make_room(folder, new, monkeypatch):
    new()[0]({"x": X})
    (oldest,) = folder.iterdir()
    os.utime(oldest, (1, 1))
    monkeypatch.setattr(programs, "_MOST_BYTES", int(1.5 * oldest.stat().st_size))
    new(made_from="another")[0]({"x": X})
    assert len(list(folder.iterdir())) == 1
    assert not oldest.exists()


def test_a_full_disk_is_no_error(folder, new):
    folder.write_bytes(b"a file where the folder should be")
    assert new()[0]({"x": X})["found"].shape == X.shape


RUN = """
import sys, jax
traced = set()
def listen(event, seconds, fun_name="", **_):
    if event.endswith("jaxpr_trace_duration"): traced.add(fun_name)
jax.monitoring.register_event_duration_secs_listener(listen)
from unseg_jax import programs
from unseg_jax.cli.main import main
assert main(["segment", sys.argv[1], "--backbone", sys.argv[2], "-o", sys.argv[3], "-q"]) == 0
print("flax" in sys.modules, sorted(traced & {"extract", "_reduce", "run_kept"}))
assert programs.kept_in().is_dir()
jax.config.update("jax_enable_compilation_cache", False)
assert programs.kept_in() is None
"""


def test_a_second_run_traces_nothing_and_writes_the_same_masks(python, wide_weights, tmp_path):
    image = np.random.default_rng(0).integers(0, 70, (70, 98, 3), np.uint8)
    image[20:50, 30:70] += 150
    Image.fromarray(image).save(tmp_path / "square.png")
    own = {name: text for name, text in os.environ.items() if not name.startswith("JAX_")}
    own["UNSEG_JAX_CACHE"] = str(tmp_path / "cache")
    for out, traced in (
        ("first", "True ['_reduce', 'extract', 'run_kept']"),
        ("second", "False []"),
    ):
        given = (tmp_path / "square.png", wide_weights, tmp_path / out)
        assert python(RUN, *given, environment=own).stdout == f"{traced}\n", out
    first, second = (tmp_path / out / "square_mask.png" for out in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
