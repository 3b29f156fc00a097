"""`unseg-jax bench`, or `python -m unseg_jax.bench`: the command line of the benchmark."""

import dataclasses
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from unseg_jax.bench import BenchError, format_table, run
from unseg_jax.bench.run.settings import (
    Option,
    Settings,
    command_parameter,
    command_parameters,
    parse_names,
    settings_from,
)
from unseg_jax.bench.scale import merge, report
from unseg_jax.bench.scale.remote import local_folder
from unseg_jax.cache import enable_compilation_cache
from unseg_jax.data.truths import parse_values
from unseg_jax.devices import usable_devices
from unseg_jax.errors import printable
from unseg_jax.terminal.console import guarded, with_options
from unseg_jax.terminal.shared_options import STYLE, hush


class _Commands(TyperGroup):
    """Options without a command are those of `run`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and args[0] in self.commands
        return super().parse_args(ctx, args if named else ["run", *args])


app = typer.Typer(cls=_Commands, add_completion=False, **{**STYLE, "rich_markup_mode": "markdown"})


@app.callback()
def _prepare() -> None:
    enable_compilation_cache()


def bench(*, seeds: str, distributed: bool, quiet: bool, **options: Any) -> None:
    """Score methods on a whole data set with ground truth.

    Writes summary.json, per_image.jsonl and report.html to --out. A run that was stopped continues
    with --resume.
    """
    hush(quiet)
    rules, values = _split_foreground(options["foreground"] or [])
    settings = settings_from({**options, "foreground": rules}, values)
    if distributed:
        _join_job()
    usable_devices()
    runs = _with_seeds(settings, seeds) if seeds else [settings]
    summaries = []
    for one in runs:
        summaries.append(run(one, quiet=quiet))
        _print(summaries[-1], one.out)
        if error := summaries[-1]["truths"]["error"]:
            raise BenchError(error)
    folders = [folder for one in runs if (folder := local_folder(one.out))]
    if 1 < len(folders) == sum(summary["complete"] for summary in summaries):
        make_table(folders)
    if any(summary["failures"] for summary in summaries):
        raise typer.Exit(1)


def _with_seeds(settings: Settings, seeds: str) -> list[Settings]:
    """One run for each seed, in a folder below `out`."""
    try:
        numbers = dict.fromkeys(int(seed) for seed in parse_names(seeds))
    except ValueError:
        raise typer.BadParameter(f"--seeds {seeds} must be whole numbers, as in 0,1,2.") from None
    return [
        dataclasses.replace(settings, seed=seed, out=f"{settings.out}/seed-{seed}")
        for seed in numbers
    ]


_FLAGS = {
    "distributed": "Join the other processes of this job (SLURM, MPI, Kubernetes) and take one "
    "shard each, by jax.distributed.",
    "quiet": "No progress bar.",
}
# Typer makes the options from the signature, and the signature comes from `Settings`.
bench.__annotations__ = {}
bench.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [
        *command_parameters(),
        command_parameter(
            "seeds",
            Option(
                "Several seeds, such as 0,1,2: a run for each in OUT/seed-N, and a table of the "
                "means.",
                panel="The run",
            ),
            str,
            "",
        ),
        *(
            command_parameter(name, Option(help, (f"--{name}",), panel="The run"), bool, False)
            for name, help in _FLAGS.items()
        ),
    ]
)
app.command(
    "run",
    epilog="Other commands: `merge DIR` joins the shards of a run, `report DIR` writes its summary "
    "and report again, `rescore DIR` scores its masks under another protocol, `table DIR...` "
    "prints several runs as one table, and `compare DIR DIR` compares two.",
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


@app.command("merge")
def merge_shards(
    folder: Annotated[str, typer.Argument(help="The --out of the shards, a folder or a URL.")],
    partial: Annotated[
        bool, typer.Option("--partial", help="Merge even if shards are missing or unfinished.")
    ] = False,
) -> None:
    """Merge the shards of a run: records, masks, summary.json and report.html."""
    _print(merge(folder, partial=partial), folder)


@app.command("report")
def make_report(
    folder: Annotated[str, typer.Argument(help="The folder of a run, or its URL.")],
) -> None:
    """Write summary.json and report.html again from the records of a run."""
    _print(report(folder), folder)


@app.command("rescore")
def rescore_masks(
    folder: Annotated[Path, typer.Argument(help="The folder of a run made with --save-masks.")],
    protocol: Annotated[str, typer.Option(help="Protocol to score the masks under.")],
    out: Annotated[Path, typer.Option(help="Folder for the new scores.")],
    data: Annotated[
        str | None, typer.Option(help="Where the data are now (default: where they were).")
    ] = None,
) -> None:
    """Score the masks of a run under another protocol, without segmenting again."""
    from unseg_jax.bench.run.rescore import rescore

    _print(rescore(folder, out, protocol, data), out)


@app.command("table")
def make_table(
    folders: Annotated[list[Path], typer.Argument(help="Folders of finished runs.")],
    form: Annotated[str, typer.Option("--format", help="markdown, latex or csv.")] = "markdown",
) -> None:
    """Print one table of several runs: methods by data sets, over seeds, the best in bold."""
    from unseg_jax.bench.report.tables import table

    print(table(folders, form))


@app.command("compare")
def compare_runs(
    first: Annotated[Path, typer.Argument(help="The folder of a finished run.")],
    second: Annotated[Path, typer.Argument(help="Another, over the same images.")],
) -> None:
    """Print how much better each method of the second run is, image by image."""
    from unseg_jax.bench.report.tables import compare

    _say(compare(first, second))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; see `unseg_jax.cli.main`. None takes the arguments of the process."""
    given = None if arguments is None else list(arguments)
    return guarded(lambda: app(args=given, prog_name="python -m unseg_jax.bench"))


if __name__ == "__main__":
    sys.exit(main())
