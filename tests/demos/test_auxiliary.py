"""What shapes-wan learns with: some frames at their true times, and the two auxiliary tasks."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest
import torch

from demos.shapes_wan.model import TEXT_DIM, build_text_encoder, build_tokenizer
from demos.shapes_wan.pools import Batch
from demos.shapes_wan.reader import IGNORED, LENGTH, Reader
from demos.shapes_wan.scenes import Actor, Scene, caption_of, held_out_scenes, sample_scene
from demos.shapes_wan.subset import at_frames, choose_frames, kept_grid
from demos.shapes_wan.trainer import Generator, Locator, Recipe, Trainer


def test_chosen_frames_hold_both_ends_and_a_run() -> None:
    generator = random.Random(0)
    for length, count in ((33, 6), (8, 3), (8, 8), (2, 2)):
        for _ in range(50):
            frames = choose_frames(length, count, generator).tolist()
            assert len(frames) == count == len(set(frames)) and frames == sorted(frames)
            assert frames[0] == 0 and frames[-1] == length - 1
            run = (count - 1) // 2
            assert any(frames[i : i + run] == list(range(frames[i], frames[i] + run)) for i in range(count))
    with pytest.raises(ValueError, match="between 2 and 8 of 8 frames"):
        choose_frames(8, 1, generator)


def test_frames_are_seen_at_their_places() -> None:
    rope = Generator(12).transformer.rope
    latents, frames = torch.zeros(1, 12, 5, 2, 4), torch.tensor([0, 3])
    whole = rope(latents)
    with at_frames(rope, 5, frames):
        part = rope(latents[:, :, frames])
    for table, kept in zip(whole, part, strict=True):
        assert torch.equal(table.unflatten(1, (5, 8))[:, frames].flatten(1, 2), kept)
    assert torch.equal(rope(latents)[0], whole[0]), "nothing stays behind"


def test_locator_reads_from_the_middle_block() -> None:
    torch.manual_seed(0)
    model = Generator(12)
    locator = Locator(model.transformer)
    latents, frames = torch.randn(2, 12, 2, 2, 2), torch.tensor([0, 4])
    with at_frames(model.transformer.rope, 5, frames):
        model(latents, torch.tensor([0.5, 1.0]), ["a red circle", ""], 24)
    with torch.no_grad():
        locator.read.weight.zero_()
        locator.read.bias.zero_()
    # All places are at -1 or 1, so that zeros are wrong by one everywhere.
    assert locator.loss(kept_grid(frames, 5, latents)).mean().item() == pytest.approx(1)


def test_answers_belong_to_their_phrase() -> None:
    first = Actor("circle", "red", "large", "moves left")
    second = Actor("square", "blue", "small", "stays still")
    scene = Scene((first, second), "white", caption_of((first, second), "white", True, True))
    tokenizer = build_tokenizer()
    reader = Reader(tokenizer)
    answers = reader.answers(scene)
    words = tokenizer.convert_ids_to_tokens(tokenizer(scene.caption)["input_ids"])
    assert len(answers) == LENGTH
    for place, (shape, actor) in enumerate((("circle", first), ("square", second))):
        row = answers[words.index(shape)]
        facts = [choice[index] for choice, index in zip(reader.choices, row, strict=True)]
        assert facts == [place, actor.shape, actor.color, actor.size, actor.motion, "white"]
    assert answers[words.index("and")][:-1] == [IGNORED] * 5 and answers[len(words)] == [IGNORED] * 6


def test_captions_of_the_evaluation_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def embed(tokenizer: Any, encoder: Any, captions: list[str], length: int) -> torch.Tensor:
        seen.extend(captions)
        return torch.zeros(len(captions), length, TEXT_DIM)

    monkeypatch.setattr("demos.shapes_wan.reader.embed_captions", embed)
    Reader(build_tokenizer()).loss(cast(Any, None), random.Random(0), batch=3000)
    held_out = {scene.caption for scene in held_out_scenes()}
    generator = random.Random(0)
    assert {sample_scene(generator).caption for _ in range(3000)} & held_out, "else this would say nothing"
    assert len(seen) == 3000 and not held_out & set(seen)


@pytest.mark.slow
def test_text_encoder_learns_to_read_in_a_hundred_steps() -> None:
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    encoder, reader, generator = build_text_encoder(len(tokenizer)), Reader(tokenizer), random.Random(0)
    optimizer = torch.optim.Adam([*encoder.parameters(), *reader.parameters()], 3e-3)
    for _ in range(100):
        loss = reader.loss(encoder, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert reader.loss(encoder, generator, 64).item() < 0.1


def test_the_average_keeps_no_graph_of_the_steps() -> None:
    torch.manual_seed(0)
    trainer = Trainer(12, Recipe())
    before = trainer.average.transformer.patch_embedding.weight.clone()
    batch = Batch(torch.randn(1, 12, 2, 4, 4), ["a red circle"], torch.arange(2), 2, torch.ones(1, 1, 2, 4, 4))
    trainer.step(batch, 2, 1.0)
    averaged = list(trainer.average.parameters())
    assert not any(weight.requires_grad for weight in averaged) and all(weight.is_leaf for weight in averaged)
    assert not torch.equal(trainer.average.transformer.patch_embedding.weight, before)
