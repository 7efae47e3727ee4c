"""Which steps and blocks are not computed at all, and how that goes together with what else sits on a transformer.

- Attention: what is computed is computed by the method. Its dense warm-up, searches and refreshes go by the index of
  the loop; where one falls on a call that rests, it moves to the next one that is computed. The warm-up of a cache says
  which steps are computed, that of a method how: they are two options.
- Hooks: ours on the root runs inside the one that knows the step, and those on blocks around whatever was there before;
  group offloading may come before or after. LoRA and quantised weights are inside the blocks and see nothing of it.
- Diffusers' caches: one at a time. Sparse attention works under any of them.
- Batches: a policy that looks at the content decides for each sample by itself, and runs it by itself.
- Narrow MLPs: slices of plain weights, or of those of a merged LoRA; others are refused before anything is attached.
- Guidance branches, and the two experts of Wan 2.2, each have a past of their own; an expert computes until it has one.
- Unknown steps, gradients, a sequence that devices share: everything is computed, and a warning says why.
"""
