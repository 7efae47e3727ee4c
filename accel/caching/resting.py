"""One policy on one transformer: asked about each stretch of blocks, and obeyed."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from accel.caching.alone import check_alone, looked_at
from accel.caching.borrowed import BorrowedWeights
from accel.caching.elastic import check_elastic, check_in_memory
from accel.caching.policy import BlockCall, Compute, Decision, Memory, Narrow, Policy, Reuse, Skip
from accel.caching.samples import output_like, sample_of
from accel.errors import InputError
from accel.models.adapters.adapter import Adapter
from accel.models.adapters.streams import with_controls
from accel.models.compiling import outside_graphs
from accel.models.denoising import Denoising, Generation
from accel.models.records import BlockRecord

KINDS = {Compute: "computed", Reuse: "reused", Skip: "skipped", Narrow: "narrow"}
Forward = Callable[..., Any]


@dataclass
class Pass:
    """One run through the blocks: what went into the first one, and the stretch that runs or rests, with its streams.

    `outputs` are the latest block's of that stretch. `time` is the timestep embedding, `width` the share of the MLP's
    neurons with which a block runs, None is all.
    """

    generation: Generation
    entry: Tensor | None = None
    call: BlockCall | None = None
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor | None, ...] = ()
    decision: Decision = Compute()
    time: Tensor | None = None
    width: float | None = None


class Resting:
    """Asks the policy, executes what it decides, and keeps what the blocks added.

    Where the denoising loop is, and all that belongs to one generation, is in `denoising`. InputError where the policy
    does not fit the model, or diffusers caches in it.
    """

    def __init__(self, policy: Policy, transformer: nn.Module, adapter: Adapter, denoising: Denoising):
        check_alone(transformer, transformer.modules())
        name = type(transformer).__name__
        if adapter.latents is None:
            raise InputError(f"{name} has no latents that accel knows how to compare; leave the cache out")
        if policy.by_time and adapter.time_embedding is None:
            raise InputError(f"{name} has no timestep embedding that accel knows; leave routers out")
        self.depth = len(adapter.modules(transformer) if adapter.blocks is None else adapter.blocks(transformer))
        self.units = policy.units(self.depth)
        if self.units is not None and adapter.blocks is None:
            if not policy.takes_whole:
                raise InputError(
                    f"{name} has no block stack that accel knows; take the cache easy or table:every=2, which need none"
                )
            self.units = None
        self.policy, self.adapter, self.denoising = policy, adapter, denoising
        policy.check(transformer, adapter)
        if policy.narrows:
            check_elastic(transformer, adapter)
            check_in_memory(transformer)
        self.weights = BorrowedWeights(policy.weights, transformer)
        self._unit_of = {index: unit for unit in self.units or () for index in unit}
        self._threads = threading.local()
        self._warned: set[str] = set()

    def forward(self, module: nn.Module, stock: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the transformer or let it rest; sample by sample where decisions are by content."""
        generation = self.denoising.current
        progress, obstacle = generation.progress, self._obstacle(module)
        if progress is None or obstacle is not None:
            self._warn_once(obstacle)
            return stock(*args, **kwargs)
        assert self.adapter.latents is not None
        latents = self.adapter.latents(module, args, kwargs)
        batch = latents.shape[0]
        if batch == 1 or not self.policy.by_content:
            return self._run(generation, latents, stock, args, kwargs)
        outputs = []
        try:
            for row in range(batch):
                generation.progress = dataclasses.replace(progress, sample=row)
                own = [sample_of(value, row, batch) for value in args]
                named = {
                    name: value if name in self.adapter.shared else sample_of(value, row, batch)
                    for name, value in kwargs.items()
                }
                outputs.append(self._run(generation, latents[row : row + 1], stock, own, named))
        finally:
            generation.progress = progress
        return output_like(type(outputs[0]), torch.cat([output[0] for output in outputs]))

    @outside_graphs
    def enter(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return what a block that rests gives, or None if it is to run, which `leave` hears of.

        A stretch that rests adds all of what it adds in its first block.
        """
        now: Pass | None = getattr(self._threads, "now", None)
        if now is None:
            return None
        streams = self.adapter.streams
        inputs = streams.inputs(args, kwargs)
        now.entry = entry = inputs[0] if now.entry is None else now.entry
        unit = self._unit_of.get(index)
        if unit is None:
            self._note(now.generation, range(index, index + 1), Compute())
            return None
        if index == unit[0]:
            now.inputs, now.call = inputs, self._call(now.generation, inputs[0], entry, unit, now.time)
            now.decision = self._decide(now.generation, now.call)
        assert now.call is not None
        if not isinstance(now.decision, Compute | Narrow):
            first = index == unit[0]
            return streams.packed(self._rest(now.generation, now.call, now.decision, inputs) if first else inputs)
        if index > unit[0]:
            now.inputs = with_controls(now.inputs, now.outputs, inputs)
        now.width = now.decision.width if isinstance(now.decision, Narrow) else None
        return None

    @outside_graphs
    def leave(self, index: int, output: Any) -> None:
        """Note what a block gave that has run."""
        now: Pass | None = getattr(self._threads, "now", None)
        unit = self._unit_of.get(index)
        if now is None or unit is None:
            return
        assert now.call is not None
        now.width, now.outputs = None, self.adapter.streams.outputs(output)
        if index == unit[-1]:
            self._keep(now.generation, now.call, now.inputs, now.outputs)

    def _run(self, generation: Generation, latents: Tensor, stock: Forward, args: Any, kwargs: Any) -> Any:
        """Run or rest as a whole, or run while the blocks are decided about."""
        if self.units is not None:
            self._threads.now = Pass(generation)
            try:
                return stock(*args, **kwargs)
            finally:
                self._threads.now = None
        call = self._call(generation, latents, latents, range(self.depth))
        decision = self._decide(generation, call)
        if not isinstance(decision, Compute):
            return output_like(self._threads.output, self._rest(generation, call, decision, (latents,))[0])
        output = stock(*args, **kwargs)
        self._threads.output = type(output)
        if len(output) > 1:
            self._warn_once(f"the transformer gives {len(output)} outputs")
        elif output[0].shape != latents.shape:
            self._warn_once(f"the output is {tuple(output[0].shape)}, and the latents are {tuple(latents.shape)}")
        else:
            self._keep(generation, call, (latents,), (output[0],))
        return output

    def note_time(self, output: Any) -> None:
        """Note the timestep embedding, the mean of all tokens' where each has its own."""
        now: Pass | None = getattr(self._threads, "now", None)
        if now is not None:
            now.time = mean_time(output)

    @property
    def width(self) -> float | None:
        """The share of an MLP's neurons with which the block runs that runs on this thread; None is all."""
        now: Pass | None = getattr(self._threads, "now", None)
        return None if now is None else now.width

    def _call(
        self, generation: Generation, x: Tensor, entry: Tensor, blocks: range, time: Tensor | None = None
    ) -> BlockCall:
        assert generation.progress is not None
        return BlockCall(x, entry, blocks, generation.progress, time)

    def _decide(self, generation: Generation, call: BlockCall) -> Decision:
        memory = self._memory(generation, call)
        decision = self.policy.decide(call, memory)
        if isinstance(decision, Reuse) and not memory.history().steps:
            decision = Compute()
        self._note(generation, call.blocks, decision)
        return decision

    def _rest(
        self, generation: Generation, call: BlockCall, decision: Decision, inputs: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Return the streams with what is reused added to them; one that ends in the stretch stays."""
        memory = self._memory(generation, call)
        pasts = [memory.history(stream=number) for number in range(len(inputs))]
        rested = inputs
        if isinstance(decision, Reuse):
            rested = tuple(
                _plus(x, past.forecast(call.step, decision.order)) if past.steps else x
                for x, past in zip(inputs, pasts, strict=True)
            )
        for past in pasts if call.progress.is_last else ():
            past.clear()
        return rested

    def _keep(
        self, generation: Generation, call: BlockCall, inputs: tuple[Tensor, ...], outputs: tuple[Tensor | None, ...]
    ) -> None:
        """Keep what a stretch added; after the last step nothing, for the video's decoder needs the memory."""
        if not self.policy.reuses:
            return
        memory = self._memory(generation, call)
        for number, (x, output) in enumerate(zip(inputs, outputs, strict=True)):
            history = memory.history(stream=number)
            if call.progress.is_last:
                history.clear()
            elif output is not None:
                history.keep(call.step, output - x.to(output.device), self.policy.order + 1)

    def _memory(self, generation: Generation, call: BlockCall) -> Memory:
        return Memory(lambda kind, key: generation.memories[kind, key].of(kind), call)

    def _note(self, generation: Generation, blocks: range, decision: Decision) -> None:
        now = generation.progress
        assert now is not None
        kind = KINDS[type(decision)]
        generation.blocks.append(BlockRecord(now.step, now.steps, now.branch, now.sample, blocks, kind))

    @outside_graphs
    def _obstacle(self, module: Any) -> str | None:
        """Return why nothing can rest in this call, or None; InputError beside a cache of diffusers."""
        blocks = [] if self.adapter.blocks is None else self.adapter.blocks(module)
        check_alone(module, looked_at(module, blocks))
        if self.policy.narrows:
            check_elastic(module, self.adapter)  # something may have been loaded since
        if self.denoising.current.progress is None:
            return "the denoising step of this call is unknown (attach to the pipeline that runs, not its transformer)"
        if torch.is_grad_enabled():
            return "gradients are enabled; run the model under torch.no_grad()"
        if getattr(module, "_parallel_config", None) is not None:
            return "the sequence is shared among devices (context parallelism)"
        if self.policy.by_content and any(_shares_weights(part) for part in [module, *blocks[:1]]):
            return "devices share the weights (FSDP), and each might let other blocks rest; take table:every=2"
        return None

    def _warn_once(self, reason: str | None) -> None:
        if reason is not None and reason not in self._warned:
            self._warned.add(reason)
            warnings.warn(f"accel's cache computes everything: {reason}", stacklevel=2)


def _shares_weights(module: nn.Module) -> bool:
    # By its name: torch is built without torch.distributed as well.
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


def _plus(x: Tensor, added: Tensor) -> Tensor:
    """Return the stream where the stretch leaves it: its last block may be on another device than its first."""
    return x.to(added.device) + added


def mean_time(output: Any) -> Float[Tensor, "b channels"]:
    """Return the timestep embedding of what embeds it: the first output, averaged over tokens where each has one."""
    time = output[0] if isinstance(output, tuple) else output
    return time if time.ndim == 2 else time.mean(1)
