"""Divide operators among parallel shards: each computes a part, the parts make the whole tensor again.

The idea is that of GSPMD (Xu et al. 2021) and Megatron (Shoeybi et al. 2019), on any span of operators: an axis along
which an operator's weights can be divided is followed through the operators after it. A dense layer divided by columns
gives a part of its output's last axis; element-wise operators keep it; reshapes and transposes move it (so the columns
of a query projection become attention heads); a dense layer that sums over the divided axis takes the matching rows of
its weights and gives a *partial sum*. Where the span ends, parts are concatenated and partial sums added. No shard
waits for another within a span, and every shard reads only its own share of the divided weights.

Three ways to divide, tried as asked:

- `channels`: columns of dense layers and embeddings, output channels of convolutions, heads of attention;
- `rows`: rows of embedding tables, each shard answering zero for ids that are not its own (partial sums);
- `tiles`: bands of an image with as much of their neighbours (halo) as the span's convolutions look at. Halos are
  computed again rather than exchanged, and every shard holds all weights: this saves time and activations, not weights.

An operator without a rule ends the attempt with its reason. Rejected: exchanges within a span (functions cannot talk to
each other, so an exchange is the end of a span), and splits of a fused query-key-value projection along its columns
(the columns would have to be permuted first).
"""

from __future__ import annotations

from typing import Literal

from lamella.graph.shard.channels import by_weights
from lamella.graph.shard.draft import Sharded, Task
from lamella.graph.shard.tiles import by_tiles

Way = Literal["channels", "rows", "tiles"]

__all__ = ["Sharded", "Task", "Way", "divide"]


def divide(task: Task, way: Way) -> Sharded:
    """The task's operators as shards and the operators that join what they give.

    Raises:
        ShardRefused: an operator cannot follow the division, or there is nothing to divide.
    """
    match way:
        case "channels":
            return by_weights(task, rows=False)
        case "rows":
            return by_weights(task, rows=True)
        case "tiles":
            return by_tiles(task)
