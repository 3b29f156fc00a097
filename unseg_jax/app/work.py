"""One thread that segments what was dropped, job after job: the device is shared by all users."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unseg_jax.app.sessions import Limits, Refused, Session
from unseg_jax.data.folders import find_images
from unseg_jax.registry import resolve
from unseg_jax.terminal.console import explain

if TYPE_CHECKING:
    from unseg_jax.collective.choosing import Choice
    from unseg_jax.data.decoding import Source
    from unseg_jax.data.folders import ImageFile
    from unseg_jax.export.folder import Plan
    from unseg_jax.export.records import Entry, Run

FORMATS = ("png", "coco", "cutout", "csv")
"""What is written of each run, and downloaded."""
MODEL = "model.safetensors"
"""Name of a model that was fitted on what was dropped."""
MAX_CLUSTERS = 32
MAX_PARTS = 12
KINDS = ("one", "several", "parts")
"""What may be in a picture: one thing, several, or one that is cut into parts."""
_BATCH = 4


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the user chose.

    Attributes:
        method: "auto" or a name of `list_methods()`.
        clusters: K; None takes the method's own.
        backbone: a name that the page offers.
        kind: one of KINDS.
        parts: how many, where that is "parts".
    """

    method: str = "auto"
    clusters: int | None = None
    backbone: str = "auto"
    kind: str = "several"
    parts: int = 3


class Stopped(Exception):
    """The user stopped the run, or left."""


