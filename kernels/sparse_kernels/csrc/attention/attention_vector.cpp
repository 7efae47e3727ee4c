// Block-sparse attention in float32 registers, for any vector width: bf16 and fp16 are widened while packing.
// Compiled once for each instruction set with -DKERNEL, -DNAME, -DCAN_RUN, -DLANES and -DROWS (register tile).
#include "attention/softmax.h"
#include "common/micro_kernel.h"
#include "common/transpose.h"

static constexpr int32_t CHUNK = 128;  // keys between two softmax passes: scores stay in the second-level cache
static constexpr int32_t TILE_ROWS = 96;
static constexpr int32_t CHUNK_PANELS = CHUNK / PANEL;

static inline int32_t padded(int32_t head_dim) { return (head_dim + PANEL - 1) / PANEL * PANEL; }

template <int R>
static void score_rows(const float* q, int32_t width, const float* keys, float* scores, int64_t ld) {
  vf acc[R][VECTORS];
  clear(acc);
  multiply<R>(acc, q, width, keys, PANEL, width);
  for (int r = 0; r < R; r++)
    for (int v = 0; v < VECTORS; v++) store(scores + r * ld + v * LANES, acc[r][v]);
}

template <int R>
static void value_rows(
    const float* weights, int64_t ld, const float* const* values, int32_t panels, int32_t width, float* out) {
  for (int32_t x = 0; x < width; x += PANEL) {
    vf acc[R][VECTORS];
    for (int r = 0; r < R; r++)
      for (int v = 0; v < VECTORS; v++) acc[r][v] = load(out + r * width + x + v * LANES);
    for (int32_t i = 0; i < panels; i++) multiply<R>(acc, weights + i * PANEL, ld, values[i] + x, width, PANEL);
    for (int r = 0; r < R; r++)
      for (int v = 0; v < VECTORS; v++) store(out + r * width + x + v * LANES, acc[r][v]);
  }
}

static void pack(const PanelJob& job) {
  const int32_t width = padded(job.head_dim);
  float* keys = static_cast<float*>(job.packed_keys);
  float* values = static_cast<float*>(job.packed_values);
  float rows[LANES * 512];
  for (int32_t j = 0; j < PANEL; j++) {
    float* row = rows + j % LANES * width;
    if (j < job.valid) {
      read_row(job.values, job.first_row + j, job.head_dim, width, 1.0f, values + static_cast<int64_t>(j) * width);
      read_row(job.keys, job.first_row + j, job.head_dim, width, 1.0f, row);
    } else {
      memset(values + static_cast<int64_t>(j) * width, 0, width * sizeof(float));
      memset(row, 0, width * sizeof(float));
    }
    if (j % LANES == LANES - 1) transpose_rows(rows, width, width, keys + j - (LANES - 1), PANEL);
  }
}

static size_t panel_bytes(int32_t head_dim) { return static_cast<size_t>(padded(head_dim)) * PANEL * sizeof(float); }

static size_t scratch_bytes(int32_t head_dim) {
  return static_cast<size_t>(TILE_ROWS) * (2 * padded(head_dim) + CHUNK + LANES + 1) * sizeof(float);
}

static void attend(const TileJob& job) {
  const int32_t width = padded(job.head_dim);
  float* q = reinterpret_cast<float*>(job.scratch);
  float* out = q + static_cast<int64_t>(TILE_ROWS) * width;
  float* scores = out + static_cast<int64_t>(TILE_ROWS) * width;
  float* sums = scores + TILE_ROWS * CHUNK;  // LANES partial sums a row
  float* m = sums + TILE_ROWS * LANES;
  memset(sums, 0, TILE_ROWS * LANES * sizeof(float));
  for (int32_t r = 0; r < job.rows; r++) {
    read_row(job.queries, job.first_row + r, job.head_dim, width, job.scale, q + static_cast<int64_t>(r) * width);
    m[r] = -__builtin_inff();
  }
  memset(out, 0, static_cast<size_t>(job.rows) * width * sizeof(float));
  const int64_t bytes = static_cast<int64_t>(panel_bytes(job.head_dim));
  const int32_t keys_end = job.panel_count - job.summary_count;
  for (int32_t begin = 0, panels; begin < job.panel_count; begin += panels) {
    panels = next_panels(job, begin, CHUNK_PANELS);
    const float* weights = begin < keys_end ? nullptr : job.weights + (begin - keys_end) * PANEL;
    if (begin == keys_end && job.lse_of_visited) write_lse(job, keys_end == 0, m, sums);
    const float* values[CHUNK_PANELS];
    for (int32_t i = 0; i < panels; i++) {
      const int32_t panel = job.panels[begin + i];
      const float* keys = reinterpret_cast<const float*>(job.packed_keys + panel * bytes);
      values[i] = reinterpret_cast<const float*>(job.packed_values + panel * bytes);
      for_rows<ROWS>(job.rows, 0, [&]<int R>(int32_t r) {
        score_rows<R>(q + static_cast<int64_t>(r) * width, width, keys, scores + r * CHUNK + i * PANEL, CHUNK);
      });
      if (!weights && job.visible[begin + i] != every_key(PANEL))
        for (int32_t r = 0; r < job.rows; r++) hide_keys(scores + r * CHUNK + i * PANEL, job.visible[begin + i], PANEL);
    }
    for (int32_t r = 0; weights && r < job.rows; r++) weigh_summaries(scores + r * CHUNK, weights, panels * PANEL);
    for (int32_t r = 0; r < job.rows; r++)
      softmax_row(scores + r * CHUNK, panels * PANEL, m[r], sums + r * LANES, out + static_cast<int64_t>(r) * width, width);
    for_rows<ROWS>(job.rows, 0, [&]<int R>(int32_t r) {
      value_rows<R>(scores + r * CHUNK, CHUNK, values, panels, width, out + static_cast<int64_t>(r) * width);
    });
  }
  finish_rows(job, out, width, m, sums);
}

static bool can_run() { return CAN_RUN; }
static void nothing() {}

extern "C" const Kernel KERNEL = {
    NAME, PANEL, TILE_ROWS, can_run, panel_bytes, scratch_bytes, nothing, nothing, pack, attend, nullptr,
};
