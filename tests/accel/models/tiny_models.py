"""Tiny random-weight diffusers transformers (0.42.1): constructor arguments and forward inputs, one entry a class.

Every entry is a `Tiny`: `build()` gives the model (seeded, eval, float32), `inputs()` the keyword arguments of one
forward. The video latents are 3 frames of 8 x 12 unless an entry says otherwise; with patch (1, 2, 2) that is a token
grid of 3 x 4 x 6 = 72, three different sides, so that a wrong order of the axes shows. `grid` is that token grid,
`text` the number of text tokens in the *attention* sequence. `video_key` and `text_key` name the inputs that carry
video and text, for perturbation. `names` are the video self-attention modules in layer order.
Runs offline: no weights, no tokenizer, no hub.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

T, H, W = 3, 8, 12  # latents
GRID = (3, 4, 6)  # tokens with patch (1, 2, 2)
GRID1 = (3, 8, 12)  # tokens with patch 1
L = 10  # text tokens, of which the last PAD are padding where a mask says so
PAD = 3


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + 31 * len(shape) + sum(shape)))


def mask(batch: int = 1, dtype: torch.dtype = torch.long) -> torch.Tensor:
    m = torch.ones(batch, L, dtype=dtype)
    m[:, L - PAD :] = 0
    return m


def t(value: float = 500.0, batch: int = 1) -> torch.Tensor:
    return torch.full((batch,), value)


@dataclass
class Tiny:
    cls: str
    kwargs: dict[str, Any]
    inputs: Callable[[], dict[str, Any]]
    grid: tuple[int, int, int] | None = GRID
    video_key: str | tuple = "hidden_states"
    text_key: str | tuple | None = "encoder_hidden_states"
    family: str = ""
    module: str = "diffusers"
    layout: str = "bcthw"  # axes of the video input; "packed" is (b, tokens, c) in t h w order
    kind: str = "video"
    prepare: Callable[[Any, dict[str, Any]], dict[str, Any]] | None = None

    def build(self, seed: int = 0, **more: Any) -> Any:
        import importlib

        torch.manual_seed(seed)
        model = getattr(importlib.import_module(self.module), self.cls)(**{**self.kwargs, **more}).eval()
        # Zero-initialised tables and gates would hide an attention that is wrong.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.is_floating_point() and not 0 < float(parameter.abs().max()) < float("inf"):
                    parameter.copy_(0.2 * torch.randn(parameter.shape))
        return model


def _wan(**more: Any) -> dict[str, Any]:
    return (
        dict(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=32,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=32,
            ffn_dim=64,
            num_layers=2,
            cross_attn_norm=True,
            rope_max_seq_len=32,
        )
        | more
    )


def _wan_in(channels: int = 16) -> Callable[[], dict[str, Any]]:
    return lambda: dict(hidden_states=rand(1, channels, T, H, W), timestep=t(), encoder_hidden_states=rand(1, L, 32))


TINY: dict[str, Tiny] = {}


def add(name: str, tiny: Tiny) -> None:
    TINY[name] = tiny


# ---- Wan family ------------------------------------------------------------------------------------------------
add("wan-2.1", Tiny("WanTransformer3DModel", _wan(), _wan_in()))
# TI2V-5B passes one timestep a token: (batch, tokens).
add(
    "wan-2.2-ti2v",
    Tiny("WanTransformer3DModel", _wan(), lambda: _wan_in()() | dict(timestep=torch.full((1, 72), 500.0))),
)
# Wan 2.1 I2V: image tokens in cross-attention; the processor cuts the last 512 context tokens off as text.
add(
    "wan-2.1-i2v",
    Tiny(
        "WanTransformer3DModel",
        _wan(in_channels=36, image_dim=24, added_kv_proj_dim=64),
        lambda: dict(
            hidden_states=rand(1, 36, T, H, W),
            timestep=t(),
            encoder_hidden_states=rand(1, 512, 32),
            encoder_hidden_states_image=rand(1, 5, 24),
        ),
    ),
)
add(
    "wan-vace",
    Tiny(
        "WanVACETransformer3DModel",
        _wan(vace_layers=[0, 1], vace_in_channels=20),
        lambda: (
            _wan_in()() | dict(control_hidden_states=rand(1, 20, T, H, W), control_hidden_states_scale=torch.ones(2))
        ),
    ),
)
add(
    "wan-animate",
    Tiny(
        "WanAnimateTransformer3DModel",
        _wan(
            in_channels=36,
            latent_channels=16,
            image_dim=24,
            added_kv_proj_dim=64,
            motion_encoder_size=16,
            motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8},
            motion_style_dim=16,
            motion_dim=4,
            motion_encoder_dim=16,
            face_encoder_hidden_dim=16,
            face_encoder_num_heads=2,
            inject_face_latents_blocks=2,
        ),
        # T + 1 latent frames (first: reference), pose has T of them; 4 * (T - 1) + 1 face frames.
        lambda: dict(
            hidden_states=rand(1, 36, T, H, W),
            timestep=t(),
            encoder_hidden_states=rand(1, 512, 32),
            encoder_hidden_states_image=rand(1, 5, 24),
            pose_hidden_states=rand(1, 16, T - 1, H, W),
            face_pixel_values=rand(1, 3, 4 * (T - 2) + 1, 16, 16),
        ),
    ),
)


def _animate2(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    """Fill the reference cache first, as the pipeline does; then one generation pass."""
    from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache

    cache = WanAnimate2KVCache(len(model.blocks))
    grid = torch.tensor([[T - 1, H // 2, W // 2]])
    extract = dict(
        hidden_states=[rand(16, T - 1, H, W, seed=3)],
        condition_latents=[rand(20, T - 1, H, W, seed=4)],
        timestep=t(),
        encoder_hidden_states=[rand(L, 32)],
        kv_cache=cache,
        kv_cache_mode="extract",
        seq_len=(T - 1) * H * W // 4,
        offset_grid_sizes=grid,
        encoder_hidden_states_image=rand(1, 257, 1280),
    )
    with torch.no_grad():
        model(**extract)
    # origin_len // 4 + 1 latent frames without the reference one; origin_area in pixels, 256 of them a token.
    return inputs | dict(kv_cache=cache, reference_grid_sizes=grid, origin_len=4 * (T - 2), origin_area=[H * 8, W * 8])


add(
    "wan-animate-2",
    Tiny(
        "WanAnimate2Transformer3DModel",
        dict(
            patch_size=(1, 2, 2),
            text_len=L,
            in_dim=36,
            dim=64,
            ffn_dim=64,
            freq_dim=32,
            text_dim=32,
            out_dim=16,
            num_heads=2,
            num_layers=2,
        ),
        lambda: dict(
            hidden_states=[rand(16, T, H, W)],
            condition_latents=[rand(20, T, H, W)],
            timestep=t(),
            encoder_hidden_states=[rand(L, 32)],
            kv_cache_mode="cached",
            seq_len=T * H * W // 4,
            encoder_hidden_states_image=rand(1, 257, 1280),
        ),
        prepare=_animate2,
        video_key=("hidden_states", 0),
        text_key=("encoder_hidden_states", 0),
    ),
)
add("chronoedit", Tiny("ChronoEditTransformer3DModel", _wan(), _wan_in()))
add("skyreels-v2", Tiny("SkyReelsV2Transformer3DModel", _wan(), _wan_in()))
# Diffusion forcing: a timestep a frame, and with more than one frame a block a block-causal mask.
add(
    "skyreels-v2-df",
    Tiny(
        "SkyReelsV2Transformer3DModel",
        _wan(inject_sample_info=True, num_frame_per_block=1),
        lambda: (
            _wan_in()() | dict(timestep=torch.full((1, T), 500.0), enable_diffusion_forcing=True, fps=torch.tensor([1]))
        ),
    ),
)
add(
    "skyreels-v2-causal",
    Tiny(
        "SkyReelsV2Transformer3DModel",
        _wan(num_frame_per_block=2),
        lambda: dict(
            hidden_states=rand(1, 16, 4, H, W),
            timestep=torch.full((1, 4), 500.0),
            encoder_hidden_states=rand(1, L, 32),
            enable_diffusion_forcing=True,
        ),
        grid=(4, 4, 6),
    ),
)
add(
    "anyflow",
    Tiny(
        "AnyFlowTransformer3DModel",
        _wan(),
        # forward takes (batch frames channels height width) and one timestep a frame
        lambda: dict(
            hidden_states=rand(1, T, 16, H, W),
            timestep=torch.full((1, T), 500.0),
            r_timestep=torch.full((1, T), 400.0),
            encoder_hidden_states=rand(1, L, 32),
        ),
    ),
)
add(
    "anyflow-far",
    Tiny(
        "AnyFlowFARTransformer3DModel",
        _wan(compressed_patch_size=(1, 4, 4), full_chunk_limit=3, chunk_partition=(1, 2)),
        lambda: dict(
            hidden_states=rand(1, T, 16, H, W),
            timestep=torch.full((1, T), 500.0),
            r_timestep=torch.full((1, T), 400.0),
            encoder_hidden_states=rand(1, L, 32),
            chunk_partition=[1, 2],
        ),
    ),
)
add(
    "helios",
    Tiny(
        "HeliosTransformer3DModel",
        dict(
            patch_size=(1, 2, 2),
            num_attention_heads=2,
            attention_head_dim=32,
            in_channels=16,
            out_channels=16,
            text_dim=32,
            freq_dim=32,
            ffn_dim=64,
            num_layers=2,
            rope_dim=(12, 10, 10),
        ),
        lambda: dict(
            hidden_states=rand(1, 16, T, H, W),
            timestep=t(),
            encoder_hidden_states=rand(1, L, 32),
            indices_hidden_states=torch.arange(17, 17 + T)[None],
            indices_latents_history_short=torch.arange(15, 17)[None],
            indices_latents_history_mid=torch.arange(13, 15)[None],
            indices_latents_history_long=torch.arange(9, 13)[None],
            latents_history_short=rand(1, 16, 2, H, W, seed=1),
            latents_history_mid=rand(1, 16, 2, H, W, seed=2),
            latents_history_long=rand(1, 16, 4, H, W, seed=3),
        ),
    ),
)

# ---- HunyuanVideo family ---------------------------------------------------------------------------------------
_HY = dict(
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=32,
    num_layers=1,
    num_single_layers=1,
    num_refiner_layers=1,
    patch_size=2,
    patch_size_t=1,
    guidance_embeds=True,
    text_embed_dim=16,
    pooled_projection_dim=8,
    rope_axes_dim=(8, 12, 12),
)


def _hy_in() -> dict[str, Any]:
    return dict(
        hidden_states=rand(1, 4, T, H, W),
        timestep=t(),
        encoder_hidden_states=rand(1, L, 16),
        encoder_attention_mask=mask(),
        pooled_projections=rand(1, 8),
        guidance=torch.tensor([6000.0]),
    )


add("hunyuan-video", Tiny("HunyuanVideoTransformer3DModel", _HY, _hy_in))
# image_condition_type "token_replace" (image to video): blocks of other classes, another modulation of frame 0.
add(
    "hunyuan-video-i2v",
    Tiny("HunyuanVideoTransformer3DModel", _HY | dict(image_condition_type="token_replace"), _hy_in),
)
add(
    "hunyuan-video-1.5",
    Tiny(
        "HunyuanVideo15Transformer3DModel",
        dict(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=32,
            num_layers=2,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            patch_size=1,
            patch_size_t=1,
            text_embed_dim=16,
            text_embed_2_dim=32,
            image_embed_dim=12,
            rope_axes_dim=(8, 12, 12),
            target_size=16,
            task_type="t2v",
        ),
        lambda: dict(
            hidden_states=rand(1, 9, T, H, W),
            timestep=t(),
            encoder_hidden_states=rand(1, L, 16),
            encoder_attention_mask=mask(),
            encoder_hidden_states_2=rand(1, 6, 32),
            encoder_attention_mask_2=torch.tensor([[1, 1, 1, 1, 0, 0]]),
            image_embeds=torch.zeros(1, 7, 12),
        ),
        grid=GRID1,
    ),
)
add(
    "hunyuan-video-framepack",
    Tiny(
        "HunyuanVideoFramepackTransformer3DModel",
        _HY | dict(has_image_proj=True, image_proj_dim=12, has_clean_x_embedder=True),
        lambda: (
            _hy_in()
            | dict(
                image_embeds=rand(1, 5, 12),
                indices_latents=torch.arange(8, 8 + T),
                latents_clean=rand(1, 4, 2, H, W, seed=1),
                indices_latents_clean=torch.tensor([0, 7]),
                latents_history_2x=rand(1, 4, 2, H, W, seed=2),
                indices_latents_history_2x=torch.tensor([5, 6]),
                latents_history_4x=rand(1, 4, 4, H, W, seed=3),
                indices_latents_history_4x=torch.tensor([1, 2, 3, 4]),
            )
        ),
    ),
)
add(
    "motif-video",
    Tiny(
        "MotifVideoTransformer3DModel",
        dict(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=32,
            num_layers=1,
            num_single_layers=2,
            num_decoder_layers=1,
            patch_size=2,
            patch_size_t=1,
            text_embed_dim=16,
            rope_axes_dim=(8, 12, 12),
            enable_text_cross_attention_dual=True,
            enable_text_cross_attention_single=True,
        ),
        lambda: dict(
            hidden_states=rand(1, 9, T, H, W),
            timestep=t(),
            encoder_hidden_states=rand(1, L, 16),
            encoder_attention_mask=mask(),
        ),
    ),
)

# ---- text first, SDPA called directly ---------------------------------------------------------------------------
_COG = dict(
    num_attention_heads=4,
    attention_head_dim=16,
    in_channels=4,
    out_channels=4,
    time_embed_dim=8,
    text_embed_dim=32,
    num_layers=2,
    sample_width=W,
    sample_height=H,
    sample_frames=9,
    patch_size=2,
    temporal_compression_ratio=4,
    max_text_seq_length=L,
)


def _cog_in(rotary: bool = True, frames: int = T, grid: tuple[int, int, int] = GRID) -> dict[str, Any]:
    inputs = dict(hidden_states=rand(1, frames, 4, H, W), timestep=t(), encoder_hidden_states=rand(1, L, 32))
    if rotary:
        n = grid[0] * grid[1] * grid[2]
        angle = rand(n, 8, seed=5).repeat_interleave(2, 1)
        inputs["image_rotary_emb"] = (angle.cos(), angle.sin())
    return inputs


add("cogvideox-5b", Tiny("CogVideoXTransformer3DModel", _COG | dict(use_rotary_positional_embeddings=True), _cog_in))
add("cogvideox-2b", Tiny("CogVideoXTransformer3DModel", _COG, lambda: _cog_in(False)))
add(
    "cogvideox-1.5",
    Tiny(
        "CogVideoXTransformer3DModel",
        _COG | dict(use_rotary_positional_embeddings=True, patch_size_t=2, sample_frames=13, patch_bias=False),
        lambda: _cog_in(True, 4, (2, 4, 6)),
        grid=(2, 4, 6),
    ),
)
add(
    "consisid",
    Tiny(
        "ConsisIDTransformer3DModel",
        {k: v for k, v in _COG.items()}
        | dict(
            use_rotary_positional_embeddings=True,
            is_train_face=True,
            cross_attn_interval=2,
            cross_attn_dim_head=16,
            cross_attn_num_heads=2,
            LFE_id_dim=8,
            LFE_vit_dim=8,
            LFE_depth=5,
            LFE_dim_head=8,
            LFE_num_heads=2,
            LFE_num_id_token=2,
            LFE_num_querie=4,
            LFE_output_dim=42,
            LFE_ff_mult=2,
            LFE_num_scale=5,
        ),
        lambda: _cog_in() | dict(id_cond=rand(1, 8), id_vit_hidden=[rand(1, 6, 8, seed=i) for i in range(5)]),
    ),
)
add(
    "easyanimate",
    Tiny(
        "EasyAnimateTransformer3DModel",
        dict(
            num_attention_heads=2,
            attention_head_dim=32,
            in_channels=4,
            out_channels=4,
            patch_size=2,
            sample_width=W,
            sample_height=H,
            num_layers=2,
            mmdit_layers=1,
            time_embed_dim=8,
            text_embed_dim=16,
        ),
        lambda: dict(hidden_states=rand(1, 4, T, H, W), timestep=t(), encoder_hidden_states=rand(1, L, 16)),
    ),
)


# ---- text in cross-attention, SDPA called directly -----------------------------------------------------------------
def _allegro_inputs() -> dict[str, Any]:
    from diffusers.models.embeddings import get_3d_rotary_pos_embed_allegro

    freqs_t, freqs_h, freqs_w, grid_t, grid_h, grid_w = get_3d_rotary_pos_embed_allegro(
        embed_dim=24,
        crops_coords=((0, 0), (4, 6)),
        grid_size=(4, 6),
        temporal_size=3,
        interpolation_scale=(2.0, 2.0, 2.0),
        device="cpu",
    )
    # positions of every token in frame-major order, three of (1, tokens), as the pipeline makes them
    position = torch.cartesian_prod(*(torch.as_tensor(g).long() for g in (grid_t, grid_h, grid_w)))
    rotary = ((freqs_t, freqs_h, freqs_w), tuple(position.T.reshape(3, 1, -1).contiguous()))
    return dict(
        hidden_states=rand(1, 4, T, H, W),
        timestep=t(),
        encoder_hidden_states=rand(1, 1, L, 24),
        attention_mask=torch.ones(1, T, H, W),
        encoder_attention_mask=mask()[:, None].float(),
        image_rotary_emb=rotary,
    )


add(
    "allegro",
    Tiny(
        "AllegroTransformer3DModel",
        dict(
            num_attention_heads=2,
            attention_head_dim=24,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            cross_attention_dim=48,
            sample_width=W,
            sample_height=H,
            sample_frames=T,
            caption_channels=24,
        ),
        _allegro_inputs,
    ),
)
add(
    "latte",
    Tiny(
        "LatteTransformer3DModel",
        dict(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=16,
            num_attention_heads=3,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=48,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            video_length=3,
        ),
        # a 2-D encoder_attention_mask is not repeated for the frames (fails); LattePipeline passes none
        lambda: dict(hidden_states=rand(1, 4, 3, 8, 8), timestep=t(), encoder_hidden_states=rand(1, L, 32)),
        grid=(3, 4, 4),
    ),
)
add(
    "mochi",
    Tiny(
        "MochiTransformer3DModel",
        dict(
            patch_size=2,
            num_attention_heads=2,
            attention_head_dim=32,
            num_layers=3,
            pooled_projection_dim=16,
            in_channels=12,
            qk_norm="rms_norm",
            text_embed_dim=32,
            time_embed_dim=4,
            activation_fn="swiglu",
            max_sequence_length=L,
        ),
        lambda: dict(
            hidden_states=rand(1, 12, T, H, W),
            timestep=t(),
            encoder_hidden_states=rand(1, L, 32),
            encoder_attention_mask=mask(dtype=torch.bool),
        ),
    ),
)

# ---- text in cross-attention, dispatcher ---------------------------------------------------------------------------
_LTX = dict(
    in_channels=8,
    out_channels=8,
    patch_size=1,
    patch_size_t=1,
    num_attention_heads=4,
    attention_head_dim=16,
    cross_attention_dim=64,
    num_layers=2,
    caption_channels=32,
    qk_norm="rms_norm_across_heads",
)
add(
    "ltx",
    Tiny(
        "LTXVideoTransformer3DModel",
        _LTX,
        lambda: dict(
            hidden_states=rand(1, 72, 8),
            timestep=t(),
            encoder_hidden_states=rand(1, L, 32),
            encoder_attention_mask=mask(),
            num_frames=3,
            height=4,
            width=6,
            rope_interpolation_scale=(8 / 25, 32, 32),
        ),
    ),
)
_LTX2 = dict(
    in_channels=8,
    out_channels=8,
    num_attention_heads=2,
    attention_head_dim=16,
    cross_attention_dim=32,
    audio_in_channels=8,
    audio_out_channels=8,
    audio_num_attention_heads=2,
    audio_attention_head_dim=8,
    audio_cross_attention_dim=16,
    num_layers=2,
    caption_channels=32,
    rope_double_precision=False,
)


def _ltx2_in() -> dict[str, Any]:
    return dict(
        hidden_states=rand(1, 72, 8),
        audio_hidden_states=rand(1, 9, 8),
        encoder_hidden_states=rand(1, L, 32),
        audio_encoder_hidden_states=rand(1, L, 32, seed=2),
        timestep=t(),
        encoder_attention_mask=mask(),
        audio_encoder_attention_mask=mask(),
        num_frames=3,
        height=4,
        width=6,
        audio_num_frames=9,
    )


add("ltx-2", Tiny("LTX2VideoTransformer3DModel", _LTX2, _ltx2_in))
add(
    "ltx-2.3",
    Tiny(
        "LTX2VideoTransformer3DModel",
        _LTX2
        | dict(
            gated_attn=True,
            audio_gated_attn=True,
            cross_attn_mod=True,
            audio_cross_attn_mod=True,
            rope_type="split",
            perturbed_attn=True,
            use_prompt_embeddings=False,
            caption_channels=32,
        ),
        lambda: (
            _ltx2_in()
            | dict(
                sigma=torch.tensor([0.5]),
                audio_sigma=torch.tensor([0.5]),
                audio_encoder_hidden_states=rand(1, L, 16, seed=2),
            )
        ),
    ),
)
_COSMOS = dict(
    in_channels=4,
    out_channels=4,
    num_attention_heads=2,
    attention_head_dim=32,
    num_layers=2,
    mlp_ratio=2.0,
    text_embed_dim=32,
    adaln_lora_dim=4,
    max_size=(4, 32, 32),
    patch_size=(1, 2, 2),
    rope_scale=(2.0, 1.0, 1.0),
    concat_padding_mask=True,
    extra_pos_embed_type="learnable",
)


def _cosmos_in(channels: int = 4) -> dict[str, Any]:
    return dict(
        hidden_states=rand(1, channels, T, H, W),
        timestep=t(),
        encoder_hidden_states=rand(1, L, 32),
        attention_mask=None,
        fps=16,
        padding_mask=torch.zeros(1, 1, H, W),
    )


add("cosmos-1", Tiny("CosmosTransformer3DModel", _COSMOS, _cosmos_in))
# Cosmos 2: no learnable positions, a condition mask as one more channel; timesteps (batch 1 frames 1 1).
add(
    "cosmos-2",
    Tiny(
        "CosmosTransformer3DModel",
        _COSMOS | dict(in_channels=5, extra_pos_embed_type=None, rope_scale=(1.0, 3.0, 3.0)),
        lambda: (
            _cosmos_in() | dict(condition_mask=torch.zeros(1, 1, T, H, W), timestep=torch.full((1, 1, T, 1, 1), 0.5))
        ),
    ),
)
add(
    "cosmos-2.5",
    Tiny(
        "CosmosTransformer3DModel",
        _COSMOS
        | dict(
            in_channels=5,
            extra_pos_embed_type=None,
            use_crossattn_projection=True,
            crossattn_proj_in_channels=32,
            encoder_hidden_states_channels=32,
            img_context_dim_in=24,
            img_context_num_tokens=4,
            img_context_dim_out=64,
        ),
        lambda: (
            _cosmos_in()
            | dict(
                condition_mask=torch.zeros(1, 1, T, H, W),
                timestep=torch.full((1, 1, T, 1, 1), 0.5),
                encoder_hidden_states=(rand(1, L, 32), rand(1, 4, 24)),
            )
        ),
        text_key=("encoder_hidden_states", 0),
    ),
)
_K5 = dict(
    in_visual_dim=4,
    in_text_dim=12,
    in_text_dim2=8,
    time_dim=16,
    out_visual_dim=4,
    patch_size=(1, 2, 2),
    model_dim=64,
    ff_dim=64,
    num_text_blocks=1,
    num_visual_blocks=2,
    axes_dims=(8, 12, 12),
    visual_cond=True,
)
add(
    "kandinsky-5",
    Tiny(
        "Kandinsky5Transformer3DModel",
        _K5,
        lambda: dict(
            hidden_states=rand(1, T, H, W, 9),
            timestep=t(),
            encoder_hidden_states=rand(1, L, 12),
            pooled_projections=rand(1, 8),
            visual_rope_pos=[torch.arange(n) for n in GRID],
            text_rope_pos=torch.arange(L),
        ),
    ),
)
add(
    "kandinsky-6",
    Tiny(
        "Kandinsky6Transformer3DModel",
        dict(
            in_visual_dim=4,
            out_visual_dim=4,
            in_text_dim=12,
            in_text_dim2=8,
            time_dim=16,
            model_dim=64,
            ff_dim=64,
            num_text_blocks=1,
            num_visual_blocks=2,
            axes_dims=(8, 12, 12),
            in_audio_dim=6,
            out_audio_dim=6,
            model_dim_a=64,
            time_dim_a=16,
            ff_dim_a=32,
            ca_rope=True,
            cross_gates=True,
            fix_modulation=True,
            text_token_padding=True,
        ),
        lambda: dict(
            hidden_states=rand(1, T, H, W, 9),
            timestep=t(),
            encoder_hidden_states=rand(1, L, 12),
            pooled_projections=rand(1, 8),
            audio_hidden_states=rand(1, 9, 6),
            encoder_attention_mask=mask(dtype=torch.bool),
        ),
    ),
)
add(
    "kandinsky-6-sr",
    Tiny(
        "Kandinsky6SRTransformer3DModel",
        dict(
            in_visual_dim=4,
            out_visual_dim=4,
            time_dim=16,
            model_dim=64,
            ff_dim=64,
            num_visual_blocks=2,
            axes_dims=(8, 12, 12),
            nabla_window=(1, 1, 1),
        ),
        lambda: dict(hidden_states=rand(1, T, 8, 16, 9), timestep=t()),
        grid=(3, 8, 16),
        text_key=None,
    ),
)

# ---- linear attention --------------------------------------------------------------------------------------------
add(
    "sana-video",
    Tiny(
        "SanaVideoTransformer3DModel",
        dict(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=16,
            mlp_ratio=2.5,
            sample_size=8,
            patch_size=(1, 2, 2),
            qk_norm="rms_norm_across_heads",
            rope_max_seq_len=32,
        ),
        lambda: dict(
            hidden_states=rand(1, 4, T, H, W),
            timestep=t(),
            encoder_hidden_states=rand(1, L, 16),
            encoder_attention_mask=mask(),
        ),
    ),
)
add(
    "sana-wm",
    Tiny(
        "SanaWMTransformer3DModel",
        # every second layer is softmax attention (published: every fourth); the rest a gated delta rule
        dict(
            in_channels=8,
            num_layers=2,
            hidden_size=48,
            num_attention_heads=2,
            patch_size=(1, 1, 1),
            softmax_every_n=2,
            linear_head_dim=24,
            chunk_plucker_channels=6,
            chunk_plucker_post_attn_blocks=2,
            caption_channels=16,
            mlp_ratio=2.0,
            image_size=256,
        ),
        lambda: dict(
            hidden_states=rand(1, 8, T, 4, 6),
            timestep=torch.full((1, 1, T), 500.0),
            encoder_hidden_states=rand(1, 1, L, 16),
            encoder_attention_mask=mask(),
            camera_conditions=torch.cat(
                [torch.eye(4).flatten().expand(1, T, 16), torch.tensor([5.0, 5.0, 3.0, 2.0]).expand(1, T, 4)], -1
            ),
            chunk_plucker=rand(1, 6, T, 4, 6),
        ),
    ),
)


def _refiner(model: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    with torch.no_grad():
        coords = model.rope.prepare_video_coords(1, 3, 4, 6, torch.device("cpu"), fps=24.0)
        return inputs | dict(video_rotary_emb=model.rope(coords, device=torch.device("cpu")))


add(
    "sana-wm-refiner",
    Tiny(
        "SanaWMLTX2RefinerTransformer3DModel",
        _LTX2,
        lambda: dict(
            hidden_states=rand(1, 72, 8),
            timestep=torch.full((1, 72), 0.5),
            encoder_hidden_states=rand(1, L, 32),
            encoder_attention_mask=mask(),
        ),
        prepare=_refiner,
    ),
)


# ---- one packed sequence -----------------------------------------------------------------------------------------
def _h3_in() -> dict[str, Any]:
    n = L + 72 + 9  # text, video, audio
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(6))
    position = torch.cat([torch.arange(L)[:, None].expand(L, 3), L + grid, L + torch.arange(9)[:, None].expand(9, 3)])
    tags = torch.cat([torch.ones(L), torch.zeros(72), torch.full((9,), 2.0)]).long()
    return dict(
        hidden_states=rand(1, 72, 16),
        audio_hidden_states=rand(1, 9, 6),
        encoder_hidden_states=rand(1, L, 32),
        timestep=torch.tensor([0.5]),
        timestep_indices=torch.zeros(n, dtype=torch.long),
        token_tags=tags,
        position_ids=position.float(),
        video_indices=torch.arange(L, L + 72),
        audio_indices=torch.arange(L + 72, n),
        text_indices=torch.arange(L),
    )


add(
    "minimax-h3",
    Tiny(
        "MiniMaxH3Transformer3DModel",
        dict(
            num_attention_heads=2,
            attention_head_dim=32,
            hidden_size=48,
            num_layers=2,
            num_refiner_layers=1,
            ffn_dim=64,
            in_channels=4,
            audio_in_channels=6,
            patch_size=(1, 2, 2),
            text_dim=32,
            freq_dim=32,
            time_embed_hidden_dim=32,
            time_embed_dim=16,
            rope_freq_dim=4,
        ),
        _h3_in,
    ),
)


def _cosmos3_in() -> dict[str, Any]:
    n = L + 72
    grid = torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(6)).T
    position = torch.cat([torch.arange(L).expand(3, L), 100 + grid], 1)
    video = torch.arange(L, n)
    return dict(
        input_ids=torch.arange(L),
        text_indexes=torch.arange(L),
        position_ids=position,
        und_len=L,
        sequence_length=n,
        vision_tokens=[rand(1, 4, T, H, W)],
        vision_token_shapes=[GRID],
        vision_sequence_indexes=video,
        vision_mse_loss_indexes=video,
        vision_timesteps=torch.full((72,), 500.0),
        vision_noisy_frame_indexes=[torch.arange(T)],
    )


add(
    "cosmos-3",
    Tiny(
        "Cosmos3OmniTransformer",
        dict(
            head_dim=32,
            hidden_size=64,
            intermediate_size=64,
            latent_channel=4,
            latent_patch_size=2,
            num_attention_heads=4,
            num_hidden_layers=2,
            num_key_value_heads=2,
            patch_latent_dim=16,
            vocab_size=64,
            rope_axes_dim=(8, 4, 4),
        ),
        _cosmos3_in,
        video_key=("vision_tokens", 0),
        text_key="input_ids",
    ),
)
add(
    "joyimage-edit",
    Tiny(
        "JoyImageEditTransformer3DModel",
        dict(
            patch_size=[1, 2, 2],
            in_channels=4,
            out_channels=4,
            hidden_size=64,
            num_attention_heads=2,
            text_dim=16,
            mlp_width_ratio=2.0,
            num_layers=2,
            rope_dim_list=[8, 12, 12],
        ),
        lambda: dict(hidden_states=rand(1, 4, T, H, W), timestep=t(), encoder_hidden_states=rand(1, L, 16)),
        kind="image",
    ),
)
add(
    "joyimage-edit-plus",
    Tiny(
        "JoyImageEditPlusTransformer3DModel",
        dict(
            patch_size=[1, 2, 2],
            in_channels=4,
            out_channels=4,
            hidden_size=64,
            num_attention_heads=2,
            text_dim=16,
            mlp_width_ratio=2.0,
            num_layers=2,
            rope_dim_list=[8, 12, 12],
        ),
        lambda: dict(
            hidden_states=rand(1, 72, 4, 1, 2, 2),
            timestep=t(),
            encoder_hidden_states=rand(1, L, 16),
            encoder_hidden_states_mask=mask().float(),
            shape_list=[[(1, 4, 6), (2, 4, 6)]],
        ),
        kind="image",
    ),
)

# ---- the main image models ------------------------------------------------------------------------------------------
IMG = 24  # 4 x 6 tokens


def _ids(n_axes: int, h: int = 4, w: int = 6) -> torch.Tensor:
    ids = torch.zeros(h, w, n_axes)
    ids[..., 1] = torch.arange(h)[:, None]
    ids[..., 2] = torch.arange(w)[None]
    return ids.view(h * w, n_axes)


add(
    "flux",
    Tiny(
        "FluxTransformer2DModel",
        dict(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            pooled_projection_dim=32,
            axes_dims_rope=[4, 4, 8],
        ),
        lambda: dict(
            hidden_states=rand(1, IMG, 4),
            encoder_hidden_states=rand(1, L, 32),
            pooled_projections=rand(1, 32),
            timestep=torch.tensor([0.5]),
            img_ids=_ids(3),
            txt_ids=torch.zeros(L, 3),
        ),
        kind="image",
        grid=(1, 4, 6),
    ),
)
add(
    "flux-2",
    Tiny(
        "Flux2Transformer2DModel",
        dict(
            patch_size=1,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            timestep_guidance_channels=256,
            axes_dims_rope=[4, 4, 4, 4],
        ),
        lambda: dict(
            hidden_states=rand(1, IMG, 4),
            encoder_hidden_states=rand(1, L, 32),
            timestep=torch.tensor([0.5]),
            guidance=torch.tensor([1.0]),
            img_ids=_ids(4),
            txt_ids=torch.zeros(L, 4),
        ),
        kind="image",
        grid=(1, 4, 6),
    ),
)
add(
    "flux-3",
    Tiny(
        "Flux3Transformer2DModel",
        dict(
            in_channels=4,
            cond_in_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            axes_dims_rope=(4, 4, 4, 4),
        ),
        lambda: dict(
            hidden_states=rand(1, IMG, 4),
            encoder_hidden_states=rand(1, L, 32),
            timestep=torch.tensor([0.5]),
            img_ids=_ids(4),
            txt_ids=torch.zeros(L, 4),
        ),
        kind="image",
        grid=(1, 4, 6),
    ),
)
add(
    "qwen-image",
    Tiny(
        "QwenImageTransformer2DModel",
        dict(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=3,
            joint_attention_dim=16,
            axes_dims_rope=(8, 4, 4),
        ),
        lambda: dict(
            hidden_states=rand(1, IMG, 16),
            encoder_hidden_states=rand(1, L, 16),
            encoder_hidden_states_mask=mask(),
            timestep=torch.tensor([0.5]),
            img_shapes=[[(1, 4, 6)]],
        ),
        kind="image",
        grid=(1, 4, 6),
    ),
)
add(
    "sd3",
    Tiny(
        "SD3Transformer2DModel",
        dict(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=64,
            out_channels=4,
        ),
        lambda: dict(
            hidden_states=rand(1, 4, H, W),
            encoder_hidden_states=rand(1, L, 32),
            pooled_projections=rand(1, 64),
            timestep=t(),
        ),
        kind="image",
        grid=(1, 4, 6),
    ),
)
add(
    "pixart",
    Tiny(
        "PixArtTransformer2DModel",
        dict(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=16,
            num_attention_heads=3,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=48,
            out_channels=8,
            attention_bias=True,
            activation_fn="gelu-approximate",
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            use_additional_conditions=False,
        ),
        lambda: dict(
            hidden_states=rand(1, 4, H, W),
            encoder_hidden_states=rand(1, L, 32),
            timestep=t(),
            encoder_attention_mask=mask().float(),
            added_cond_kwargs=dict(resolution=None, aspect_ratio=None),
        ),
        kind="image",
        grid=(1, 4, 6),
    ),
)
add(
    "sana",
    Tiny(
        "SanaTransformer2DModel",
        dict(
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=16,
            sample_size=8,
        ),
        lambda: dict(
            hidden_states=rand(1, 4, 4, 6),
            encoder_hidden_states=rand(1, L, 16),
            timestep=t(),
            encoder_attention_mask=mask(),
        ),
        kind="image",
        grid=(1, 4, 6),
    ),
)
add(
    "z-image",
    Tiny(
        "ZImageTransformer2DModel",
        dict(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=4,
            dim=64,
            n_layers=2,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            cap_feat_dim=16,
            axes_dims=[8, 12, 12],
            axes_lens=[256, 32, 32],
        ),
        lambda: dict(
            x=[rand(4, 1, H, W)], t=torch.tensor([0.5]), cap_feats=[rand(L, 16)], patch_size=2, f_patch_size=1
        ),
        kind="image",
        grid=(1, 4, 6),
        video_key=("x", 0),
        text_key=("cap_feats", 0),
    ),
)
add(
    "hunyuan-image",
    Tiny(
        "HunyuanImageTransformer2DModel",
        dict(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1),
            guidance_embeds=False,
            text_embed_dim=16,
            text_embed_2_dim=8,
            rope_axes_dim=(8, 8),
        ),
        lambda: dict(
            hidden_states=rand(1, 4, 4, 6),
            timestep=t(),
            encoder_hidden_states=rand(1, L, 16),
            encoder_attention_mask=mask(),
            encoder_hidden_states_2=rand(1, 6, 8),
            encoder_attention_mask_2=torch.tensor([[1, 1, 1, 1, 0, 0]]),
        ),
        kind="image",
        grid=(1, 4, 6),
    ),
)
add(
    "lumina-2",
    Tiny(
        "Lumina2Transformer2DModel",
        dict(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            hidden_size=24,
            num_layers=2,
            num_refiner_layers=1,
            num_attention_heads=3,
            num_kv_heads=1,
            multiple_of=2,
            ffn_dim_multiplier=None,
            norm_eps=1e-5,
            scaling_factor=1.0,
            axes_dim_rope=(4, 2, 2),
            axes_lens=(128, 128, 128),
            cap_feat_dim=8,
        ),
        lambda: dict(
            hidden_states=rand(1, 4, H, W),
            encoder_hidden_states=rand(1, L, 8),
            timestep=torch.tensor([0.5]),
            encoder_attention_mask=mask(dtype=torch.bool),
        ),
        kind="image",
        grid=(1, 4, 6),
    ),
)


for _name, _layout in dict.fromkeys(
    ("cogvideox-5b", "cogvideox-2b", "cogvideox-1.5", "consisid", "anyflow", "anyflow-far"), "btchw"
).items():
    TINY[_name].layout = _layout
for _name in ("kandinsky-5", "kandinsky-6", "kandinsky-6-sr"):
    TINY[_name].layout = "bthwc"
for _name in (
    "ltx",
    "ltx-2",
    "ltx-2.3",
    "sana-wm-refiner",
    "minimax-h3",
    "joyimage-edit-plus",
    "flux",
    "flux-2",
    "flux-3",
    "qwen-image",
):
    TINY[_name].layout = "packed"
for _name in ("sd3", "pixart", "sana", "hunyuan-image", "lumina-2"):
    TINY[_name].layout = "bchw"
for _name in ("wan-animate-2", "z-image"):
    TINY[_name].layout = "cthw"  # a list of samples

# Regular expressions of the video (or image) self-attention modules, in the order that they run.
SELF_ATTENTION = {
    "wan-vace": r"(vace_blocks|blocks)\.\d+\.attn1",
    "wan-animate-2": r"blocks\.\d+\.self_attn",
    "hunyuan-video": r"(transformer_blocks|single_transformer_blocks)\.\d+\.attn",
    "hunyuan-video-i2v": r"(transformer_blocks|single_transformer_blocks)\.\d+\.attn",
    "hunyuan-video-1.5": r"transformer_blocks\.\d+\.attn",
    "hunyuan-video-framepack": r"(transformer_blocks|single_transformer_blocks)\.\d+\.attn",
    "motif-video": r"(transformer_blocks|single_transformer_blocks)\.\d+\.attn",
    **dict.fromkeys(
        (
            "cogvideox-5b",
            "cogvideox-2b",
            "cogvideox-1.5",
            "consisid",
            "easyanimate",
            "allegro",
            "mochi",
            "ltx",
            "ltx-2",
            "ltx-2.3",
            "cosmos-1",
            "cosmos-2",
            "cosmos-2.5",
            "sana-wm-refiner",
            "pixart",
        ),
        r"transformer_blocks\.\d+\.attn1",
    ),
    "latte": r"transformer_blocks\.\d+\.attn1",  # spatial; temporal_transformer_blocks.N.attn1 sees 16 sequences of 3
    "kandinsky-5": r"visual_transformer_blocks\.\d+\.self_attention",
    "kandinsky-6": r"visual_transformer_blocks\.\d+\.video_dec_block\.self_attention",
    "kandinsky-6-sr": r"visual_transformer_blocks\.\d+\.self_attention",
    "sana-video": r"transformer_blocks\.\d+\.attn1",  # linear attention: no SDPA call
    "sana-wm": r"blocks\.\d+\.attn\.attn",
    "minimax-h3": r"transformer_blocks\.\d+\.attn",
    "cosmos-3": r"layers\.\d+\.self_attn",
    "joyimage-edit": r"double_blocks\.\d+\.attn",
    "joyimage-edit-plus": r"double_blocks\.\d+\.attn",
    **dict.fromkeys(("flux", "flux-2", "hunyuan-image"), r"(transformer_blocks|single_transformer_blocks)\.\d+\.attn"),
    "flux-3": r"single_transformer_blocks\.\d+\.attn",
    **dict.fromkeys(("qwen-image", "sd3"), r"transformer_blocks\.\d+\.attn"),
    "sana": r"transformer_blocks\.\d+\.attn1",
    "z-image": r"layers\.\d+\.attention",
    "lumina-2": r"layers\.\d+\.attn",
}


def self_attention(name: str, model: Any) -> dict[str, Any]:
    """The video self-attention modules by name."""
    import re

    pattern = re.compile(SELF_ATTENTION.get(name, r"blocks\.\d+\.attn1"))
    return {n: m for n, m in model.named_modules() if pattern.fullmatch(n)}


def prepared(name: str, model: Any) -> dict[str, Any]:
    """The inputs of one forward, with what has to be made by the model itself (caches, rotary tables)."""
    tiny = TINY[name]
    inputs = tiny.inputs()
    return tiny.prepare(model, inputs) if tiny.prepare else inputs