class Job:
    """One run of one session, from waiting to done.

    Attributes:
        number: counts the runs of the session from 1.
        phase: "waiting", "loading", "fitting", "segmenting", then "done", "failed" or "stopped".
        done, total: images of the phase.
        message: what "auto" did, or what failed; one sentence.
        method: what "auto" became.
        fitted: images that a model was fitted on, 0 for none.
        seconds, compile_seconds: from the start of the run to its end, and what compiling took.
        plan, run: of `segment_files`; None before the end.
        marks: images, examples and clicks that a model is fitted with; None where nothing was
            decided.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings,
        images: Sequence[ImageFile],
        formats: Sequence[str] = FORMATS,
        marks: tuple[Any, Any, Any] | None = None,
    ):
        self.session, self.settings, self.images = session, settings, tuple(images)
        self.formats, self.marks = tuple(formats), marks
        self.number = 1 if session.job is None else session.job.number + 1
        self.phase, self.message = "waiting", ""
        self.done, self.total = 0, len(self.images)
        self.plan: Plan | None = None
        self.run: Run | None = None
        self.method = settings.method
        self.fitted = 0
        self.seconds = self.compile_seconds = 0.0
        self._stopped = False
        self._lock = threading.Lock()

    @property
    def ended(self) -> bool:
        """Whether nothing more happens."""
        return self.phase in ("done", "failed", "stopped")

    @property
    def out(self) -> Path:
        """Folder of the results, of this run alone."""
        return self.session.folder / "found" / str(self.number)

    def stop(self) -> bool:
        """Stops the run after the image that is under way; whether it has ended already."""
        with self._lock:
            self._stopped = True
            if self.phase == "waiting":
                self.phase = "stopped"
            return self.ended

    def start(self) -> bool:
        """Takes the job out of waiting; False if it was stopped before."""
        with self._lock:
            if self.phase != "waiting":
                return False
            self.phase = "loading"
            return True

    def finish(self, phase: str, message: str | None = None) -> None:
        """Ends the job; deletes what it wrote unless it is done, and all if the user has left."""
        if phase != "done":
            shutil.rmtree(self.out, ignore_errors=True)
        with self._lock:
            self.message = self.message if message is None else message
            self.phase = phase
        if self.session.closed:
            self.session.erase()

    def step(self, phase: str, done: int, total: int) -> None:
        """Tells how far the run is.

        Raises:
            Stopped: nobody waits for it any more.
        """
        if self._stopped:
            raise Stopped
        self.phase, self.done, self.total = phase, done, total

    def sentence(self, error: Exception) -> str:
        """An error as one sentence, without the temporary folder."""
        return self.shown(explain(error))

    def shown(self, text: str) -> str:
        """A message of the library with the names that the user gave."""
        return text.replace(f"{self.session.files}{os.sep}", "")


class Worker:
    """The thread and the jobs that wait for it."""

    def __init__(self, limits: Limits, backbones: Mapping[str, str] | None = None):
        """
        Args:
            limits: of the server.
            backbones: name on the page → name or file that `load_backbone` takes.
        """
        self.limits, self.backbones = limits, dict(backbones or {})
        self._waiting: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="unseg-jax-serve", daemon=True)
        self._backbone = functools.lru_cache(maxsize=2)(self._load_backbone)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def end(self, timeout: float = 10.0) -> None:
        """Stops what is under way and waits for it."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def submit(
        self,
        session: Session,
        settings: Settings,
        formats: Sequence[str] = FORMATS,
        decided: tuple[int, Any] | None = None,
    ) -> Job:
        """Puts a run that writes these formats into the queue.

        Args:
            session, settings: of whom, and with what.
            decided: number of an earlier run, and the decisions on it as `parse_decisions` takes
                them: its images are done again by a model that they steer.

        Raises:
            Refused: the session has a run already, or nothing to run on; the queue is full.
            ValueError: settings that cannot be.
        """
        if session.job is not None and not session.job.ended:
            raise Refused(409, "these images are being segmented: wait, or stop that first.")
        check(settings, self.backbones)
        paths = [upload.path for upload in session.uploads.values()]
        if not paths:
            raise Refused(400, "there are no images yet: drop some first.")
        images = find_images(paths)
        if len(images) > self.limits.max_files:
            raise Refused(
                413,
                f"the files hold {len(images)} images, and {self.limits.max_files} are the most "
                "that this page takes: remove some.",
            )
        marks = None
        if decided is not None:
            images, marks = _marks(session.run(decided[0]), decided[1])
        job = Job(session, settings, images, formats, marks)
        with self._changed:
            self._waiting = collections.deque(job for job in self._waiting if not job.ended)
            if len(self._waiting) >= self.limits.max_waiting:
                raise Refused(
                    503,
                    f"{len(self._waiting)} runs are waiting already, which is as many as may: "
                    "try again in a minute.",
                )
            session.job = job
            self._waiting.append(job)
            self._changed.notify()
        return job

    def before(self, job: Job) -> int:
        """How many jobs come first: those ahead in the queue, and the one under way."""
        ahead = 1
        for other in list(self._waiting):
            if other is job:
                return ahead
            ahead += not other.ended
        return 0

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ended)
                if self._ended:
                    return
                job = self._waiting.popleft()
            if job.start():
                self._do(job)

    def _do(self, job: Job) -> None:
        try:
            self._segment(job)
        except Stopped:
            job.finish("stopped")
        except Exception as error:
            job.finish("failed", job.sentence(error))
        else:
            job.session.keep(job, self.limits.max_runs)
            job.finish("done")

    def _segment(self, job: Job) -> None:
        from unseg_jax.cache import compile_clock
        from unseg_jax.export.folder import Output, plan_run, segment_files

        def show(entry: Entry) -> None:
            job.step("segmenting", job.done + 1, len(job.images))

        start = time.perf_counter()
        with compile_clock() as clock:
            job.step("loading", 0, len(job.images))
            segmenter = self._segmenter_for(job)
            job.step("segmenting", 0, len(job.images))
            objects = "all" if job.settings.kind == "several" else "largest"
            output = Output(job.formats, objects=objects, report=False)
            job.plan = plan_run(job.images, job.out, output)
            job.run = segment_files(segmenter, job.images, job.out, plan=job.plan, on_entry=show)
        job.compile_seconds = clock.seconds
        job.seconds = max(0.0, time.perf_counter() - start - clock.seconds)

    def _segmenter_for(self, job: Job) -> Any:
        def keep(model: Any) -> None:
            job.fitted = model.images
            job.message = job.message or f"A model was fitted on these {model.images} pictures."
            model.save(job.out / MODEL)

        def show(done: int, total: int) -> None:
            job.step("fitting", done, total)

        if job.marks is not None:
            return self._steered(job, keep, show)
        choice = choose_for(job.settings, [image.source for image in job.images])
        job.method = choice.method.name
        if choice.model is not None:
            job.message = "The model that ships with the library was applied."
        return self.load(
            choice,
            job.settings,
            [image.source for image in job.images],
            keep=keep,
            on_image=show,
        )

    def _steered(
        self, job: Job, keep: Callable[[Any], None], show: Callable[[int, int], None]
    ) -> Any:
        from unseg_jax.collective.fitting import fit_set
        from unseg_jax.data.reading_options import PLAIN

        assert job.marks is not None
        sources, examples, clicks = job.marks
        method = resolve("collective")
        job.method = method.name
        marked = len(examples.keys() | clicks.keys())
        job.message = f"{job.method}, steered by what was decided on {marked} images."
        # Masks teach from other features than clicks alone do.
        cache = job.session.cache_of((job.settings.backbone, bool(examples)))
        model = fit_set(
            sources,
            method,
            PLAIN,
            examples=examples,
            clicks=clicks,
            backbone=self._backbone_for(method.backbone, job.settings),
            batch_size=_BATCH,
            on_image=show,
            kept=cache,
        )
        keep(model)
        return model.segmenter(kept=cache)

    def load(self, choice: Choice, settings: Settings, *arguments: Any, **options: Any) -> Any:
        """`unseg_jax.collective.choosing.load` with a backbone that is kept in memory."""
        from unseg_jax.collective.choosing import load

        backbone: Any = "auto"
        if choice.method.nodes == "patches":
            backbone = self._backbone_for(choice.method.backbone, settings)
        return load(choice, *arguments, backbone=backbone, batch_size=_BATCH, **options)

    def _backbone_for(self, own: str, settings: Settings) -> Any:
        return self._backbone(own if settings.backbone == "auto" else settings.backbone)

    def _load_backbone(self, name: str) -> Any:
        from unseg_jax.backbones import load_backbone

        return load_backbone(self.backbones.get(name, name))


