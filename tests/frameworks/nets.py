"""Models that the tests load by name: `nets:small`, as a user's own module would give them."""

from __future__ import annotations

import keras
import numpy as np
import torch
from torch import nn


class Small(nn.Module):
    """A CNN with two outputs, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.norm(self.conv(x)))
        features = (x + torch.relu(self.deep(x))).mean((2, 3))
        return {"logits": self.head(self.drop(features)), "features": features}


class Block(nn.Module):
    """Token ids through an embedding and one transformer block, with a mask of the tokens that count."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.words(ids)
        mixed, _ = self.attention(x, x, x, key_padding_mask=attention_mask == 0, need_weights=False)
        x = self.norm(x + mixed)
        return torch.nn.functional.gelu(self.head(x)), x[:, 0]


def small() -> nn.Module:
    """The CNN, in training mode as a constructor leaves it."""
    torch.manual_seed(0)
    return Small()


def block() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """The block with its example."""
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 50, (2, 12)), torch.ones(2, 12, dtype=torch.int64)
    mask[1, 8:] = 0
    return Block(), {"ids": ids, "attention_mask": mask}


SMALL = small()


class holder:  # noqa: N801 - a namespace, for a dotted attribute
    """Where a model may lie."""

    small = SMALL


def resnet50() -> keras.Model:
    """The first of AMPS-Inf's models."""
    return _lively(keras.applications.ResNet50)


def inception_v3() -> keras.Model:
    """The second."""
    return _lively(keras.applications.InceptionV3)


def xception() -> keras.Model:
    """The third."""
    return _lively(keras.applications.Xception)


def _lively(make: type[keras.Model]) -> keras.Model:
    """A seeded model whose last layer is scaled to logits of standard deviation 1.

    Left as drawn it answers 1/1000 for every class, to the last digits of a float, and any two answers are alike.
    """
    keras.utils.set_random_seed(1)
    model = make(weights=None)
    head = model.get_layer("predictions")
    x = np.random.default_rng(0).standard_normal((2, *model.inputs[0].shape[1:])).astype(np.float32)
    features = keras.ops.convert_to_numpy(keras.Model(model.input, head.input)(x, training=False))
    kernel = keras.ops.convert_to_numpy(head.kernel)
    head.kernel.assign(kernel / np.std(features @ kernel))
    return model
