"""Dense against sparse on a tiny real WanPipeline: what is compared, what is reported, what is left behind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from accel.caching.table import BlockTable, Table
from accel.errors import InputError
from accel.methods.registry import by_name
from accel.routing.policy import Routed
from accel.workbench import comparison as comparing
from accel.workbench.comparison import Comparison, compare
from accel.workbench.generation import generate
from accel.workbench.loading import LoadedPipeline
from accel.workbench.their_caches import Cache, TheirCache
from demos.shapes_wan.train_vae import Z_DIM
from tests.accel.routing.made import wan_routers
from tests.tiny_wan import tiny_pipeline

PROMPT = "a red circle moves left"
DEFAULTS = {
    "num_frames": 9,
    "height": 64,
    "width": 64,
    "num_inference_steps": 3,
    "guidance_scale": 1.0,
    "max_sequence_length": 16,
}
KEYS = """model method method_options cache cache_options prompt seed tokens frames height width steps guidance_scale
dtype device threads torch diffusers dense_seconds sparse_seconds speedup attention_dense_seconds
attention_sparse_seconds attention_speedup
density density_overall recall psnr_db ssim dense_steps planning_share memory_bytes date sparse_backend"""


@pytest.fixture(scope="module")
def loaded() -> LoadedPipeline:
    return LoadedPipeline(tiny_pipeline(), "tiny", DEFAULTS)


@pytest.fixture(scope="module")
def comparison(loaded: LoadedPipeline) -> Comparison:
    return compare(loaded, by_name("sparse-vdit", density=0.3), PROMPT, seed=5)


def is_stock(loaded: LoadedPipeline) -> bool:
    transformer = loaded.pipeline.transformer
    names = {type(processor).__name__ for processor in transformer.attn_processors.values()}
    return names == {"WanAttnProcessor"} and not transformer._forward_pre_hooks


def test_dense_is_what_the_stock_pipeline_makes(loaded: LoadedPipeline, comparison: Comparison):
    generator = torch.Generator().manual_seed(5)
    stock = loaded.pipeline(PROMPT, **DEFAULTS, generator=generator, output_type="np").frames[0]
    np.testing.assert_allclose(comparison.dense, stock, atol=1e-6)
    assert comparison.sparse.shape == comparison.dense.shape == (9, 64, 64, 3)


def test_report_says_everything(comparison: Comparison):
    report = comparison.report
    assert set(report) == set(KEYS.split())
    assert (report["model"], report["method"], report["tokens"]) == ("tiny", "sparse-vdit", 3 * 8 * 8)
    assert report["method_options"]["density"] == 0.3
    assert report["speedup"] == report["dense_seconds"] / report["sparse_seconds"] > 0
    assert report["dtype"] == "float32" and report["device"] and report["seed"] == 5
    assert 0 < report["density"] < report["density_overall"] < 1
    assert 1 <= report["dense_steps"] < 3
    assert 10 < report["psnr_db"] < math.inf and 0 < report["ssim"] < 1


def test_records_cover_every_layer_and_step(comparison: Comparison):
    assert {(record.step, record.layer) for record in comparison.records} == {(s, n) for s in range(3) for n in (0, 1)}
    assert sum(record.seconds for record in comparison.records) == comparison.report["attention_sparse_seconds"]


def test_pipeline_is_left_as_it_was(loaded: LoadedPipeline, comparison: Comparison):
    assert is_stock(loaded)
    assert loaded.pipeline._progress_bar_config == {"disable": True}


def test_all_kept_is_dense_to_rounding(loaded: LoadedPipeline, comparison: Comparison):
    # Head-adaptive budgets never keep everything: the heads below the mean are not made up for above 1.
    kept = compare(loaded, by_name("adaspa", density=1.0, head_adaptive=False), PROMPT, seed=5)
    assert kept.report["density"] == 1.0 and kept.report["recall"] == pytest.approx(1.0, abs=1e-3)
    assert kept.report["psnr_db"] > max(90, comparison.report["psnr_db"] + 20)


def test_generation_equals_the_comparisons_sparse_video(loaded: LoadedPipeline, comparison: Comparison):
    generation = generate(loaded, PROMPT, by_name("sparse-vdit", density=0.3), seed=5)
    np.testing.assert_allclose(generation.frames, comparison.sparse, atol=1e-6)
    assert generation.report["density"] == comparison.report["density"]
    dense = generate(loaded, PROMPT, seed=5)
    np.testing.assert_allclose(dense.frames, comparison.dense, atol=1e-6)
    assert dense.records == [] and dense.report["method"] == "dense"


def test_options_replace_defaults(loaded: LoadedPipeline):
    generation = generate(loaded, PROMPT, None, steps=1, frames=5, height=32, width=48, guidance_scale=2.0, seed=1)
    assert generation.frames.shape == (5, 32, 48, 3)
    assert generation.report["guidance_scale"] == 2.0 and generation.report["steps"] == 1


def test_progress_rises_to_one(loaded: LoadedPipeline):
    seen: list[tuple[float, str]] = []
    compare(loaded, by_name("sparse-vdit"), PROMPT, steps=1, progress=lambda *now: seen.append(now))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and len(seen) == 6
    assert seen[-1][1] == "sparse step 1 of 1"


def test_exception_leaves_the_stock_pipeline(loaded: LoadedPipeline):
    def stop(fraction: float, message: str) -> None:
        if message.startswith("sparse step"):
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        compare(loaded, by_name("sparse-vdit"), PROMPT, progress=stop)
    assert is_stock(loaded)


@pytest.mark.parametrize(("options", "message"), [({"frames": 10}, "frames is 10"), ({"seed": -1}, "seed is -1")])
def test_bad_input_is_refused_before_anything_runs(loaded: LoadedPipeline, options: dict, message: str):
    with pytest.raises(InputError, match=message):
        compare(loaded, by_name("sparse-vdit"), PROMPT, **options)


@pytest.mark.parametrize(
    ("cache", "message"),
    [
        (Table(BlockTable("", ("cc", "rr"))), "the table is of 2 steps, and this generation has 3: take table:every=2"),
        (Table(BlockTable("", ("ccc", "rrr", "ccc"))), "a model with 3 blocks .*, and this one has 2"),
        (Routed(routers=wan_routers()), "the routers are of .* of 64 channels, and this is .* of 32 channels"),
        (TheirCache("SeaCache", {"magic": 1}), "diffusers.SeaCache cannot be used: .*magic"),
    ],
    ids=["steps", "blocks", "routers", "theirs"],
)
def test_a_cache_that_does_not_fit_is_refused_before_anything_runs(
    loaded: LoadedPipeline, monkeypatch: pytest.MonkeyPatch, cache: Cache, message: str
):
    for name in ("run", "generate_call"):
        monkeypatch.setattr(comparing, name, pytest.fail)
    with pytest.raises(InputError, match=message):
        compare(loaded, None, PROMPT, cache=cache)
    assert is_stock(loaded)


def test_latents_that_overflow_are_an_error(loaded: LoadedPipeline, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loaded.pipeline.transformer.proj_out, "bias", torch.nn.Parameter(torch.full((Z_DIM,), 1e38)))
    with pytest.raises(InputError, match="NaN or Inf in torch.float32"):
        generate(loaded, PROMPT, steps=20)
