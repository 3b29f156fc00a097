"""A fitted set of unlabelled images: `CollectiveModel`, and `load_model` that reads it back.

Two kinds of model, distinguished by the method's `foreground`:

* `collective` (`foreground="set"` and no shared passes): the scorer of
  `unseg_jax.collective.set_scorer`, fitted on a random sample of the images. Segmenting is one
  forward pass of the backbone and a small convolution; the guided filter then moves edges to the
  image's.
* any other method of graph neural networks, above all `unsegmedgat-c`: its head, trained on the
  method's own loss over all images in turn (T0 passes), from which each image goes on by itself
  (T1 epochs).

No ground truth enters anywhere. Memory does not grow with the set: the evidence is fitted on at
most `max_images` images chosen at random, whose features are held in half precision; shared
passes read the images again each time and hold one batch.

Scores, and how they were measured, are in docs/results.md.

`confidence` is the estimated chance that the IoU with the truth is at least .5, see
`unseg_jax.collective.confidence`; on tiles it is `margin_confidence`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np

from unseg_jax.backbones import Backbone, list_backbones
from unseg_jax.backbones.backbone import CALLABLE
from unseg_jax.batching import Batching
from unseg_jax.collective.marks import read_marks
from unseg_jax.collective.model_file import FORMAT, build_model, read_model, single
from unseg_jax.collective.model_hub import model_path, push
from unseg_jax.collective.segmenter import (
    CONTINUED,
    SCORED,
    SHARED,
    STEERED,
    Fitted,
    apply_fitted,
    apply_shipped,
)
from unseg_jax.collective.set_reader import SetReader
from unseg_jax.collective.set_scorer import Scorer
from unseg_jax.collective.shipped_scorer import second_scorer
from unseg_jax.collective.steering import (
    Steering,
    fit_steering,
    steering_of,
    to_be_taught,
    with_earlier_blocks,
)
from unseg_jax.collective.tiling import CLOSER, TILED
from unseg_jax.data.decoding import as_iterable
from unseg_jax.data.reading_options import PLAIN, Reading
from unseg_jax.errors import ImageError
from unseg_jax.files import atomic
from unseg_jax.method import Method, check_writable
from unseg_jax.registry import refuse_options, resolve
from unseg_jax.segmentation import Segmentation
from unseg_jax.segmenter import BatchSegmenter
from unseg_jax.segmenter.decoded_cache import DecodedCache

if TYPE_CHECKING:
    from unseg_jax.collective.marks import Mark
    from unseg_jax.collective.self_teaching import Held
    from unseg_jax.data.decoding import Range, Source


@dataclasses.dataclass(frozen=True, eq=False)
class CollectiveModel:
    """A fitted set: apply it to new images, save it, look at what it took for foreground.

    Attributes:
        method: what was fitted; `method.epochs` is T1, used where `epochs` is not given.
        backbone: that features come from.
        scorer: None for models of shared passes alone.
        head: parameters of the graph neural network that per-image epochs start from; None if
            it was not trained (`steps=0`).
        foreground: for each cluster, what the vote over the set saw and what the cluster was
            found to be: dicts with `cluster`, `share` (of all patches), `border_ratio` (1 is a
            fair share of the border), `score` and `found` (frame, background or foreground).
        images: how many images the model was fitted on.
        skipped: one message for each image that could not be read while fitting.
        batch_size, seed: of `segment`.
        shipped: whether this is the model that ships, whose confidence is weighed by itself. It is
            not saved; a copy that is read back is known by its values.
        reading: how the images that were fitted were read; None if that is not known.
        steering: what marked images taught; None without examples.
        held: what each image is held to while it teaches itself; None where none does. The model
            that ships has it.
    """

    method: Method
    backbone: Backbone
    scorer: Scorer | None
    head: Any
    foreground: tuple[dict[str, Any], ...]
    images: int = 0
    skipped: tuple[str, ...] = ()
    batch_size: int = 8
    seed: int = 0
    shipped: bool = False
    reading: Reading | None = None
    steering: Steering | None = None
    held: Held | None = None

    @property
    def evidence(self) -> Scorer | None:
        """The earlier name of `scorer`, for one release."""
        return self.scorer

    def segmenter(
        self,
        epochs: int | None = None,
        *,
        closer: bool = False,
        batch_size: int | None = None,
        seed: int | None = None,
        batching: Batching | None = None,
        reading: Reading | None = None,
        kept: DecodedCache | None = None,
    ) -> BatchSegmenter:
        """A segmenter that applies this model, for `segment_files` and streams.

        Args:
            epochs: T1, optimisation steps per image from the shared weights; None takes the
                method's, 0 is the forward pass alone.
            closer: look at an image of more than four times the method's size in tiles, where
                the largest piece that was found whole lies in less than a hundredth of it; and at
                twice the size where three things or more were found, of which half lies in those
                shorter than a quarter of it. A model of `collective` does so if it has no `tile`
                of its own and no epochs.
            batch_size, seed: instead of the model's own.
            batching: how a batch is taken, see `unseg_jax.cluster`.
            reading: how images are read; None reads them as those that were fitted.
            kept: what the fit kept of its images, see `BatchSegmenter`.

        Raises:
            ValueError: a negative number, epochs of a model without a graph head, tiles with
                epochs or a model that takes none, or another range of values than was fitted.
        """
        method = self.method if epochs is None else resolve(self.method, epochs=epochs)
        if method.epochs and self.head is None:
            raise ValueError(
                f"epochs={method.epochs} needs a graph head, and this model has none: fit it again "
                "with steps and without examples, or segment with epochs=0."
            )
        scored = self.scorer is not None
        if method.tile and self.steering is not None:
            raise ValueError(
                f"tile={method.tile} is not for a model that was steered by examples: leave it out."
            )
        if method.tile and (not scored or method.epochs):
            raise ValueError(
                f"tile={method.tile} needs a model of 'collective' and epochs=0; leave tile or "
                "epochs out."
            )
        if method.tile:
            work = TILED
        elif scored:
            work = CLOSER if closer and not method.epochs else SCORED
            work = work._replace(apply=apply_shipped) if self.shipped else work
            work = work if self.steering is None else STEERED
        else:
            work = SHARED if method.foreground == "set" else CONTINUED
        held = None
        if self.held is not None and not method.tile:
            held, method = self.held, with_earlier_blocks(method, self.backbone)
        chosen = np.array([entry["found"] == "foreground" for entry in self.foreground], int)
        second = second_scorer(method, self.backbone) if work.apply is apply_fitted else None
        if second is not None and all(map(np.array_equal, second, self.scorer or ())):
            # A saved copy of the model that ships is no second opinion on itself.
            work, second = work._replace(apply=apply_shipped), None
        # Of NumPy: JAX would compile a program for each.
        numbers: Any = np.asarray(chosen * np.cumsum(chosen), np.int32)
        return BatchSegmenter(
            method,
            self.backbone,
            self.batch_size if batch_size is None else batch_size,
            self.seed if seed is None else seed,
            batching,
            (reading or PLAIN).agreeing(self.reading),
            work,
            Fitted(self.scorer, self.head, numbers, self.steering, second, held),
            kept,
        )

    def segment(
        self,
        images: Source | Iterable[Source],
        *,
        epochs: int | None = None,
        value_range: Range | Literal["set"] | None = None,
        workers: int | None = None,
        **options: Any,
    ) -> list[Segmentation]:
        """Segments one image or many, of the fitted set or new.

        Args:
            images: one or an iterable of paths, PIL images, or uint8 arrays (H, W, 3) or (H, W).
            epochs: see `segmenter`.
            value_range, workers: see `unseg_jax.Segmenter`; None takes the range of the model.
            **options: `batch_size`, `seed` and `batching` of `segmenter`.

        Returns:
            One `Segmentation` an image, in order.

        Raises:
            ImageError: the first image that cannot be read. `stream` goes on.
            ValueError: see `segmenter`; also an option that belongs to the fit.
        """
        others = [name for name in options if name not in ("batch_size", "seed", "batching")]
        refuse_options(others, dict.fromkeys(others, "pass it to unseg_jax.fit or load_model"))
        reading = Reading(value_range, workers=workers)
        if reading.whole_set:
            images = list(as_iterable(images))
            reading = reading.measured(images)
        return self.segmenter(epochs, reading=reading, **options)(images)

    def stream(
        self, images: Source | Iterable[Source], *, epochs: int | None = None
    ) -> Iterator[Segmentation | ImageError]:
        """As `segment`, without holding all results; failures are yielded, not raised."""
        return self.segmenter(epochs).stream(images)

    def refine(
        self,
        images: Iterable[Source] | None = None,
        *,
        examples: Mapping[Any, Source] | None = None,
        clicks: Mapping[Any, Iterable[Mark]] | None = None,
    ) -> CollectiveModel:
        """Another model, which a few marks steer; this one stays as it is, and is the prior.

        Args:
            images: paths of images of the set, the marked ones among them; where they look unlike
                what is marked they are held to what this model finds. None takes those that are
                marked alone.
            examples, clicks: see `unseg_jax.fit`. What steered this model goes on doing so: give
                new marks alone.

        Raises:
            ValueError: see `unseg_jax.fit`; also a model of shared passes, tiles or epochs.
            ImageError: an image that cannot be read.
        """
        if self.scorer is None or self.method.tile or self.method.epochs:
            raise ValueError("only a model of 'collective' without tile and epochs can be refined.")
        if images is None:
            images = dict.fromkeys([*(examples or ()), *(clicks or ())])
        sources, model = list(images), self
        marks = read_marks(sources, self.segmenter().reading, examples, clicks)
        masks = [one.truth.mask for one in marks.values() if one.truth is not None]
        if self.steering is None:
            method = to_be_taught(self.method, self.backbone, masks)
            model = dataclasses.replace(self, method=method)
        # Images are gone through once: what does not fit in memory is not written to a file.
        segmenter = model.segmenter(kept=DecodedCache(disk=0))
        reader = SetReader(segmenter, sources)
        marked, everything = reader.marked(marks), reader(range(len(sources)))
        scales, earlier, held = model.method.scales, self.steering, self.held
        if held is not None and held.taught is not None:
            # What the set taught goes on as what steers all images.
            earlier = steering_of(held, len(self.scorer.mean))
            model = dataclasses.replace(model, held=held._replace(taught=None))
        steering, _ = fit_steering(self.scorer, everything, marked, earlier, scales)
        if reader.failed:
            raise ImageError(reader.failed[0])
        return dataclasses.replace(model, steering=steering)

    def save(self, path: str | Path) -> None:
        """Writes the model as safetensors with JSON in its metadata; the backbone by name only.

        Raises:
            WriteError: the file cannot be written.
            ValueError: the method has a loss or layer of your own.
        """
        from safetensors.numpy import save

        check_writable(self.method)

        named = self.backbone.name in list_backbones()
        facts = {
            "format": FORMAT,
            "method": json.dumps(dataclasses.asdict(self.method)),
            "backbone": self.backbone.name if named else self.backbone.source,
            "foreground": json.dumps(self.foreground),
            "images": str(self.images),
        }
        if self.reading is not None:
            facts["reading"] = json.dumps(self.reading.to_json())
        tensors = {}
        if self.scorer is not None:
            tensors |= {f"evidence/{k}": single(v) for k, v in self.scorer._asdict().items()}
        if self.steering is not None:
            facts["examples"] = str(self.steering.examples)
            parts = self.steering._asdict()
            del parts["examples"]
            by_masks = parts.pop("held")
            tensors |= {f"steering/{name}": single(part) for name, part in parts.items()}
            if by_masks is not None:
                tensors["steering/basis"] = single(by_masks.basis)
                tensors["steering/origin"] = single(by_masks.origin)
        if self.held is not None:
            # A quarter of the bytes; what is read back is written as it was read.
            basis, origin = (np.asarray(part, np.float32) for part in self.held[:2])
            scale = np.maximum(np.abs(basis).max(0), 1e-12) / np.float32(127)
            tensors |= {"held/basis": np.round(basis / scale).astype(np.int8)}
            tensors |= {"held/scale": scale, "held/origin": origin}
            if self.held.taught is not None:
                tensors["held/taught"] = single(self.held.taught)
        if self.head is not None:
            for keys, leaf in jax.tree.leaves_with_path({"head": self.head}):
                name = jax.tree_util.keystr(keys, simple=True, separator="/")
                tensors[name] = single(leaf)
        content = save(tensors, facts)
        with atomic(Path(path).expanduser()) as partial:
            partial.write_bytes(content)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Uploads the model to the Hugging Face hub, with a card that says how to use it.

        Args:
            repository: ORG/NAME; made if it is not there. Log in with `hf auth login` first.
            private: whether a repository that is made is private.

        Returns:
            The name that `load_model` and `unseg-jax segment --model` take: hf:ORG/NAME.

        Raises:
            ValueError: a name of another form.
            HfHubHTTPError: the hub refused, as without a login.
        """
        return push(self, repository, private=private)


