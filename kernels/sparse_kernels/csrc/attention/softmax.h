// Softmax over the visited panels of a row, as the attention kernels share it.
#pragma once
#include "attention/kernel.h"
#include "common/vector.h"

// Raise the running maximum `m` of a row whose new scores are at most `best`, if they would let a weight pass 2^8.
static inline void raise_maximum(vf best, float& m, vf& total, float* out, int32_t width) {
  if (any_above(best, broadcast(m + 8.0f))) {
    const float top = horizontal_max(best);
    const float shrink = exp2_scalar(m - top);  // 0 in effect for the first block, where m is -infinity
    total *= shrink;
    for (int32_t x = 0; x < width; x += LANES) store(out + x, load(out + x) * shrink);
    m = top;
  }
}

// Online softmax over one row of `columns` new scores (in units of log2), a multiple of LANES: the scores become
// weights relative to the running maximum `m`, the sums (one a lane) and the output row grow accordingly. The maximum
// is raised only when it would let a weight pass 2^8: the final division uses the same m, so this is exact.
static inline void softmax_row(float* scores, int32_t columns, float& m, float* sums, float* out, int32_t width) {
  vf best = load(scores), total = load(sums);
  for (int32_t j = LANES; j < columns; j += LANES) {
    vf x = load(scores + j);
    best = larger(x, best);
  }
  raise_maximum(best, m, total, out, width);
  const vf maximum = broadcast(m);
  for (int32_t j = 0; j < columns; j += LANES) {
    vf p = exp2_vector(load(scores + j) - maximum);
    store(scores + j, p);
    total += p;
  }
  store(sums, total);
}

static constexpr uint32_t every_key(int32_t panel) { return panel < 32 ? (1u << panel) - 1 : ~0u; }

// Scores of LANES keys; those that are not visited, or only fill up a panel, get no weight: bit n is set where key n has one.
static inline vf seen(vf scores, uint32_t visible) {
  vi lane_bits;
  for (int i = 0; i < LANES; i++) lane_bits[i] = 1 << i;
  return (lane_bits & static_cast<int32_t>(visible)) != 0 ? scores : broadcast(SILENT);
}

static inline void hide_keys(float* scores, uint32_t visible, int32_t panel) {
  for (int32_t j = 0; j < panel; j += LANES) store(scores + j, seen(load(scores + j), visible >> j));
}

// The scores of some summaries: each stands for several keys, or is silent.
static inline void weigh_summaries(float* scores, const float* weights, int32_t count) {
  for (int32_t j = 0; j < count; j += LANES) {
    const vf weight = load(weights + j), silent = broadcast(SILENT);
    store(scores + j, weight > silent ? load(scores + j) + weight : silent);
  }
}

// The panels from `begin` on that one pass takes: keys and summaries do not meet in it.
static inline int32_t next_panels(const TileJob& job, int32_t begin, int32_t most) {
  const int32_t keys = job.panel_count - job.summary_count, end = begin < keys ? keys : job.panel_count;
  return end - begin < most ? end - begin : most;
}

static inline void write_lse(const TileJob& job, bool empty, const float* m, const float* sums) {
  for (int32_t r = 0; r < job.rows; r++)
    job.lse[place_of(job.queries, job.first_row + r)] =
        empty ? -__builtin_inff()
              : (m[r] + __builtin_log2f(horizontal_sum(load(sums + r * LANES)))) * static_cast<float>(1 / LOG2E);
}

static inline void finish_rows(const TileJob& job, const float* out, int32_t width, const float* m, const float* sums) {
  const bool empty = job.panel_count == 0;
  for (int32_t r = 0; r < job.rows; r++) {
    const int64_t row = place_of(job.queries, job.first_row + r);
    const float* from = out + static_cast<int64_t>(r) * width;
    const float share = empty ? 0.0f : 1.0f / horizontal_sum(load(sums + r * LANES));
    write_row(job.out, row * job.out_stride, job.queries.element, job.head_dim, [&](int32_t x) { return from[x] * share; });
  }
  if (!job.summary_count || !job.lse_of_visited) write_lse(job, empty, m, sums);
}
