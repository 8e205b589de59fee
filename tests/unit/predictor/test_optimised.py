"""Shapes against the runtime's own: its profiler says what every node of an optimised graph gave."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from lamella.predictor import networks, sampling
from lamella.predictor.networks import Network

SMALL = (
    Network("convolutions-a", partial(networks._convolutional, 3, 40, 9)),
    Network("convolutions-b", partial(networks._convolutional, 32, 14, 9)),
    Network("dense", partial(networks._dense, 5, 3)),
    Network("attention", partial(networks._attention, 8, 32, 2)),
    Network("attention-skip", partial(networks._attention, 8, 32, 2, skip=True)),
    Network("lstm", partial(networks._recurrent, "LSTM", 4, 16, 16, True)),
    Network("tables", partial(networks._tables, 3, 1000, 4)),
    Network("words", partial(networks._words, 6, 1000, 16)),
    Network("simple", partial(networks._simple, (1, 8, 12, 12))),
    Network("odd", partial(networks._odd, 5, 9)),
)


@pytest.mark.parametrize("network", SMALL, ids=lambda n: n.name)
def test_every_node_has_the_shape_that_the_runtime_gives_it(network: Network, tmp_path: Path) -> None:
    made = sampling._make(network, tmp_path)
    session = sampling._session(made.path, "plain", 1, tmp_path / "runs")
    sampling._run(session, made.values)
    events = json.loads(Path(session.end_profiling()).read_bytes())
    seen = [e for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")]
    assert len(seen) == len(made.nodes)
    for event in seen:
        node = made.nodes[int(event["args"]["node_index"])]
        (shape,) = event["args"]["output_type_shape"][0].values()
        assert event["args"]["op_name"] == node.kind
        assert tuple(shape) == node.outputs[0].shape, node
