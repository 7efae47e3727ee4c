"""Whole tiny pipelines of other families, text encoders and autoencoders too, as the command line loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.accel.models.tiny_models import TINY

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]


def tokenizer(length: int) -> Any:
    """Return a tokenizer of single letters."""
    letters = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = dict(pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=letters, model_max_length=length, **special)


def hunyuan_video(folder: Path) -> None:
    """Save a HunyuanVideoPipeline."""
    torch.manual_seed(0)
    sizes = TINY["hunyuan-video"].kwargs
    small = dict(vocab_size=32, intermediate_size=32, num_attention_heads=2)
    llama = transformers.LlamaConfig(**small, hidden_size=sizes["text_embed_dim"], num_hidden_layers=3)
    clip = transformers.CLIPTextConfig(
        **small, hidden_size=sizes["pooled_projection_dim"], num_hidden_layers=1, bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=sizes["in_channels"], block_out_channels=(2, 2, 4, 4), norm_num_groups=2, layers_per_block=1
    )
    diffusers.HunyuanVideoPipeline(
        transformers.LlamaModel(llama), tokenizer(512), TINY["hunyuan-video"].build(), vae,
        diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0), transformers.CLIPTextModel(clip), tokenizer(77),
    ).save_pretrained(folder)  # fmt: skip


def minimax_h3(folder: Path) -> None:
    """Save a MiniMaxH3ModularPipeline; its processor, which wants torchvision for pictures, is its tokenizer."""
    from diffusers.modular_pipelines import MiniMaxH3ModularPipeline
    from diffusers.modular_pipelines.minimax_h3 import MiniMaxH3Blocks

    torch.manual_seed(0)
    sizes, letters = TINY["minimax-h3"].kwargs, tokenizer(64)
    text = dict(
        vocab_size=64, hidden_size=sizes["text_dim"], intermediate_size=32, num_hidden_layers=51,
        num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        rope_scaling={"rope_type": "default", "mrope_section": [2, 3, 3]},
    )  # fmt: skip
    vision = dict(
        depth=1, hidden_size=16, intermediate_size=16, num_heads=2, patch_size=4, deepstack_visual_indexes=[0],
        out_hidden_size=sizes["text_dim"],
    )  # fmt: skip
    qwen = transformers.Qwen3VLConfig(text_config=text, vision_config=vision)
    channels, sounds = sizes["in_channels"], sizes["audio_in_channels"]
    vae = diffusers.AutoencoderKLMiniMaxH3(
        latent_channels=channels, block_out_channels=(8,) * 6, layers_per_block=1, norm_num_groups=4,
        decoder_num_layers=1, decoder_num_attention_heads=2, decoder_attention_head_dim=16,
        latents_mean=(0.0,) * channels, latents_std=(1.0,) * channels,
    )  # fmt: skip
    audio = diffusers.AutoencoderKLMiniMaxH3Audio(
        encoder_dim=2, latent_dim=4 * sounds, latent_channels=sounds, num_attention_heads=2, decoder_dim=128,
        resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1,),), latents_mean=[0.0] * sounds,
        latents_std=[1.0] * sounds,
    )  # fmt: skip
    pipeline = MiniMaxH3ModularPipeline(blocks=MiniMaxH3Blocks())
    pipeline.update_components(
        text_encoder=transformers.Qwen3VLForConditionalGeneration(qwen), tokenizer=letters, processor=letters,
        vae=vae, audio_vae=audio, scheduler=diffusers.MiniMaxH3Scheduler(12.0),
        audio_scheduler=diffusers.MiniMaxH3Scheduler(3.0), transformer=TINY["minimax-h3"].build(),
    )  # fmt: skip
    pipeline.save_pretrained(str(folder), overwrite_modular_index=True)


def ltx_2(folder: Path) -> None:
    """Save an LTX2Pipeline, with its audio."""
    torch.manual_seed(0)
    text = transformers.Gemma3TextConfig(
        vocab_size=32, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16,
    )  # fmt: skip
    vision = transformers.SiglipVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    gemma = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    vae = diffusers.AutoencoderKLLTX2Video(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1,) * 5, decoder_layers_per_block=(1,) * 4, spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )  # fmt: skip
    audio = diffusers.AutoencoderKLLTX2Audio(
        base_channels=8, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=16
    )
    sizes = {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 1, "num_learnable_registers": None}
    streams: dict[str, Any] = {
        f"{kind}_connector_{name}": size for kind in ("video", "audio") for name, size in sizes.items()
    }
    connectors = LTX2TextConnectors(
        caption_channels=32, text_proj_in_factor=3, rope_double_precision=False, **streams
    )  # fmt: skip
    vocoder = LTX2Vocoder(32, 32, 2, [4, 4], [2, 2], [3], [[1, 3, 5]], output_sampling_rate=16000)
    diffusers.LTX2Pipeline(
        diffusers.FlowMatchEulerDiscreteScheduler(), vae, audio, transformers.Gemma3ForConditionalGeneration(gemma),
        tokenizer(16), connectors, TINY["ltx-2"].build(), vocoder,
    ).save_pretrained(folder)  # fmt: skip
