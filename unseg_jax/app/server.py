"""Requests and answers of the page, as a Starlette application."""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
)
from starlette.routing import Route

from unseg_jax.app.job_results import describe, pack, picture, picture_file, summarise
from unseg_jax.app.page import ASSETS, render_page
from unseg_jax.app.sessions import Limits, Refused, Session, Sessions, Upload
from unseg_jax.app.work import Job, Settings, Worker
from unseg_jax.errors import WriteError
from unseg_jax.export.formats import check_formats, files_of

_HEADERS = {
    # Nothing comes from elsewhere and nothing goes there, whatever a name of a file may hold.
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_SWEEP_SECONDS = 30


def make_app(
    limits: Limits | None = None,
    *,
    backbones: Mapping[str, str] | None = None,
    hosts: Sequence[str] | None = None,
) -> Starlette:
    """The page as an ASGI application; temporary folders live as long as its lifespan.

    Args:
        limits: how much it takes.
        backbones: name on the page → weights file, beside the known ones.
        hosts: names that the server may be asked by; None takes any. A page from elsewhere whose
            name was made to point here is refused so.
    """
    limits = limits or Limits()
    backbones = dict(backbones or {})

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        app.state.sessions = Sessions(limits)
        app.state.worker = Worker(limits, backbones)
        app.state.worker.start()
        sweep = asyncio.create_task(_sweep(app.state.sessions))
        try:
            yield
        finally:
            sweep.cancel()
            for session in app.state.sessions.all():
                session.delete()
            await run_in_threadpool(app.state.worker.end)
            app.state.sessions.close_all()

    async def home(request: Request) -> Response:
        return HTMLResponse(await run_in_threadpool(render_page, limits, list(backbones)))

    routes = [
        Route("/", home),
        *(Route(f"/{name}", _asset) for name in ASSETS),
        Route("/segment", _segment, methods=["POST"]),
        Route("/sessions", _open, methods=["POST"]),
        Route("/sessions/{id}", _state),
        Route("/sessions/{id}/close", _close, methods=["POST"]),
        Route("/sessions/{id}/files", _upload, methods=["POST"]),
        Route("/sessions/{id}/files/{number:int}", _remove, methods=["DELETE"]),
        Route("/sessions/{id}/run", _run, methods=["POST"]),
        Route("/sessions/{id}/stop", _stop, methods=["POST"]),
        Route("/sessions/{id}/runs/{number:int}/results", _results),
        Route("/sessions/{id}/runs/{number:int}/pictures/{index:int}/{kind}", _picture),
        Route("/sessions/{id}/runs/{number:int}/unseg_jax.zip", _download),
    ]
    app = Starlette(
        routes=routes,
        lifespan=lifespan,
        exception_handlers={Refused: _refuse, ValueError: _refuse, OSError: _refuse},
    )
    app.add_middleware(_Guard, hosts=hosts)
    return app


class _Guard:
    """Refuses requests that other web pages make, and adds the headers of every answer."""

    def __init__(self, app: Any, hosts: Sequence[str] | None):
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(key.lower().encode(), text.encode()) for key, text in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        headers = Request(scope).headers
        host, origin = headers.get("host", ""), headers.get("origin")
        app = self.app
        if self.hosts is not None and urlsplit(f"//{host}").hostname not in self.hosts:
            app = PlainTextResponse("this page does not go by that name.", 403)
        elif origin is not None and urlsplit(origin).netloc != host:
            app = PlainTextResponse("another page may not use this one.", 403)
        await app(scope, receive, send_with_headers)


async def _sweep(sessions: Sessions) -> None:
    while True:
        await asyncio.sleep(_SWEEP_SECONDS)
        await run_in_threadpool(sessions.close_idle)


def _refuse(request: Request, error: Exception) -> Response:
    status = error.status if isinstance(error, Refused) else 400
    return JSONResponse({"error": str(error)}, 507 if isinstance(error, WriteError) else status)


def _session(request: Request) -> Session:
    return request.app.state.sessions.get(request.path_params["id"])


def _finished(request: Request) -> Job:
    return _session(request).run(request.path_params["number"])


async def _asset(request: Request) -> Response:
    return FileResponse(ASSETS[request.url.path[1:]])


async def _open(request: Request) -> Response:
    return JSONResponse({"id": request.app.state.sessions.open().id})


async def _close(request: Request) -> Response:
    await run_in_threadpool(request.app.state.sessions.close, request.path_params["id"])
    return Response(status_code=204)


async def _upload(request: Request) -> Response:
    try:
        upload, size = await _receive(request, _session(request))
    except ClientDisconnect:
        return Response(status_code=204)
    return JSONResponse({"number": upload.number, "name": upload.name, "size": size})


async def _receive(request: Request, session: Session) -> tuple[Upload, int]:
    """Puts the body of a request among the files of a session; gives its size as well."""
    limits: Limits = request.app.state.sessions.limits
    name = request.query_params.get("name", "")
    session.check_room(limits.max_files)
    part = session.folder / f"{secrets.token_hex(8)}.part"
    size = 0
    try:
        with open(part, "wb") as file:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limits.max_bytes:
                    most = f"{limits.max_bytes / 1e6:g} MB, the most that this page takes"
                    raise Refused(
                        413, f"{name or 'the file'} has more than {most}: reduce it first."
                    )
                file.write(chunk)
        return session.add(name, part, limits.max_files), size
    except OSError as error:
        if session.closed:
            raise Refused(404, "this session has ended: reload the page.") from None
        raise WriteError(name or "the file", error) from error
    finally:
        part.unlink(missing_ok=True)


async def _segment(request: Request) -> Response:
    """One image in and one file out, without a page: see `docs/serve.md`."""
    sessions, worker, query = (
        request.app.state.sessions,
        request.app.state.worker,
        request.query_params,
    )
    form, numbers = query.get("format", "mask"), {"k": "clusters", "parts": "parts"}
    asked: dict[str, Any] = {}
    for name, value in query.items():
        number = int(value) if name in numbers and value.isdecimal() else value
        asked[numbers.get(name, name)] = number
    settings = _settings(asked)
    formats = check_formats(["mask" if form == "json" else form])
    session = sessions.open()
    try:
        await _receive(request, session)
        job = await run_in_threadpool(worker.submit, session, settings, formats)
        while not job.ended:
            sessions.get(session.id)  # is used, and so kept
            if await request.is_disconnected():
                job.stop()
            await asyncio.sleep(0.02)
        if job.run is None or job.phase != "done":
            raise Refused(400, job.message or "the run was stopped.")
        entry = job.run.entries[0]
        if entry.error:
            raise Refused(400, job.shown(entry.error))
        if form == "json":
            return JSONResponse(summarise(job)["images"][0])
        name = (*entry.files, *files_of(formats))[0]
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        content = await run_in_threadpool((job.out / name).read_bytes)
        return Response(content, media_type="application/json" if "json" in name else kind)
    except ClientDisconnect:
        return Response(status_code=204)
    finally:
        await run_in_threadpool(sessions.close, session.id)


async def _remove(request: Request) -> Response:
    session = _session(request)
    if session.job is not None and not session.job.ended:
        raise Refused(409, "these images are being segmented: wait, or stop that first.")
    session.remove(request.path_params["number"])
    return Response(status_code=204)


async def _run(request: Request) -> Response:
    session, worker = _session(request), request.app.state.worker
    asked = await request.json()
    if not isinstance(asked, dict):
        raise Refused(400, "settings are missing: reload the page.")
    settings = _settings(asked)
    decided = None
    if "refit" in asked:
        if not isinstance(asked["refit"], int):
            raise Refused(400, "which run was decided on is missing: reload the page.")
        decided = asked["refit"], asked.get("decisions")
    job = await run_in_threadpool(worker.submit, session, settings, decided=decided)
    return JSONResponse(describe(job, worker.before(job)))


def _settings(asked: Mapping[str, Any]) -> Settings:
    """The settings that a request names; those that it leaves out are the usual ones."""
    for name, word in (("clusters", "K"), ("parts", "parts")):
        value = asked.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise Refused(400, f"{word}={value} is no whole number: give one, or leave it out.")
    given: dict[str, Any] = {
        name: asked[name] for name in ("clusters", "parts") if asked.get(name) is not None
    }
    given |= {name: str(asked[name]) for name in ("method", "backbone", "kind") if name in asked}
    return Settings(**given)


async def _state(request: Request) -> Response:
    job, worker = _session(request).job, request.app.state.worker
    state = {"phase": "idle"} if job is None else describe(job, worker.before(job))
    return JSONResponse(state)


async def _stop(request: Request) -> Response:
    job = _session(request).job
    if job is not None:
        job.stop()
    return Response(status_code=204)


async def _results(request: Request) -> Response:
    return JSONResponse(await run_in_threadpool(summarise, _finished(request)))


async def _picture(request: Request) -> Response:
    index, kind = request.path_params["index"], request.path_params["kind"]
    small = "small" in request.query_params
    job = _finished(request)
    if "file" in request.query_params:
        path = await run_in_threadpool(picture_file, job, index, kind)
        return FileResponse(path, filename=path.name)
    content, mime = await run_in_threadpool(picture, job, index, kind, small)
    return Response(content, media_type=mime)


async def _download(request: Request) -> Response:
    job = _finished(request)
    path = await run_in_threadpool(pack, job)
    name = f"unseg_jax_{job.number}.zip"
    return FileResponse(path, filename=name, media_type="application/zip")