def _marks(job: Job, content: Any) -> tuple[list[ImageFile], tuple[Any, Any, Any]]:
    """The images of a run that are still there, and what was decided on them.

    Raises:
        ValueError: no such decisions.
        InputError: nothing to learn.
    """
    from unseg_jax.export.decisions import marks_from, mask_of, parse_decisions

    assert job.run is not None
    done = {e.image.name: e for e in job.run.done if e.record and e.image.path.is_file()}
    decisions = []
    for one in parse_decisions(content):
        if one.name in done:
            record = done[one.name].record
            mask = mask_of(record.size, record.objects) if record else None
            decisions.append(dataclasses.replace(one, mask=mask))
    images = [entry.image for entry in done.values()]
    return images, marks_from(decisions, images)


def choose_for(settings: Settings, images: Sequence[Source]) -> Choice:
    """What the user's settings are for these images."""
    from unseg_jax.collective.choosing import choose

    parts = settings.parts if settings.kind == "parts" else None
    overrides = {"num_clusters": settings.clusters, "parts": parts}
    return choose(settings.method, images, overrides)


def check(settings: Settings, backbones: Mapping[str, str]) -> None:
    """Refuses what the page does not offer: a file of the server is no backbone.

    Raises:
        ValueError: an unknown kind, method or backbone, a number out of range, or a method that
            makes no parts.
    """
    from unseg_jax.backbones import list_backbones
    from unseg_jax.errors import nearest
    from unseg_jax.registry import list_methods

    for kind, name, known in (
        ("kind", settings.kind, KINDS),
        ("method", settings.method, ["auto", *list_methods()]),
        ("backbone", settings.backbone, ["auto", *list_backbones(), *backbones]),
    ):
        if name not in known:
            raise ValueError(f"there is no {kind} '{name}'; {nearest(name, known)}")
    clusters = settings.clusters
    if clusters is not None and not 1 <= clusters <= MAX_CLUSTERS:
        raise ValueError(f"K={clusters} is out of range: give 1 to {MAX_CLUSTERS}.")
    if settings.kind == "parts" and not 2 <= settings.parts <= MAX_PARTS:
        raise ValueError(f"{settings.parts} parts are out of range: give 2 to {MAX_PARTS}.")
    chosen = choose_for(settings, []).method
    if settings.kind == "parts" and chosen.learns_from_set:
        raise ValueError(f"{chosen.name} makes no parts: choose auto, or deepcut.")
