"""`python -m unseg_jax.bench`: the command line of the benchmark."""

import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from unseg_jax.bench import BenchError, Interrupted, Settings, format_table, run, write_summary
from unseg_jax.bench.settings import parse_shard
from unseg_jax.cache import enable_compilation_cache
from unseg_jax.cli.options import parse_range, parse_size, parse_value
from unseg_jax.data.truths import parse_values, parse_void

_METHOD = "Settings of all methods (default: each method's own)"
_RUN = "The run"

tools = typer.Typer(add_completion=False)
application = typer.Typer(add_completion=False, rich_markup_mode="markdown")


@application.command(
    epilog="`python -m unseg_jax.bench merge DIR` joins the shards of a run; "
    "`python -m unseg_jax.bench report DIR` makes summary and report again."
)
def bench(
    data: Annotated[
        str,
        typer.Option(
            help="DIR with images/ and masks/, a .csv or .jsonl list, NAME:DIR of a known data "
            "set, or tfds:NAME[/CONFIG][:SPLIT]."
        ),
    ],
    out: Annotated[str, typer.Option(help="Folder of the run, or a URL that fsspec takes.")],
    method: Annotated[
        str, typer.Option(help="Names, separated by commas; 'grid' or 'all' for many.")
    ] = "deepcut",
    protocol: Annotated[
        str,
        typer.Option(
            help="honest, published, or that of a paper: deepcut, unseggnet, "
            "unsegarmanet, unsegmedgat."
        ),
    ] = "honest",
    crop: Annotated[
        bool | None,
        typer.Option("--crop/--no-crop", help="Crop to the true box + 20 px first (published)."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    split: Annotated[str | None, typer.Option(help="Only this split of the data set.")] = None,
    image_key: Annotated[str | None, typer.Option(help="Image feature of a tfds: set.")] = None,
    mask_key: Annotated[str | None, typer.Option(help="Mask feature of a tfds: set.")] = None,
    backbone: Annotated[str, typer.Option(help="Name or weights file.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16, of the backbone.")] = "float32",
    batch_size: Annotated[int, typer.Option(min=1, help="Images on the device at a time.")] = 8,
    seed: Annotated[int, typer.Option(help="Of initial parameters and dropout.")] = 0,
    record_every: Annotated[
        int, typer.Option("--every", min=0, help="Record IoU every so many epochs; 0 never.")
    ] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --out.", rich_help_panel=_RUN)
    ] = False,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed", help="With --resume: try failed images again.", rich_help_panel=_RUN
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away the run in --out.", rich_help_panel=_RUN)
    ] = False,
    fail_fast: Annotated[
        bool,
        typer.Option(
            "--fail-fast", help="Stop at the first image that fails.", rich_help_panel=_RUN
        ),
    ] = False,
    shard: Annotated[
        str | None,
        typer.Option(help="I/N: only every N-th image, from the I-th on.", rich_help_panel=_RUN),
    ] = None,
    distributed: Annotated[
        bool,
        typer.Option(
            "--distributed",
            help="Join the other processes of this job (SLURM, MPI, Kubernetes) and take one "
            "shard each, by jax.distributed.",
            rich_help_panel=_RUN,
        ),
    ] = False,
    save_masks: Annotated[
        bool, typer.Option("--save-masks", help="Write every mask as PNG.", rich_help_panel=_RUN)
    ] = False,
    thumbnails: Annotated[
        int,
        typer.Option(min=0, help="Images whose thumbnails the report shows.", rich_help_panel=_RUN),
    ] = 1000,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads that decode.", rich_help_panel=_RUN)
    ] = None,
    draft: Annotated[
        bool,
        typer.Option(
            "--draft/--no-draft", help="Decode large JPEGs at reduced size.", rich_help_panel=_RUN
        ),
    ] = True,
    cluster: Annotated[
        str | None,
        typer.Option(help="Run on Ray: 'local' or a cluster's address.", rich_help_panel=_RUN),
    ] = None,
    actors: Annotated[
        int, typer.Option(min=1, help="Segmenters on the cluster.", rich_help_panel=_RUN)
    ] = 2,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="No progress bar.", rich_help_panel=_RUN)
    ] = False,
    image_size: Annotated[
        str | None, typer.Option(help="Pixels, or HEIGHTxWIDTH.", rich_help_panel=_METHOD)
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Pixels between patches.", rich_help_panel=_METHOD)
    ] = None,
    facet: Annotated[
        str | None, typer.Option(help="key, query, value, token, attn.", rich_help_panel=_METHOD)
    ] = None,
    affinity: Annotated[
        str | None, typer.Option(help="ncut, cc, dmon, cosine, colour.", rich_help_panel=_METHOD)
    ] = None,
    tau: Annotated[
        float | None, typer.Option(help="Threshold of the affinity.", rich_help_panel=_METHOD)
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Of the affinity cc.", rich_help_panel=_METHOD)
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="gcn, gat, arma.", rich_help_panel=_METHOD)
    ] = None,
    activation: Annotated[
        str | None, typer.Option(help="relu, elu, selu, silu, gelu.", rich_help_panel=_METHOD)
    ] = None,
    loss: Annotated[
        str | None, typer.Option(help="ncut, cc, modularity.", rich_help_panel=_METHOD)
    ] = None,
    k: Annotated[
        int | None, typer.Option("--k", help="Number of clusters.", rich_help_panel=_METHOD)
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Steps an image.", rich_help_panel=_METHOD)
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help="Of AdamW.", rich_help_panel=_METHOD)
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of AdamW.", rich_help_panel=_METHOD)
    ] = None,
    dropout: Annotated[
        float | None, typer.Option(help="All dropout rates.", rich_help_panel=_METHOD)
    ] = None,
    refine: Annotated[
        str | None, typer.Option(help="none, bilateral, guided.", rich_help_panel=_METHOD)
    ] = None,
    foreground: Annotated[
        list[str] | None,
        typer.Option(
            help="Rule: corner, border, centre, attention, set, auto. Or the mask's values that "
            "are foreground, such as 1,3 or 128-255 or '#ff0000', or nonzero.",
            rich_help_panel=_METHOD,
        ),
    ] = None,
    value_range: Annotated[
        str,
        typer.Option(
            "--range", help="Values of deep images made black and white: image, set, LOW:HIGH."
        ),
    ] = "image",
    void: Annotated[
        str | None,
        typer.Option(help="Mask values left out of every score, such as 255; none for no value."),
    ] = None,
    quirks: Annotated[
        str | None, typer.Option(help="paper, code.", rich_help_panel=_METHOD)
    ] = None,
    set_field: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="FIELD=VALUE of any other field of a method.", rich_help_panel=_METHOD
        ),
    ] = None,
) -> None:
    """Segments a whole data set with one or many methods, scores it, and loses nothing.

    Writes summary.json, per_image.jsonl and report.html to --out.
    """
    try:
        rules, values = _split_foreground(foreground or [])
        overrides = {
            "image_size": None if image_size is None else parse_size(image_size),
            "stride": stride,
            "facet": facet,
            "affinity": affinity,
            "tau": tau,
            "alpha": alpha,
            "layer": layer,
            "activation": activation,
            "loss": loss,
            "num_clusters": k,
            "epochs": epochs,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "dropout": dropout,
            "refine": refine,
            "foreground": rules,
            "quirks": quirks,
            **_fields(set_field or []),
        }
        settings = Settings(
            data=data,
            out=out,
            methods=tuple(name.strip() for name in method.split(",") if name.strip()),
            protocol=protocol,
            crop=crop,
            limit=limit,
            split=split,
            image_key=image_key,
            mask_key=mask_key,
            foreground_values=values,
            value_range=parse_range(value_range),
            void_values=None if void is None else parse_void(void),
            backbone=backbone,
            batch_size=batch_size,
            seed=seed,
            dtype=dtype,
            overrides={name: value for name, value in overrides.items() if value is not None},
            record_every=record_every,
            resume=resume or retry_failed,
            retry_failed=retry_failed,
            overwrite=overwrite,
            fail_fast=fail_fast,
            shard=None if shard is None else parse_shard(shard),
            save_masks=save_masks,
            thumbnails=thumbnails,
            workers=workers,
            draft=draft,
            cluster=cluster,
            actors=actors,
        )
        if distributed:
            _join_job()
        summary = run(settings, quiet=quiet)
        _print(summary, out)
        if summary["truths"]["error"]:
            raise BenchError(summary["truths"]["error"])
        if summary["failures"]:
            raise typer.Exit(1)
    except Interrupted as error:
        _stop(error, 130)
    except (BenchError, ValueError, ImportError, OSError) as error:
        _stop(error, 1)


