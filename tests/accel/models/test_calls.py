"""Calls of real pipelines that differ from what most give their transformers."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.transformers.transformer_flux2 import Flux2KVAttnProcessor, Flux2KVParallelSelfAttnProcessor

import accel
from accel.attention.call import Geometry, Progress
from accel.methods.registry import by_name
from accel.models import padding
from accel.models import session as session_module
from accel.models.adapters import adapter_for
from accel.models.adapters.readers import patch_of
from accel.models.adapters.wan import WAN
from accel.models.progress import ProgressHook
from accel.models.session import Session
from tests.accel.models.loops import STEPS, Loop, difference
from tests.accel.models.tiny_models import TINY

FULL = dict(block=16)


def test_key_frames_before_a_video_are_other_rows() -> None:
    """`LTXConditionPipeline` tells no sizes, but where every token is."""
    loop = Loop("ltx")
    frames, height, width = TINY["ltx"].grid or (0, 0, 0)
    for name in ("num_frames", "height", "width"):
        loop.inputs.pop(name)
    axes = torch.arange(frames), torch.arange(height), torch.arange(width)
    video = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1).float() * torch.tensor([[0.3], [32.0], [32.0]])
    frame = video[:, : height * width] + torch.tensor([[0.6], [0.0], [0.0]])
    hidden = loop.inputs["hidden_states"]
    for coordinates, before in ((video, 0), (torch.cat([frame, video], 1), height * width)):
        loop.inputs["video_coords"] = coordinates[None]
        loop.inputs["hidden_states"] = torch.cat([hidden[:, :before], hidden], 1)
        stock = loop()
        with accel.enabled(loop, "full", **FULL) as handle:
            assert difference(loop(), stock) < 2e-6
            assert handle.geometry is not None and handle.geometry.before == before
            assert handle.geometry.grid == (frames, height, width) and handle.stats()[0].kind == "sparse"
    # `LTXI2VLongMultiPromptPipeline` puts frames behind the video that come before it in time.
    behind = torch.cat([video, frame - torch.tensor([[9.0], [0.0], [0.0]])], 1)
    read = adapter_for(loop.transformer).geometry
    for coordinates in (behind, video[:, 1:] + 1):
        assert read(loop.transformer, (), {"video_coords": coordinates[None]}) is None


def test_a_grid_that_only_coordinates_tell() -> None:
    """`LTX2DFRPipeline` tells no sizes; key frames and a reference of half the size stand behind the video."""
    loop = Loop("ltx-2")
    grid = TINY["ltx-2"].grid or (0, 0, 0)
    for name in ("num_frames", "height", "width"):
        loop.inputs.pop(name)
    hidden, places = loop.inputs["hidden_states"], loop.transformer.rope.prepare_video_coords
    video = places(1, *grid, hidden.device)
    key = video[:, :, : grid[1] * grid[2]].clone()
    key[:, 0] += 5 / 24
    reference = places(1, grid[0], grid[1] // 2, grid[2] // 2, hidden.device)
    reference[:, 1:] *= 2
    for behind in ((), (key,), (reference,), (key, key, reference)):
        coordinates = torch.cat([video, *behind], 2)
        loop.inputs["video_coords"] = coordinates
        loop.inputs["hidden_states"] = torch.cat([hidden] * 3, 1)[:, : coordinates.shape[2]]
        stock = loop()
        with accel.enabled(loop, "full", **FULL) as handle:
            assert difference(loop(), stock) < 5e-6
            assert handle.geometry is not None and handle.geometry.grid == grid
            assert {record.kind for record in handle.stats()} == {"sparse"}
    read = adapter_for(loop.transformer).geometry
    single = places(1, 1, *grid[1:], hidden.device)
    one = read(loop.transformer, (), {"video_coords": torch.cat([single, reference], 2)})
    assert one is not None and one.grid == (1, *grid[1:])
    assert read(loop.transformer, (), {"video_coords": video.flip(2)}) is None


def test_rows_behind_the_video_of_ltx_2_are_other_rows() -> None:
    loop = Loop("ltx-2")
    geometry = adapter_for(loop.transformer).geometry(loop.transformer, (), loop.inputs)
    assert geometry is not None and geometry.fits(geometry.tokens + 5)
    assert geometry.filled_to(geometry.tokens + 5).after == 5


def test_a_block_mask_of_the_models_own_runs_as_it_was() -> None:
    """As NABLA's of Kandinsky 5, which has no shape like a tensor's."""

    class BlockMask:
        pass

    mask, q = BlockMask(), torch.randn(1, 96, 2, 16)
    session = Session(by_name("full", block=16), 1)
    session.denoising.begin_call(Geometry(4, 4, 6), Progress(0, 2, "cond"))
    with pytest.warns(UserWarning, match="the model brings sparsity of its own, in a BlockMask"):
        assert session.attend(0, q, q, q, stock=lambda q, k, v, given: q if given is mask else k + 1, mask=mask) is q


def two_prompts(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the inputs of Z-Image of two samples, whose prompts have different lengths."""
    text = inputs["cap_feats"][0]
    return {"x": inputs["x"] * 2, "cap_feats": [text, text.repeat(4, 1)], "t": inputs["t"].repeat(2)}


