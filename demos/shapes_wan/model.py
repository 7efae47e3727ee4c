"""The parts of shapes-wan and the WanPipeline folder they are saved as."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from demos.shapes_wan.scenes import BACKGROUNDS, COLORS, MOTIONS, SHAPES, SIZES

TEXT_DIM = 128
KEPT = "routers", "tables"  # what a model's folder holds beside the pipeline
# (frames, height, width) of the videos; latents are 4x shorter and 8x smaller. The full length has 33 x 16 x 16 = 8,448
# tokens: long enough that attention is most of the work, and long in time, so that a few frames of it teach shapes and
# places. Thin and slim videos are as long in smaller frames: they teach cheaply where in time a token is.
GEOMETRIES = {"coarse": (13, 64, 64), "thin": (129, 64, 64), "slim": (129, 96, 96), "full": (129, 128, 128)}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with one token for each word that a caption can hold."""
    words = {"a", "and", "on", "background", *SHAPES, *COLORS, *BACKGROUNDS, *SIZES}
    words |= {word for motion in MOTIONS for word in motion.split()}
    vocabulary = {token: index for index, token in enumerate(["<pad>", "</s>", "<unk>", *sorted(words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation(behavior="removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    )


def build_text_encoder(vocabulary: int) -> UMT5EncoderModel:
    """Return an untrained two-layer UMT5 encoder whose heads start out looking at neighbours.

    From the usual start, near-uniform attention, it takes thousands of steps until a colour knows its shape.
    """
    encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=TEXT_DIM,
            d_kv=32,
            d_ff=256,
            num_layers=2,
            num_heads=4,
            relative_attention_num_buckets=16,
            dropout_rate=0.0,
        )
    )
    with torch.no_grad():
        for block in encoder.encoder.block:
            attention = block.layer[0].SelfAttention
            attention.relative_attention_bias.weight.normal_(0, 3)
            attention.q.weight.mul_(0.2)
    return encoder


def build_transformer(z_dim: int) -> WanTransformer3DModel:
    """Return the untrained transformer: patch 1, so that attention is most of its work as in large models."""
    return WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=z_dim,
        out_channels=z_dim,
        text_dim=TEXT_DIM,
        freq_dim=256,
        ffn_dim=1536,
        num_layers=5,
        cross_attn_norm=True,
        rope_max_seq_len=128,
    )


def embed_captions(
    tokenizer: PreTrainedTokenizerFast, text_encoder: UMT5EncoderModel, captions: list[str], length: int
) -> torch.Tensor:
    """Return embeddings (batch length dim), zero after each caption's end as WanPipeline makes them."""
    tokens = tokenizer(captions, padding="max_length", max_length=length, truncation=True, return_tensors="pt").to(
        text_encoder.device
    )
    states = text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return states * tokens.attention_mask[..., None]


def recover(folder: Path) -> None:
    """Put a model back that a run has set aside which was killed before it had put another one there."""
    old = _set_aside(folder)
    if old.exists() and not folder.exists():
        old.rename(folder)


def _set_aside(folder: Path) -> Path:
    folder = folder.absolute()
    return folder.with_name(folder.name + ".old")


def save_pipeline(
    folder: Path,
    transformer: WanTransformer3DModel,
    vae: AutoencoderKLWan,
    text_encoder: UMT5EncoderModel,
    shift: float = 3.0,
) -> None:
    """Write a folder that `WanPipeline.from_pretrained` loads, weights in float16, replacing what was there.

    Tables of steps and routers stay, and it says so.
    """
    pipeline = WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=text_encoder,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=shift),
        transformer=transformer,
    ).to(torch.float16)
    folder = folder.absolute()  # "." has no name
    temporary, old = folder.with_name(folder.name + ".tmp"), _set_aside(folder)
    recover(folder)
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    pipeline.save_pretrained(temporary)
    for name in KEPT:
        if (folder / name).exists():
            shutil.copytree(folder / name, temporary / name)
            print(f"{folder / name} stays: it was made for the weights before, so measure it again")
    if folder.exists():
        folder.rename(old)
    temporary.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