def _join_job() -> None:
    import jax

    try:
        jax.distributed.initialize()
    except (ValueError, RuntimeError) as error:
        raise BenchError(
            f"--distributed found no job to join ({error}): start it under SLURM or MPI, or give "
            f"--shard I/N."
        ) from error


def _split_foreground(given: list[str]) -> tuple[str | None, Any]:
    """The rule and the mask values among the uses of --foreground."""
    rule, values = None, None
    for text in given:
        parsed = parse_values(text)
        values, rule = (values, text) if parsed is None else (parsed, rule)
    return rule, values


def _fields(given: list[str]) -> dict[str, Any]:
    fields = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text} must read FIELD=VALUE, such as --set parts=4.")
        fields[name.strip()] = parse_value(value.strip())
    return fields


def _print(summary: dict[str, Any], out: str | Path) -> None:
    print(format_table(summary))
    for note in (*summary["config"]["notes"], *summary["truths"]["notes"]):
        print(f"note: {note}")
    timing = summary["timing"]
    if timing:
        print(
            f"{timing['images']} images in {timing['wall_seconds']:.1f} s, "
            f"{timing['images_per_second']:.2f} a second; device busy "
            f"{100 * timing['device_busy']:.0f} % (overhead {timing['overhead_seconds']:.1f} s, "
            f"of which {timing['waiting_for_images_seconds']:.1f} s waiting for images); "
            f"peak memory {timing['peak_memory_mb'] or 0:.0f} MB"
        )
    for failure in summary["failures"][:10]:
        print(f"failed: {failure['id']} ({failure['method']}): {failure['error']}")
    if len(summary["failures"]) > 10:
        print(f"and {len(summary['failures']) - 10} more failures: see summary.json")
    print(f"written to {out}")


