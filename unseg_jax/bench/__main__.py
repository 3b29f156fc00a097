"""`python -m unseg_jax.bench`: the command line of the benchmark."""

import inspect
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from unseg_jax.bench import BenchError, Interrupted, format_table, run
from unseg_jax.bench.run.settings import command_parameters, settings_from
from unseg_jax.bench.scale import merge, report
from unseg_jax.cache import enable_compilation_cache
from unseg_jax.data.truths import parse_values
from unseg_jax.devices import usable_devices
from unseg_jax.errors import printable
from unseg_jax.terminal.console import tolerate_any_name, with_options

tools = typer.Typer(add_completion=False)
application = typer.Typer(add_completion=False, rich_markup_mode="markdown")


def bench(*, distributed: bool, quiet: bool, **options: Any) -> None:
    """Segments a whole data set with one or many methods, scores it, and loses nothing.

    Writes summary.json, per_image.jsonl and report.html to --out.
    """
    try:
        rules, values = _split_foreground(options["foreground"] or [])
        settings = settings_from({**options, "foreground": rules}, values)
        if distributed:
            _join_job()
        usable_devices()
        summary = run(settings, quiet=quiet)
        _print(summary, settings.out)
        if summary["truths"]["error"]:
            raise BenchError(summary["truths"]["error"])
        if summary["failures"]:
            raise typer.Exit(1)
    except Interrupted as error:
        _stop(error, 130)
    except (BenchError, ValueError, ImportError, OSError) as error:
        _stop(error, 1)


def _flag(name: str, help: str) -> inspect.Parameter:
    option = typer.Option(f"--{name}", help=help, rich_help_panel="The run")
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, option]
    )


# Typer makes the options from the signature, and the signature comes from `Settings`.
bench.__annotations__ = {}
bench.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *command_parameters(),
        _flag(
            "distributed",
            "Join the other processes of this job (SLURM, MPI, Kubernetes) and take one shard "
            "each, by jax.distributed.",
        ),
        _flag("quiet", "No progress bar."),
    ]
)
application.command(
    epilog="`python -m unseg_jax.bench merge DIR` joins the shards of a run; "
    "`python -m unseg_jax.bench report DIR` makes summary and report again."
)(bench)


def _join_job() -> None:
    import jax

    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise BenchError(
            f"--distributed found no job to join ({error}): start it under SLURM or MPI, or give "
            f"--shard I/N."
        ) from error


def _split_foreground(texts: list[str]) -> tuple[str | None, Any]:
    """The rule and the mask values among the uses of --foreground."""
    rule, values = None, None
    for text in texts:
        parsed = parse_values(text)
        values, rule = (values, text) if parsed is None else (parsed, rule)
    return rule, values


def _print(summary: dict[str, Any], out: str | Path) -> None:
    _say(format_table(summary))
    for note in (*summary["config"]["notes"], *summary["truths"]["notes"]):
        _say(f"note: {note}")
    timing = summary["timing"]
    if timing:
        _say(
            f"{timing['images']} images in {timing['wall_seconds']:.1f} s, "
            f"{timing['images_per_second']:.2f} a second; device busy "
            f"{100 * timing['device_busy']:.0f} % (overhead {timing['overhead_seconds']:.1f} s, "
            f"of which {timing['waiting_for_images_seconds']:.1f} s waiting for images); "
            f"peak memory {timing['peak_memory_mb'] or 0:.0f} MB"
        )
    for failure in summary["failures"][:10]:
        _say(f"failed: {failure['id']} ({failure['method']}): {failure['error']}")
    if len(summary["failures"]) > 10:
        _say(f"and {len(summary['failures']) - 10} more failures: see summary.json")
    _say(f"written to {out}")


def _say(text: str) -> None:
    """Lines on standard output, in which names cannot steer the terminal."""
    print("\n".join(map(printable, with_options(text).split("\n"))))


def _stop(error: BaseException, code: int) -> None:
    print(f"error: {printable(with_options(' '.join(str(error).split())))}", file=sys.stderr)
    raise typer.Exit(code)


class _Spoken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(printable(with_options(record.getMessage())), file=sys.stderr, flush=True)


def _terminate(*_) -> None:
    raise KeyboardInterrupt


@tools.command("merge")
def merge_shards(
    folder: Annotated[str, typer.Argument(help="The --out of the shards, a folder or a URL.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="Even if shards are missing or unfinished.")
    ] = False,
) -> None:
    """Joins the shards of a run: records, masks, summary.json and report.html."""
    try:
        _print(merge(folder, partial=partial), folder)
    except (BenchError, ValueError, OSError) as error:
        _stop(error, 1)


@tools.command("report")
def make_report(
    folder: Annotated[str, typer.Argument(help="A run's folder, or its URL.")],
) -> None:
    """Makes summary.json and report.html again, from what the run has recorded."""
    try:
        _print(report(folder), folder)
    except (BenchError, ValueError, OSError) as error:
        _stop(error, 1)


@tools.command("rescore")
def rescore_masks(
    folder: Annotated[Path, typer.Argument(help="A run's folder, made with --save-masks.")],
    protocol: Annotated[str, typer.Option(help="How to score its masks now.")],
    out: Annotated[Path, typer.Option(help="Folder to write the new scores to.")],
    data: Annotated[
        str | None, typer.Option(help="Where the data lie now; default: where they lay.")
    ] = None,
) -> None:
    """Scores the masks of a run under another protocol, without segmenting again."""
    from unseg_jax.bench.run.rescore import rescore

    try:
        _print(rescore(folder, out, protocol, data), out)
    except (BenchError, ValueError, OSError) as error:
        _stop(error, 1)


def main() -> None:
    """Runs the command line; a polite kill (SIGTERM) ends a run as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _terminate)
    tolerate_any_name()
    chosen = tools if sys.argv[1:2] in (["merge"], ["report"], ["rescore"]) else application
    enable_compilation_cache()
    logging.getLogger("unseg_jax").addHandler(_Spoken(logging.WARNING))
    chosen(prog_name="python -m unseg_jax.bench")


if __name__ == "__main__":
    main()
