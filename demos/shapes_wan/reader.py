"""An auxiliary task for the text encoder: tell from each word's embedding what its phrase says."""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerFast, UMT5EncoderModel

from demos.shapes_wan.model import TEXT_DIM, embed_captions
from demos.shapes_wan.scenes import BACKGROUNDS, COLORS, MOTIONS, SHAPES, SIZES, Scene, unseen_scenes

LENGTH = 24
IGNORED = -100


class Reader(nn.Module):
    """Classifies each word by its actor's place, shape, colour, size and motion, and by the scene's background.

    An untrained encoder knows words but not which of them belong together, and the denoising loss alone teaches
    that slowly.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        super().__init__()
        self.tokenizer = tokenizer
        self.choices = [(0, 1), tuple(SHAPES), tuple(COLORS), tuple(SIZES), tuple(MOTIONS), tuple(BACKGROUNDS)]
        self.heads = nn.ModuleList(nn.Linear(TEXT_DIM, len(choice)) for choice in self.choices)

    def loss(self, text_encoder: UMT5EncoderModel, generator: random.Random, batch: int = 32) -> Tensor:
        """Return the mean cross entropy over the six questions, on freshly drawn captions, none of them held out."""
        unseen = unseen_scenes()
        scenes = [unseen(generator) for _ in range(batch)]
        states = embed_captions(self.tokenizer, text_encoder, [scene.caption for scene in scenes], LENGTH)
        answers = torch.tensor([self.answers(scene) for scene in scenes], device=states.device)
        losses = [
            cross_entropy(head(states).flatten(0, 1), answers[..., question].flatten(), ignore_index=IGNORED)
            for question, head in enumerate(self.heads)
        ]
        return torch.stack(losses).mean()

    def answers(self, scene: Scene) -> list[list[int]]:
        """Return, for each of LENGTH tokens, the right choice of each question; IGNORED where there is none."""
        background = self.choices[-1].index(scene.background)
        nothing = [IGNORED] * len(self.choices)
        rows: list[list[int]] = []
        for place, actor in enumerate(scene.actors):
            facts = (place, actor.shape, actor.color, actor.size, actor.motion)
            answer = [choice.index(fact) for choice, fact in zip(self.choices, facts, strict=False)]
            words = actor.phrase(f"{actor.size} {actor.color}" in scene.caption).split()
            rows += [[*answer, background]] * len(words)
            rows += [[*nothing[:-1], background]] * (place + 1 < len(scene.actors))  # "and"
        words = self.tokenizer(scene.caption)["input_ids"]
        rows += [[*nothing[:-1], background]] * (len(words) - len(rows))
        return rows + [nothing] * (LENGTH - len(rows))
