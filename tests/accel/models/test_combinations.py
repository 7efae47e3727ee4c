"""A method beside all that people combine a pipeline with, attached before it and after it."""

from __future__ import annotations

import copy
import functools
import pickle
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

import accel
from tests.accel.models.combinations import COMBINATIONS
from tests.accel.wan_models import generate, pipeline, stock_of

SPARSE = dict(density=0.3, block=16)
# Scales that are found anew for each input multiply a difference of rounding.
LOOSE = {"torchao int8": 1e-2}
# Of the libraries themselves: what they will rename, and that a model has a second adapter.
QUIET = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:Already found a .peft_config"
)


@functools.cache
def stock_with(name: str) -> Tensor:
    """Return what a pipeline with a combination makes without us."""
    pipe = pipeline("wan-2.1")
    with tempfile.TemporaryDirectory() as folder:
        COMBINATIONS[name](pipe, Path(folder))
        return generate(pipe)


@QUIET
@pytest.mark.parametrize("attached_first", [True, False], ids=["attached first", "attached last"])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_full_attention_equals_the_same_pipeline_without_us(name: str, attached_first: bool, tmp_path: Path) -> None:
    pipe, stock = pipeline("wan-2.1"), stock_with(name)
    if not attached_first:
        COMBINATIONS[name](pipe, tmp_path / "ours")
    with accel.enabled(pipe, "full", block=16) as handle:
        if attached_first:
            COMBINATIONS[name](pipe, tmp_path / "ours")
        ours = generate(pipe)
        assert (ours - stock).abs().max() < LOOSE.get(name, 2e-5) * stock.abs().max()
        assert {record.kind for record in handle.stats()} == {"sparse"}
        assert torch.equal(generate(pipe), ours) and handle.memory_bytes() == 0
    assert torch.equal(generate(pipe), stock)


@QUIET
@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_sparse_generation_repeats_in_both_orders(name: str, tmp_path: Path) -> None:
    before, after = pipeline("wan-2.1"), pipeline("wan-2.1")
    COMBINATIONS[name](before, tmp_path / "before")
    with accel.enabled(before, "adaspa", **SPARSE) as handle:
        first = generate(before)
        kinds = [record.kind for record in handle.stats()]
    with accel.enabled(after, "adaspa", **SPARSE) as handle:
        COMBINATIONS[name](after, tmp_path / "after")
        assert torch.equal(generate(after), first) and torch.equal(generate(after), first)
        assert [record.kind for record in handle.stats()] == kinds and "sparse" in kinds


@QUIET
def test_adapters_change_while_attached() -> None:
    peft = pytest.importorskip("peft")
    stock_pipe, pipe = pipeline("wan-2.1"), pipeline("wan-2.1")
    plain = generate(pipe)
    with accel.enabled(pipe, "full", block=16):
        for each in (stock_pipe, pipe):
            torch.manual_seed(0)
            config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
            each.transformer.add_adapter(config, "one")
        for change in ("set_adapters", "fuse_lora", "unfuse_lora", "delete_adapters"):
            for each in (stock_pipe, pipe):
                arguments = (["one"],) if change in ("set_adapters", "delete_adapters") else ()
                getattr(each.transformer, change)(*arguments)
            stock, ours = generate(stock_pipe), generate(pipe)
            assert (ours - stock).abs().max() < 2e-5 * stock.abs().max(), change
            assert torch.allclose(stock, plain, atol=1e-4) == (change == "delete_adapters")


@QUIET
def test_projections_are_taken_apart_again_while_attached() -> None:
    pipe, stock = pipeline("wan-2.1"), stock_of("wan-2.1")
    with accel.enabled(pipe, "full", block=16) as handle:
        pipe.transformer.fuse_qkv_projections()
        generate(pipe)
        pipe.transformer.unfuse_qkv_projections()
        assert (generate(pipe) - stock).abs().max() < 2e-5 * stock.abs().max()
        assert {record.kind for record in handle.stats()} == {"sparse"}
    assert torch.equal(generate(pipe), stock)


def _by_pickle(transformer: Any, folder: Path) -> Any:
    return pickle.loads(pickle.dumps(transformer))


def _by_torch(transformer: Any, folder: Path) -> Any:
    torch.save(transformer, folder / "transformer.pt")
    return torch.load(folder / "transformer.pt", weights_only=False)


def _by_folder(transformer: Any, folder: Path) -> Any:
    """Return what is read from a file, moved to memory of torch: MKL rounds otherwise where a file is unaligned."""
    transformer.save_pretrained(folder)
    loaded = WanTransformer3DModel.from_pretrained(folder).eval()
    loaded.load_state_dict({name: weight.clone() for name, weight in loaded.state_dict().items()}, assign=True)
    return loaded


@pytest.mark.parametrize("make", [copy.deepcopy, _by_pickle, _by_torch, _by_folder])
def test_copies_of_an_attached_transformer(make: Any, tmp_path: Path) -> None:
    """A copy has its own session: disabling the one leaves the other as it is, and what it computes is the same."""
    pipe, other, stock = pipeline("wan-2.1"), pipeline("wan-2.1"), stock_of("wan-2.1")
    handle = accel.enable(pipe, "adaspa", **SPARSE)
    sparse = generate(pipe)
    other.transformer = make(pipe.transformer) if make is copy.deepcopy else make(pipe.transformer, tmp_path)
    handle.disable()
    assert torch.equal(generate(pipe), stock)
    if make is not _by_folder:  # which holds weights alone
        assert torch.equal(generate(other), sparse)
    accel.enable(other, "adaspa", **SPARSE)
    assert torch.equal(generate(other), sparse)
    accel.disable(other)
    assert torch.equal(generate(other), stock)


@pytest.mark.parametrize("make", [copy.deepcopy, pickle.dumps])
def test_copies_of_an_attached_pipeline(make: Any) -> None:
    pipe, stock = pipeline("wan-2.1"), stock_of("wan-2.1")
    accel.enable(pipe, "adaspa", **SPARSE)
    sparse = generate(pipe)
    other = make(pipe) if make is copy.deepcopy else pickle.loads(make(pipe))
    accel.disable(pipe)
    assert torch.equal(generate(other), sparse)
    accel.disable(other)
    assert torch.equal(generate(other), stock) and torch.equal(generate(pipe), stock)


@pytest.mark.parametrize("make", [copy.deepcopy, pickle.dumps])
def test_a_cache_is_not_copied(make: Any) -> None:
    """Diffusers' hooks on a copy would run the transformer that they were made for."""
    pipe = pipeline("wan-2.1")
    with accel.enabled(pipe, "adaspa", "easy", **SPARSE):
        with pytest.raises(TypeError, match="can be neither copied nor pickled; call accel.disable first"):
            make(pipe.transformer)