def _stop(error: BaseException, code: int) -> None:
    print(f"error: {error}", file=sys.stderr)
    raise typer.Exit(code)


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
    from unseg_jax.bench.merge import merge, merge_remote
    from unseg_jax.bench.remote import is_remote

    try:
        if is_remote(folder):
            summary = merge_remote(folder, partial=partial)
        else:
            summary = merge(Path(folder), partial=partial)
        _print(summary, folder)
    except (BenchError, ValueError, OSError) as error:
        _stop(error, 1)


@tools.command("report")
def make_report(
    folder: Annotated[str, typer.Argument(help="A run's folder, or its URL.")],
) -> None:
    """Makes summary.json and report.html again, from what the run has recorded."""
    from unseg_jax.bench.remote import is_remote
    from unseg_jax.bench.report import report_remote

    try:
        _print(report_remote(folder) if is_remote(folder) else write_summary(Path(folder)), folder)
    except (BenchError, ValueError, OSError) as error:
        _stop(error, 1)


@tools.command("rescore")
def rescore_masks(
    folder: Annotated[Path, typer.Argument(help="A run's folder, made with --save-masks.")],
    protocol: Annotated[str, typer.Option(help="How to score its masks now.")],
    out: Annotated[Path, typer.Option(help="Folder to write the new scores to.")],
) -> None:
    """Scores the masks of a run under another protocol, without segmenting again."""
    from unseg_jax.bench.rescore import rescore

    try:
        _print(rescore(folder, out, protocol), out)
    except (BenchError, ValueError, OSError) as error:
        _stop(error, 1)


def main() -> None:
    """Runs the command line; a polite kill (SIGTERM) ends a run as Ctrl-C does."""
    signal.signal(signal.SIGTERM, _terminate)
    chosen = tools if sys.argv[1:2] in (["merge"], ["report"], ["rescore"]) else application
    enable_compilation_cache()
    chosen(prog_name="python -m unseg_jax.bench")


if __name__ == "__main__":
    main()
