"""The offline pattern search, on a real pipeline."""

from __future__ import annotations

import pytest

import accel
from accel.attention.masks.head_modes import MODES
from accel.methods.sparse_vdit import SparseVDiT
from accel.search import search_patterns
from tests.accel.wan_models import STEPS, embeddings, generate, pipeline


def test_searched_table_is_used() -> None:
    pipe = pipeline("wan-2.1")
    method = SparseVDiT(density=0.3, dense_steps=0.2, block=16, tolerance=9.0)
    table = search_patterns(
        pipe, method, "tiny",
        prompt_embeds=embeddings(1), negative_prompt_embeds=embeddings(2), guidance_scale=1.0,
        height=64, width=64, num_frames=17, num_inference_steps=STEPS,
    )  # fmt: skip
    assert len(table.steps_modes) == STEPS and table.grid == (5, 4, 4)
    assert {mode for layers in table.steps_modes for heads in layers for mode in heads} <= set(MODES[1:])
    with accel.enabled(pipe, SparseVDiT(density=0.3, dense_steps=0.2, block=16, table=table)) as handle:
        generate(pipe)
        kinds = [record.kind for record in handle.stats()]
    assert kinds.count("dense") == 1 * 2 * 2 and kinds.count("sparse") == (STEPS - 1) * 2 * 2


def test_search_says_when_it_saw_nothing() -> None:
    pipe = pipeline("wan-2.1")
    with pytest.warns(UserWarning, match="dense"), pytest.raises(ValueError, match="saw no attention call"):
        pipe.scheduler.timesteps = pipe.scheduler.timesteps[:0]
        search_patterns(lambda_pipe(pipe), SparseVDiT(), "tiny")


def lambda_pipe(pipe):  # a pipeline whose transformer is called without any step information
    import torch

    class Bare:
        transformer = pipe.transformer

        def __call__(self, **arguments) -> None:
            with torch.no_grad():
                self.transformer(torch.randn(1, 16, 3, 8, 8), torch.tensor([1.0]), embeddings(0), return_dict=False)

    return Bare()
