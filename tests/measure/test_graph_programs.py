"""Graph networks written for deployment, and what they cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.settings_graphs import tiny_graph_model
from upcycle.core.errors import UserError
from upcycle.core.graph_inputs import table
from upcycle.core.graphs import GraphTakes
from upcycle.core.models import Model
from upcycle.core.references import resolve
from upcycle.measure.cost import count, latency, peak_memory
from upcycle.measure.export import write_export
from upcycle.measure.graph_programs import tensors


def written(model: Model, file: Path) -> torch.nn.Module:
    assert write_export(model, file, "torch") < 1e-5
    return torch.export.load(file).module()


@pytest.mark.parametrize(
    "reference", ["tiny", "zoo:gcn_3_32", "zoo:gin_3_32", "zoo:gat", "zoo:sage", "zoo:factorgcn", "zoo:factorgcn_5_64"]
)
@pytest.mark.parametrize("level", ["graph", "node"])
def test_a_program_answers_as_the_network_whatever_the_size(reference: str, level: str, tmp_path: Path) -> None:
    if reference == "tiny":
        model = tiny_graph_model("tiny", 0, level)  # type: ignore[arg-type]
    else:
        pytest.importorskip("torch_geometric", reason="torch_geometric is not installed (extra graphs)")
        takes = GraphTakes(5, nodes=(3, 9), level=level)  # type: ignore[arg-type]
        model = resolve(reference, pretrained=False, num_classes=3, takes=takes)
    program = written(model, tmp_path / "m.pt2")
    graphs = GraphTakes(5, nodes=(20, 40), level=level).example(30)  # type: ignore[arg-type]
    if graphs.at is not None:
        graphs.at = torch.arange(len(graphs.x))
    with torch.no_grad():
        expected, answer = model.module.eval()(graphs), program(*tensors(graphs, model.takes))  # type: ignore[arg-type]
    assert (answer - expected).abs().max() < 1e-5 * expected.abs().max()
    if level == "graph":
        with torch.no_grad():
            assert torch.allclose(program(*tensors(graphs[:1], model.takes)), expected[:1], atol=1e-4)  # type: ignore[arg-type]
    facts = json.loads((tmp_path / "m.pt2.json").read_text())
    assert facts["inputs"] == ["x", "edge_index", *(["batch", "first"] if level == "graph" else [])]
    assert facts["takes"]["kind"] == "graphs" and facts["classes"] == list(model.classes)


def test_onnx_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"takes graphs with 5 features .* ends in \.pt2, and --format torch\."):
        write_export(tiny_graph_model("tiny", 0), tmp_path / "m.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_a_graph_network_is_counted_on_a_graph() -> None:
    model, graphs = tiny_graph_model("tiny", 0), GraphTakes(5, nodes=(3, 9)).example(1)
    n, edges, width = len(graphs.x), graphs.edge_index.shape[1], 8
    cost = count(model.module, graphs)
    # Two products, degrees, neighbours, and the sum over a graph's nodes.
    assert cost.macs == n * 5 * width + width * 3 + edges + edges * width + n * width
    assert cost.parameters == 5 * width + width + 2 * width + width * 3 + 3
    assert latency(model.module, graphs) > 0 and peak_memory(model.module, graphs) > cost.bytes


def test_memory_of_sparse_features_is_what_they_lie_in() -> None:
    model, graphs = tiny_graph_model("tiny", 0, "node"), GraphTakes(5, nodes=(3, 9), level="node").example(3)
    graphs.x *= graphs.x > 0.5
    sparse = replace(graphs, x=table(graphs.x))
    assert abs(peak_memory(model.module, sparse) - peak_memory(model.module, graphs)) < 1000
