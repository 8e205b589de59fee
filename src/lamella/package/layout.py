"""One weights file for a function's optimised and portable graphs: equal tensors are stored once.

Most weights (MatMul, Gemm, embeddings, LSTM) are the same in both variants; only those whose layout depends on the CPU,
of convolutions and of products in blocks, are stored twice. What only the second graph reads comes last, so that the
file can be cut off before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from onnx import ModelProto

from lamella.graph.weights import alignment, bytes_of, disk_error, external


def up_to_page(size: int) -> int:
    """Bytes of a file of weights that holds `size` of them."""
    return -(-size // 4096) * 4096


class WeightsFile:
    """Writes arrays once each, by content, aligned for mapping."""

    def __init__(self, path: Path) -> None:
        """Write to `path`; use as a context manager."""
        self.path = path
        self._offsets: dict[bytes, int] = {}
        self._end = 0

    def __enter__(self) -> WeightsFile:
        self._file = self.path.open("wb")
        return self

    def __exit__(self, *exc: object) -> None:
        if self._end:
            self._file.truncate(up_to_page(self._end))
        self._file.close()

    @property
    def size(self) -> int:
        """Bytes up to the end of what was stored last."""
        return self._end

    def attach(self, proto: ModelProto, weights: Mapping[str, np.ndarray]) -> None:
        """Store `weights` and let `proto` refer to them.

        Raises:
            StorageError: the disk is full or refuses.
        """
        for name, array in weights.items():
            flat = bytes_of(array)
            digest = hashlib.sha256(flat.data).digest()
            offset = self._offsets.get(digest)
            if offset is None:
                offset = self._append(flat)
                self._offsets[digest] = offset
            proto.graph.initializer.append(
                external(name, array.dtype, array.shape, self.path.name, offset, flat.nbytes)
            )

    def _append(self, flat: np.ndarray) -> int:
        step = alignment(flat.nbytes)
        offset = -(-self._end // step) * step
        try:
            self._file.seek(offset)
            self._file.write(flat.data)
        except OSError as error:
            raise disk_error(error, self.path, offset) from error
        self._end = offset + flat.nbytes
        return offset
