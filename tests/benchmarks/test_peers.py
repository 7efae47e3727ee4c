"""The peers that benchmarks stand beside: they compute what we do, or they would prove nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from torch.nn.functional import scaled_dot_product_attention

from benchmarks import attention, in_ocnn, in_openvino, pipeline
from benchmarks.dense import dense_seconds
from benchmarks.sparse_conv import surface
from sparse_kernels.sparse_conv import sparse_conv, submanifold_map
from tests.tiny_wan import save_tiny

# Conversion traces a transformer, which says what it takes for constant
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)], ids=str)
def test_openvino_attends_as_torch_does(dtype: torch.dtype, bound: float) -> None:
    pytest.importorskip("openvino")
    q, k, v = torch.randn(3, 1, 70, 2, 32).transpose(2, 3).to(dtype)
    out = in_openvino.attention(q, k, v)()
    assert out.dtype == dtype and (out - scaled_dot_product_attention(q, k, v)).abs().max() < bound
    assert "openvino" in dense_seconds(q, k, v, "cpu")


def test_every_dense_attention_has_a_row() -> None:
    rows = attention.measure_dense(torch.float32, 32, 128, 2, "cpu")
    assert {"default", "math"} <= {row["backend"] for row in rows} and len({row["dense_backend"] for row in rows}) == 1
    assert max(row["speedup"] for row in rows) == 1.0 and all(row["fraction_of_gemm"] > 0 for row in rows)


def test_ocnn_convolves_as_we_do() -> None:
    pytest.importorskip("ocnn", exc_type=ImportError)
    if (reason := in_ocnn.reason_against_ocnn()) is not None:
        pytest.skip(reason)
    coordinates, weight = surface(500), torch.randn(6, 3, 3, 3, 4)
    x, octree = torch.randn(len(coordinates), 4), in_ocnn.Octree(coordinates, weight)
    expected = sparse_conv(x, weight, submanifold_map(coordinates, (40, 480, 480), 3))
    assert (octree.forward(x[octree.order]) - expected[octree.order]).abs().max() < 1e-4


@pytest.mark.slow
def test_ways_of_a_pipeline(tmp_path: Path) -> None:
    sizes = {"num_frames": 5, "height": 64, "width": 64, "guidance_scale": 1.0, "max_sequence_length": 24}
    folder = save_tiny(tmp_path / "tiny", num_inference_steps=4, **sizes)
    names = ["stock", "svg-ear", "re-ttention"]
    if in_openvino.has_openvino("cpu"):
        names.insert(1, "OpenVINO")
    pipeline.main(str(folder), ",".join(names), 0.5, 0.5, 4, "float32", json_file=tmp_path / "rows.json")
    rows = {row["case"]: row for row in json.loads((tmp_path / "rows.json").read_text())}
    assert rows.keys() == set(names) and not any("error" in row for row in rows.values()), rows
    assert rows["stock"]["difference"] == 0 and rows.get("OpenVINO", rows["stock"])["difference"] < 1e-3
    for name in ("svg-ear", "re-ttention"):
        row = rows[name]
        parts = [row[f"s_{part}"] for part in ("planning", "kernel", "correction", "rest")]
        assert sum(parts) == pytest.approx(row["seconds"]) and 0 < row["density"] < 1 and row["difference"] > 0
    assert rows["re-ttention"]["s_correction"] > 0


def test_a_way_that_is_not_there_is_named() -> None:
    with pytest.raises(typer.BadParameter, match=r"\['magic'\] are no rows; accepted: stock, stock compiled, OpenVINO"):
        pipeline.ways("stock,magic")


def test_whole_networks_are_equal_in_both_libraries() -> None:
    pytest.importorskip("spconv")
    from benchmarks import sparse_networks

    for name in sparse_networks.NETWORKS:
        row = sparse_networks.measure(name, 300, False, 1)
        assert row["max_error"] < 1e-3 and row["ms_spconv"] > 0 and row["speedup_two"] > 0
