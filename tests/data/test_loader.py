"""The loader keeps order, bounds and failures; the writer keeps its errors."""

import os
import threading
import time
from contextlib import closing, nullcontext

import numpy as np
import pytest

from unseg_jax.data import loader
from unseg_jax.data.loader import Writer, batches
from unseg_jax.errors import WriteError
from unseg_jax.files import write_text


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader")]


def test_order_is_kept_and_a_failed_item_keeps_its_place():
    def prepare(item):
        time.sleep(0.02 if item % 3 == 0 else 0)  # items finish out of order
        if item in (2, 5):
            raise ValueError(f"item {item} is bad")
        return item * item

    found = list(batches(range(11), prepare, 4, workers=4))
    assert [len(batch) for batch in found] == [4, 4, 3]
    outcomes = [outcome for batch in found for outcome in batch]
    assert [outcome.item for outcome in outcomes] == list(range(11))
    for outcome in outcomes:
        failed = outcome.item in (2, 5)
        assert outcome.value == (None if failed else outcome.item**2)
        assert str(outcome.error) == (f"item {outcome.item} is bad" if failed else "None")
    assert list(batches([], prepare, 3)) == []


def test_items_are_prepared_while_the_consumer_works():
    prepared = threading.Semaphore(0)

    def prepare(item):
        prepared.release()
        return item

    with closing(batches(range(12), prepare, 2, workers=2, ahead=3)) as generator:
        next(generator)
        for _ in range(8):  # two that were handed out, six ahead
            assert prepared.acquire(timeout=5)


def test_nothing_runs_on_after_an_exception_in_the_consumer():
    begun = []

    def prepare(item):
        begun.append(item)
        time.sleep(0.005)
        return item

    def consume(error):
        with closing(batches(range(10_000), prepare, 4, workers=2)) as generator:
            for _ in generator:
                raise error

    for error in (RuntimeError("consumer"), KeyboardInterrupt()):
        begun.clear()
        with pytest.raises(type(error)):
            consume(error)
        assert not loader_threads()
        assert len(begun) < 20


def test_an_error_in_the_items_themselves_is_raised_and_ends_the_threads():
    def items():
        yield from range(3)
        raise OSError("the list broke off")

    with pytest.raises(OSError, match="broke off"):
        list(batches(items(), lambda item: item, 2))
    assert not loader_threads()


def test_sizes_and_numbers_of_threads(monkeypatch):
    for name in ("batch_size", "workers", "ahead", "max_bytes"):
        with pytest.raises(ValueError, match=f"{name}=0 must be at least 1"):
            batches([1], lambda item: item, **{"batch_size": 1, name: 0})
    for cores, threads in ((1, 2), (5, 5), (64, 16)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: range(n), raising=False)
        assert loader.default_workers() == threads
    arrays = {"a": [np.zeros(3, np.float32), None], "b": ("text", 7)}
    assert loader.nbytes(loader.Outcome(np.zeros(10, np.uint8), arrays)) == 22


@pytest.mark.parametrize(("max_bytes", "most"), [(2500, 4), (10**6, 12), (1, 4)])
def test_what_waits_is_bounded_by_its_number_and_its_bytes(max_bytes, most):
    """Images of 1,000 bytes in batches of four, two ahead of a consumer that is slow."""
    drawn, consumed, held = 0, 0, []

    def items():
        nonlocal drawn
        for item in range(40):
            drawn += 1
            yield item

    def prepare(_):
        return "name", np.zeros((10, 100), np.uint8)

    for batch in batches(items(), prepare, 4, workers=2, ahead=2, max_bytes=max_bytes):
        assert len(batch) == 4
        time.sleep(0.01)
        held.append(drawn - consumed)  # the batch in hand included
        consumed += len(batch)
    assert consumed == drawn == 40
    assert max(held) == most  # a bound, and one that is reached


def test_a_really_full_disk_is_said_plainly():
    try:
        with open("/dev/full", "w"):
            pass
    except OSError:
        pytest.skip("this system has no /dev/full")

    def fill():
        with open("/dev/full", "w") as file:
            file.write("x" * 100_000)

    with pytest.raises(WriteError, match="no space is left"), Writer() as pool:
        pool.submit(fill)


@pytest.mark.parametrize("left", [nullcontext(), pytest.raises(KeyboardInterrupt)])
def test_the_writer_finishes_everything_before_it_is_left_even_by_an_error(tmp_path, left):
    with left as raised, Writer(workers=3, ahead=2) as pool:
        for index in range(40):
            pool.submit(write_text, tmp_path / f"{index}.txt", str(index))
        if raised is not None:
            raise KeyboardInterrupt
    assert sorted(int(path.read_text()) for path in tmp_path.iterdir()) == list(range(40))


def test_the_first_error_surfaces_at_the_next_submit_or_at_the_end():
    def fail(message):
        raise ValueError(message)

    with pytest.raises(ValueError, match="first"), Writer() as pool:
        pool.submit(fail, "first")
    with pytest.raises(ValueError, match="first"), Writer(workers=1) as pool:  # noqa: PT012
        pool.submit(fail, "first")
        for _ in range(1000):
            pool.submit(time.sleep, 0.001)
        pytest.fail("a thousand jobs were taken after one had failed")


def test_the_writer_blocks_when_too_much_waits():
    gate = threading.Event()
    taken = []

    def produce():
        with Writer(workers=1, ahead=3) as pool:
            for index in range(6):
                pool.submit(gate.wait)
                taken.append(index)

    producer = threading.Thread(target=produce)
    producer.start()
    deadline = time.monotonic() + 10
    while len(taken) < 3 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.1)  # in which a fourth would be taken if nothing blocked
    assert taken == [0, 1, 2]
    gate.set()
    producer.join(timeout=5)
    assert taken == list(range(6))