def whole_mask(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return what LTX-2 is given to say how strongly tokens look at each other: here all of them in full."""
    tokens = inputs["hidden_states"].shape[1]
    return {"video_self_attention_mask": torch.ones(1, tokens, tokens)}


@pytest.mark.parametrize(
    ("name", "changed"),
    [("hunyuan-video-1.5", dict), ("qwen-image", dict), ("z-image", two_prompts), ("ltx-2", whole_mask)],
)
def test_a_mask_that_layers_make_anew_is_read_once(
    name: str, changed: Callable[[dict[str, Any]], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[torch.Tensor] = []
    real = padding.valid_rows
    monkeypatch.setattr(session_module, "valid_rows", lambda mask, *rest: read.append(mask) or real(mask, *rest))
    loop = Loop(name)
    loop.inputs |= changed(loop.inputs)
    stock = loop()
    with accel.enabled(loop, "full", **FULL) as handle:
        assert difference(loop(), stock) < 5e-6
        assert len(handle.stats()) > STEPS == len(read)


def test_pictures_beside_the_one_that_is_made_leave_z_image_dense() -> None:
    loop = Loop("z-image")
    picture = loop.inputs["x"][0]
    read = adapter_for(loop.transformer).geometry
    assert read(loop.transformer, (), loop.inputs) is not None
    assert read(loop.transformer, (), loop.inputs | {"x": [[None, picture], [picture]]}) is None


@pytest.mark.parametrize("mode", [None, "extract"])
def test_reference_pictures_whose_keys_are_kept(mode: str | None) -> None:
    """Those processors of FLUX.2 [klein] tell the dispatcher less than all others."""
    loop = Loop("flux-2")
    for name, module in loop.transformer.named_modules():
        if hasattr(module, "processor"):
            single = name.startswith("single")
            module.processor = Flux2KVParallelSelfAttnProcessor() if single else Flux2KVAttnProcessor()
    loop.inputs |= {} if mode is None else {"kv_cache_mode": mode, "num_ref_tokens": 6}
    stock = loop()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "accel runs dense attention: the sequence has")
        with accel.enabled(loop, "full", **FULL) as handle:
            assert difference(loop(), stock) < 2e-6
            assert bool(handle.stats()) or mode is not None
    assert difference(loop(), stock) == 0


def test_layers_of_a_picture_are_frames() -> None:
    loop = Loop("qwen-image")
    read, transformer = adapter_for(loop.transformer).geometry, loop.transformer
    shapes = {"img_shapes": [[(1, 4, 6), (1, 4, 6), (1, 4, 6), (1, 2, 3)]]}
    edited = read(transformer, (), loop.inputs | shapes)
    assert edited is not None and edited.grid == (1, 4, 6) and edited.after == 54
    layered = SimpleNamespace(config=SimpleNamespace(use_layer3d_rope=True))
    layers = read(layered, (), loop.inputs | shapes)
    assert layers is not None and layers.grid == (3, 4, 6) and layers.after == 6


def test_a_picture_that_is_refined_is_a_video_of_one_frame() -> None:
    loop = Loop("hunyuan-image")
    read, latents = adapter_for(loop.transformer).geometry, loop.inputs["hidden_states"]
    base = read(loop.transformer, (), loop.inputs)
    refined = SimpleNamespace(config=SimpleNamespace(patch_size=(1, *patch_of(loop.transformer.config)[1:])))
    assert base is not None
    assert read(refined, (), {"hidden_states": latents[:, :, None]}) == base


def test_attention_of_the_picture_alone_is_sparse_too() -> None:
    """Stable Diffusion 3.5 medium has one beside the joint one."""
    torch.manual_seed(0)
    loop = Loop("sd3")
    config = {name: value for name, value in loop.transformer.config.items() if not name.startswith("_")}
    loop.transformer = SD3Transformer2DModel(**config | {"dual_attention_layers": (0,)}).eval()
    stock = loop()
    with accel.enabled(loop, "full", **FULL) as handle:
        assert difference(loop(), stock) < 2e-6
        assert {record.layer for record in handle.stats()} == {0, 1, 2}
        assert len({record.shape[2] for record in handle.stats()}) == 2, "with text and without"


def test_sizes_beside_the_batch_are_for_all_samples() -> None:
    """Positions of a history of as many frames as there are samples are not cut."""
    for name in ("hunyuan-video-framepack", "wan-vace"):
        loop = Loop(name)
        given = loop.inputs | {
            key: torch.cat([value, value])
            for key, value in loop.inputs.items()
            if isinstance(value, torch.Tensor) and not key.startswith(("indices", "control_hidden_states_scale"))
        }
        if name == "wan-vace":
            given["control_hidden_states_scale"] = torch.ones(len(loop.transformer.config.vace_layers))
        both = loop(**given)
        with accel.enabled(loop, None, cache="easy:threshold=0:warmup=0") as handle:
            assert difference(loop(**given), both) < 2e-5
            assert {block.sample for block in handle.blocks()} == {0, 1}


@pytest.mark.parametrize(
    ("timesteps", "values", "dtype", "counts"),
    [
        # Sigmas in bfloat16 before they are float32 again, or as large as that of a picture beside the video.
        ([999.0, 800, 600, 400], [0.996, 0.996, 0.6, 0.6], torch.float32, True),
        # A loop that makes its steps without `scheduler.step`.
        ([999.0, 800, 600, 400], [0.999, 0.8, 0.6, 0.4], torch.float32, False),
        # Cut off to whole numbers.
        ([900.7, 50.9, 1.9, 0.6], [900, 50, 1, 0], torch.int64, True),
        # Near each other, in a loop that steps copies of the scheduler.
        ([999, 997, 994, 992], [999, 997, 994, 992], torch.int64, False),
    ],
)
def test_steps_of_rounded_timesteps(
    timesteps: list[float], values: list[float], dtype: torch.dtype, counts: bool
) -> None:
    scheduler = SimpleNamespace(timesteps=torch.tensor(timesteps), step_index=None, begin_index=None)
    hook = ProgressHook(Session(None, 0), WAN, SimpleNamespace(scheduler=scheduler))
    steps = []
    for number, value in enumerate(values):
        scheduler.step_index = number if counts and number else None
        progress, _ = hook._progress(torch.tensor([value], dtype=dtype), scheduler.timesteps)
        steps.append(None if progress is None else progress.step)
    assert steps == [0, 1, 2, 3]
