"""What a transformer carries while something is attached, and the handle to it that the user gets."""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch import nn

from accel.attention.call import Geometry
from accel.caching.hook import install_cache, installed_cache, remove_cache
from accel.caching.resting import Resting
from accel.models.adapters import adapter_for
from accel.models.placement import set_processor, unwrap_processors, watch
from accel.models.processor import wrap_processor
from accel.models.progress import ProgressHook, install_hook, installed_hook, remove_hook
from accel.models.records import BlockRecord, CallRecord, block_shares, summarize
from accel.models.session import Session
from accel.models.wrapped_processor import SparseAttentionProcessor


@dataclass(frozen=True)
class Attachment:
    """What one transformer carries: the hook that knows the step, and the cache. It does not keep it alive."""

    reference: weakref.ref[Any]
    name: str
    hook: ProgressHook
    resting: Resting | None

    @classmethod
    def to(cls, transformer: Any, hook: ProgressHook, resting: Resting | None) -> Attachment:
        """Return that of this transformer."""
        return cls(weakref.ref(transformer), type(transformer).__name__, hook, resting)


class Handle:
    """What `enable` returns: what happened, and the way back."""

    def __init__(self, attachments: list[Attachment]):
        self._attachments = attachments

    @property
    def _generations(self) -> list[Any]:
        return [each.hook.session.denoising.latest for each in self._attachments]

    def stats(self) -> list[CallRecord]:
        """Return one record for each self-attention call of the latest generation that a method planned.

        What had to run dense, as a warning said, has none; `summary` counts it.
        """
        records = [record for generation in self._generations for record in generation.records.read()]
        return sorted(records, key=lambda record: record.step)

    def blocks(self) -> list[BlockRecord]:
        """Return what became of each stretch of blocks in the latest generation; nothing without a cache."""
        records = [record for generation in self._generations for record in generation.blocks]
        return sorted(records, key=lambda record: record.step)

    @property
    def chosen(self) -> str | None:
        """What a preset chose for the latest generation, or why it was dense; None with any other method."""
        return next((each.choice.line for each in self._generations if each.choice is not None), None)

    @property
    def geometry(self) -> Geometry | None:
        """The token grid of the latest call."""
        return next((each.geometry for each in self._generations if each.geometry is not None), None)

    def memory_bytes(self) -> int:
        """Return how much method and cache remember at this moment, in bytes; nothing between generations."""
        return sum(generation.memory_bytes() for generation in self._generations)

    def peak_memory_bytes(self) -> int:
        """Return the most that method and cache remembered between two steps of the latest generation, in bytes."""
        return sum(generation.peak_memory_bytes for generation in self._generations)

    def summary(self) -> str:
        """Return a few lines on method and cache, what they are attached to and what the latest generation did."""
        names = [f"{each.name} ({each.hook.session.layers} layers)" for each in self._attachments]
        method, resting = self._attachments[0].hook.session.method, self._attachments[0].resting
        parts = [*([] if method is None else [method]), *([] if resting is None else [resting.policy])]
        lines = [f"{' with '.join(map(str, parts))} on {', '.join(names)}"]
        lines += [] if self.chosen is None else [f"latest generation: {self.chosen}"]
        facts, shares = summarize(self.stats()), block_shares(self.blocks())
        obstacles = Counter[str]()
        for generation in self._generations:
            obstacles.update(generation.obstacles)
        lines += [f"latest generation: {count} attention calls ran dense: {why}" for why, count in obstacles.items()]
        if method is not None and not facts["calls"] and not obstacles:
            lines.append("no attention call has come here: run the pipeline, and set no other processors after enable")
        if shares["computed"] is not None:
            said = ", ".join(f"{share:.3f} {kind}" for kind, share in shares.items())
            lines.append(f"latest generation: of all blocks {said}")
        if facts["calls"]:
            density, recall = facts["density"], facts["recall"]
            lines.append(
                f"latest generation: {facts['calls']} attention calls, {facts['sparse_calls']} sparse"
                + (f" at density {density:.3f}" if density is not None else "")
                + (f", recall {recall:.3f}" if recall is not None else "")
                + f", {facts['dense_steps']} dense steps, {facts['attention_seconds']:.2f} s in attention"
            )
        return "\n".join(lines)

    def disable(self) -> None:
        """Put the stock processors back and remove the hooks; what was attached since then stays."""
        for each in self._attachments:
            transformer = each.reference()
            if transformer is not None and installed_hook(transformer) is each.hook:
                detach(transformer)


def attach(transformer: Any, attachment: Attachment) -> None:
    """Put hook, cache and processors on the transformer, in place of what it carries; after an error none are there."""
    detach(transformer)
    try:
        if attachment.resting is not None:
            install_cache(transformer, attachment.resting)
        install_hook(transformer, attachment.hook)
        if attachment.hook.session.method is not None:
            found = processors_of(transformer, attachment.hook.session)
            for _, module, processor in found:
                set_processor(module, processor)
            watch(transformer, attachment.hook.session, [module for _, module, _ in found])
    except BaseException:  # as where there is no memory for tuned weights, or somebody presses Ctrl-C
        detach(transformer)
        raise


def carried(transformer: Any) -> Attachment | None:
    """Return what the transformer carries, None where nothing is attached."""
    hook = installed_hook(transformer)
    return None if hook is None else Attachment.to(transformer, hook, installed_cache(transformer))


def detach(transformer: Any) -> None:
    """Take off hook, cache and processors, if there are any."""
    hook = installed_hook(transformer)
    if hook is not None:
        hook.session.denoising.latest.end()  # one that was interrupted still remembers
        remove_hook(transformer)
    remove_cache(transformer)
    unwrap_processors(transformer)


def processors_of(transformer: Any, session: Session) -> list[tuple[str, Any, SparseAttentionProcessor]]:
    """Return name and module of each video self-attention, in the order of the layers, and a processor for it.

    Stable Diffusion 3 knows the processors of its IP-Adapter by their class: they stay.
    """
    watch(transformer, session)  # whoever sets them
    adapter, found = adapter_for(transformer), []
    for layer, (name, module) in enumerate(adapter.modules(transformer).items()):
        if adapter.dispatched or not has_weights(module):
            dispatched = adapter.dispatched and type(module.processor).__name__ not in adapter.caught
            found.append((name, module, wrap_processor(module.processor, session, layer, dispatched)))
    return found


def has_weights(module: Any) -> bool:
    """Whether the processor of an attention module is a part of the model, as an IP-Adapter's is."""
    return isinstance(module.processor, nn.Module)
