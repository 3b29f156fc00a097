"""`unseg-jax serve`: the page, on this machine alone unless `--host` says otherwise."""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from unseg_jax.errors import InputError, why
from unseg_jax.terminal.console import say
from unseg_jax.terminal.shared_options import run_alone

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Address to listen on. Anyone who can reach an address other than loopback can "
            "use the page.",
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port; 0 picks a free one.")
    ] = 8423,
    max_size: Annotated[
        int, typer.Option("--max-size", min=1, help="Largest file to accept, in MB.")
    ] = 50,
    max_files: Annotated[
        int, typer.Option("--max-files", min=1, help="Most files, and images, per user.")
    ] = 100,
    max_waiting: Annotated[
        int, typer.Option("--max-waiting", min=1, help="Most runs that may wait for the device.")
    ] = 8,
    max_users: Annotated[
        int, typer.Option("--max-users", min=1, help="Most pages that may be open at once.")
    ] = 32,
    max_runs: Annotated[
        int, typer.Option("--max-runs", min=1, help="How many runs of a page to keep.")
    ] = 10,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--backbone",
            "-b",
            help="A weights file to offer besides the known backbones; repeatable.",
        ),
    ] = None,
) -> None:
    """Serve a page to drop images on and view the results.

    It needs the extra "app". The page loads nothing from other servers and sends nothing to them;
    uploads are deleted when it is closed.
    """
    try:
        import uvicorn

        from unseg_jax.app.server import make_app
        from unseg_jax.app.sessions import Limits
    except ModuleNotFoundError as error:
        raise ImportError(
            f'the page needs the package {error.name}; pip install "unseg_jax[app]"'
        ) from None
    from unseg_jax.cache import enable_compilation_cache
    from unseg_jax.devices import usable_devices

    backbones = _named(weights or ())
    limits = Limits(max_size * 10**6, max_files, max_waiting, max_users, max_runs=max_runs)
    usable_devices()
    bound = _bind(host, port)
    enable_compilation_cache()
    private = _is_loopback(host)
    app = make_app(limits, backbones=backbones, hosts=(*_LOOPBACK, host) if private else None)
    shown = f"[{host}]" if ":" in host else host
    if not private:
        say(
            f"whoever can reach {shown} can use this page and this machine's time; it asks for no "
            "password."
        )
    print(f"open http://{shown}:{bound.getsockname()[1]}/ in a browser; Ctrl-C stops", flush=True)
    config = uvicorn.Config(
        app, log_level="warning", lifespan="on", ws="none", server_header=False, access_log=False,
        timeout_graceful_shutdown=3,
    )  # fmt: skip
    with bound:
        uvicorn.Server(config).run(sockets=[bound])


def _named(weights: Sequence[str]) -> dict[str, str]:
    """Name on the page → file.

    Raises:
        InputError: a file that is not there, or two of one name.
    """
    named: dict[str, str] = {}
    for text in weights:
        path = Path(text).expanduser()
        if not path.is_file():
            raise InputError(f"{text} was not found: --backbone takes a weights file.")
        if path.stem in named:
            raise InputError(f"two weights files are called {path.stem}: rename one.")
        named[path.stem] = str(path)
    return named


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        InputError: the port is taken, or the address is none of this machine's.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, number, _, address = found[0]
        bound = socket.socket(family, kind, number)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen()  # who asks before the server is up waits for it
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise InputError(
            f"cannot listen on {host}, port {port} ({why(error).lower()}): choose another "
            "--port or --host."
        ) from None
    return bound


if __name__ == "__main__":
    sys.exit(run_alone(serve, "python -m unseg_jax.app"))
