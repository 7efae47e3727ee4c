"""What stands between a processor and torch's attention: layers that are skipped, other backends, own processors."""

from __future__ import annotations

from typing import Any

import pytest
from diffusers.hooks import HookRegistry, LayerSkipConfig, apply_layer_skip
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor
from torch.nn import functional

import accel
from tests.accel.models.loops import STEPS, Loop, difference

FULL = dict(block=16)
SPARSE = dict(density=0.4, dense_steps=0.25, query_clusters=4, key_clusters=8)


def perturbed(loop: Loop) -> tuple[list[Tensor], list[Tensor]]:
    """Return what the first block gives where its attention is skipped, and what the transformer says then."""
    skip = LayerSkipConfig(
        [0], fqn="transformer_blocks", skip_attention=False, skip_attention_scores=True, skip_ff=False
    )
    apply_layer_skip(loop.transformer, skip)
    seen: list[Tensor] = []
    block = loop.transformer.transformer_blocks[0]
    listening = block.register_forward_hook(lambda module, args, output: seen.extend(output))
    said = loop()
    listening.remove()
    HookRegistry.check_if_exists_or_initialize(loop.transformer).remove_hook("layer_skip_hook")
    return seen, said


@pytest.mark.parametrize(("method", "options"), [("full", FULL), ("svg-ear", SPARSE)])
def test_perturbed_attention_is_the_pipelines_own(method: str, options: dict[str, Any]) -> None:
    """Diffusers answers torch's attention with the values there, and cannot answer our kernel."""
    loop = Loop("qwen-image")
    plain = loop()
    stock_block, stock = perturbed(loop)
    assert difference(stock, plain) > 1e-3
    with accel.enabled(loop, method, **options) as handle:
        block, ours = perturbed(loop)
        assert {record.layer for record in handle.stats()} == {1}
        loop()
        assert {record.layer for record in handle.stats()} == {0, 1}
    assert difference(block, stock_block) == 0
    assert difference(ours, stock) < (2e-6 if method == "full" else 0.5)


def by_hand(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any) -> Tensor:
    """Return attention as somebody's own backend computes it."""
    return (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1) @ value


def test_attention_that_is_not_torchs_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "scaled_dot_product_attention", by_hand)
    loop = Loop("cogvideox-2b")
    stock = loop()
    with accel.enabled(loop, "full", **FULL) as handle:
        with pytest.warns(UserWarning, match="accel runs dense attention: no attention came through torch's") as said:
            assert difference(loop(), stock) == 0
        assert len(said) == 1 and not handle.stats()
        assert f"{2 * STEPS} attention calls ran dense: no attention came through torch's" in handle.summary()


class OwnProcessor(WanAttnProcessor):
    """Somebody's own: it calls torch's attention, not diffusers' dispatcher."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attend without a rotary embedding."""
        normed = attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(attn.to_k(hidden_states))
        q, k, v = (x.unflatten(2, (attn.heads, -1)).transpose(1, 2) for x in (*normed, attn.to_v(hidden_states)))
        out = functional.scaled_dot_product_attention(q, k, v)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


def own_wan() -> Loop:
    """Return a tiny Wan whose self-attention has processors of somebody's own."""
    loop = Loop("wan-2.1")
    for block in loop.transformer.blocks:
        block.attn1.set_processor(OwnProcessor())
    return loop


def test_processors_that_are_not_of_diffusers_are_caught() -> None:
    loop = own_wan()
    stock = loop()
    assert difference(stock, Loop("wan-2.1")()) > 1e-3
    with accel.enabled(loop, "full", **FULL) as handle:
        assert difference(loop(), stock) < 2e-6
        assert [record.kind for record in handle.stats()] == ["sparse"] * 2 * STEPS
    with accel.enabled(loop, "svg-ear", **SPARSE):
        assert 1e-4 < difference(loop(), stock) < 0.5
    assert difference(loop(), stock) == 0


def test_own_processors_stay_dense_where_devices_share_a_sequence() -> None:
    """What they do with it nobody knows."""
    loop = own_wan()
    stock = loop()
    with accel.enabled(loop, "full", **FULL) as handle:
        for block in loop.transformer.blocks:
            block.attn1.processor._parallel_config = object()
        with pytest.warns(UserWarning, match="accel cannot follow context parallelism through OwnProcessor"):
            assert difference(loop(), stock) == 0
        assert not handle.stats()