def load_model(
    path: str | Path, *, backbone: str | Path | Backbone | None = None, dtype: str = "auto"
) -> CollectiveModel:
    """Reads a model that `CollectiveModel.save` wrote; every value in it is checked.

    Args:
        path: of the file, or hf:ORG/NAME for a model on the Hugging Face hub.
        backbone: name, path to weights, or a loaded `Backbone`, instead of the one named in the
            file.
        dtype: of the backbone, "float32" or "bfloat16".

    Raises:
        ValueError: not such a file, one that is damaged, or one for features of another width.
        WeightsError: the backbone cannot be loaded, or the hub not reached.

    Example:
        >>> from unseg_jax.collective.fitting import fit
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/model.safetensors"
        ...     fit([photograph] * 2, backbone=backbone, image_size=32, steps=0).save(path)
        ...     model = load_model(path, backbone=backbone)
        >>> model.method.name, model.images
        ('collective', 2)
    """
    from unseg_jax.backbones import load_backbone

    path = model_path(path)
    stored = read_model(path)
    if backbone is None:
        if stored.backbone.startswith(CALLABLE):
            raise ValueError(
                f"{path} was fitted on the features of a function; give it again as "
                "backbone=unseg_jax.from_callable(...)."
            )
        backbone = stored.backbone
    if not isinstance(backbone, Backbone):
        backbone = load_backbone(backbone, dtype=dtype)  # type: ignore[arg-type]
    scorer, head, steering, held = build_model(path, stored, backbone)
    return CollectiveModel(
        stored.method,
        backbone,
        scorer,
        head,
        stored.foreground,
        stored.images,
        reading=stored.reading,
        steering=steering,
        held=held,
    )
