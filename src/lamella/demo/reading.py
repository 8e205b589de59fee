"""Read text from a picture with a real pretrained recogniser, whole and divided."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from lamella.deploy.local import Deployment
from lamella.errors import ConfigError, ModelError
from lamella.graph.cuts import plan_cuts
from lamella.graph.load import import_model
from lamella.graph.model import Graph
from lamella.machine import on_cores
from lamella.package import build
from lamella.plan.document import Plan
from lamella.plan.manual import plan_by_hand
from lamella.platforms import platform
from lamella.scratch import scratch

MODEL = "zoo:rapidocr-rec"
HEIGHT, WIDTH = 48, 320


class Reading(NamedTuple):
    """What was read by one way of serving the model."""

    text: str
    functions: int
    latency_ms: float
    weights_mb: tuple[float, ...]


def picture(path: Path | None = None) -> np.ndarray:
    """The picture as the recogniser wants it: float32 [1, 3, 48, 320], BGR, -1 to 1.

    Raises:
        ConfigError: pillow is not installed, or the file is no picture.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise ConfigError("the demo reads a picture and needs pillow", try_="pip install 'lamella[demo]'") from error
    source = path or Path(str(resources.files(__package__) / "text.png"))
    try:
        with Image.open(source) as image:
            pixels = np.asarray(image.convert("RGB").resize((WIDTH, HEIGHT)), np.float32)
    except (OSError, UnidentifiedImageError) as error:
        raise ConfigError(f"cannot read the picture {source}: {error}") from error
    return np.ascontiguousarray((pixels[:, :, ::-1] / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None].astype(np.float32)


def alphabet(graph: Graph) -> list[str]:
    """The recogniser's characters, from the model's own metadata; index 0 is the blank of CTC."""
    proto = onnx.load(graph.source, load_external_data=False)
    entry = next((p.value for p in proto.metadata_props if p.key == "character"), None)
    if entry is None:
        raise ModelError(f"{graph.name} carries no alphabet in its metadata")
    return ["", *entry.split("\n"), " "]


def decode(scores: np.ndarray, characters: list[str]) -> str:
    """Greedy CTC: the best character of each step, repeats merged, blanks dropped. `scores` is [steps, characters]."""
    best = scores.argmax(axis=1)
    kept = [b for b, before in zip(best, [-1, *best[:-1]], strict=True) if b not in (before, 0)]
    return "".join(characters[b] for b in kept)


def read(image: np.ndarray, stages: int) -> Reading:
    """Serve the recogniser as `stages` functions on this machine and read the picture."""
    graph = import_model(MODEL)
    cuts = plan_cuts(graph)
    weights = [graph.weight_bytes(0, c.position) for c in cuts]
    total = graph.weight_bytes(0, len(graph.operators))
    positions = [
        cuts[min(range(len(cuts)), key=lambda i: abs(weights[i] - total * k / stages))].position
        for k in range(1, stages)
    ]
    plan = plan_by_hand(graph, positions, platform("openfaas"), given=MODEL)
    with _deployed(plan, graph) as deployment:
        deployment.infer({"x": image})
        answer = deployment.infer({"x": image})
    text = decode(answer.outputs[graph.outputs[0]][0], alphabet(graph))
    return Reading(text, plan.stages, answer.latency_ms, tuple(f.package_mb for f in plan.functions))


@contextmanager
def _deployed(plan: Plan, graph: Graph) -> Iterator[Deployment]:
    with scratch("demo") as space, on_cores(1) as cpus:
        build(plan, graph, space / "package")
        with Deployment(space / "package", cpus=cpus) as deployment:
            yield deployment
