// The two products of attention_narrow.cpp in AMX tiles, 16 rows by 32 columns at a time.
#pragma once
#include "common/amx_tiles.h"

static constexpr size_t SPARE_BYTES = 0;
// What 16 rows need for 64 keys of 64 channels lies in 48 KB, with the keys, their values and the output of 64 rows.
static constexpr int32_t CHUNK = 64, GROUP_ROWS = 16;
static constexpr int32_t TILE_ROWS = 128;  // keys and values that lie further off than L2 are read once for so many
static inline int32_t padded_rows(int32_t rows) { return (rows + 15) / 16 * 16; }
static inline const Part* query_at(const Part* q, int32_t r, int32_t depth) { return q + static_cast<int64_t>(r) * depth; }
static inline Part* query_row(Part* q, int32_t r, int32_t depth, Part*) { return q + static_cast<int64_t>(r) * depth; }
static inline void store_query(const Part*, int32_t, int32_t, Part*) {}
static inline void finish_panel(Part*, int32_t) {}

template <int C, int A, int B>
static inline __attribute__((always_inline)) void multiply_parts() {
#ifdef INT8
  tile_multiply_int8<C, A, B>();
#else
  tile_multiply_bfloat16<C, A, B>();
#endif
}

// A store waits for its sums, and the next sums in its tile for the store: what can, goes to another pair of tiles first.
template <int C>
static inline __attribute__((always_inline)) void store_pair(float* to, int64_t stride) {
  tile_store<C>(to, stride), tile_store<C + 1>(to + 16, stride);
}

// tiles 6 - D to 5 = 16 queries
template <int D>
static inline __attribute__((always_inline)) void load_queries(const char* q, int64_t bytes) {
  tile_load<6 - D>(q, bytes);
  if constexpr (D > 1) load_queries<D - 1>(q + 64, bytes);
}

// tiles C and C + 1 += those queries times 16 keys each
template <int C, int D>
static inline __attribute__((always_inline)) void add_scores(const char* left, const char* right) {
  tile_load<6>(left, 64);
  multiply_parts<C, 6 - D, 6>();
  tile_load<7>(right, 64);
  multiply_parts<C + 1, 6 - D, 7>();
  if constexpr (D > 1) add_scores<C, D - 1>(left + TILE_BYTES, right + TILE_BYTES);
}

// scores (16 x panels * 32, stride CHUNK) = queries (D tiles, which stay where they are) times panels of keys
template <int D>
static void score_tiles(const char* q, const char* const* keys, int32_t panels, float* scores) {
  constexpr int OTHER = D > 2 ? 0 : 2;  // two pairs take turns where there is room for them
  constexpr int64_t bytes = 64 * D, stride = CHUNK * 4;
  load_queries<D>(q, bytes);
  for (int32_t i = 0; i < panels; i += 2) {
    float* to = scores + i * PANEL;
    tile_zero<0>(), tile_zero<1>();
    add_scores<0, D>(keys[i], keys[i] + 16 * bytes);
    if (OTHER && i) store_pair<OTHER>(to - PANEL, stride);
    if (!OTHER || i + 1 == panels) store_pair<0>(to, stride);
    if (i + 1 == panels) return;
    tile_zero<OTHER>(), tile_zero<OTHER + 1>();
    add_scores<OTHER, D>(keys[i + 1], keys[i + 1] + 16 * bytes);
    if (OTHER) store_pair<0>(to, stride);
    if (!OTHER || i + 2 == panels) store_pair<OTHER>(to + PANEL, stride);
  }
}

// The same for more channels than there are tiles for.
static void score_wide_tiles(const char* q, int64_t bytes, const char* const* keys, int32_t panels, float* scores) {
  for (int32_t i = 0; i < panels; i++) {
    tile_zero<0>(), tile_zero<1>();
    for (int64_t x = 0; x < bytes; x += 64) {
      tile_load<5>(q + x, bytes);
      add_scores<0, 1>(keys[i] + x * 16, keys[i] + (x + bytes) * 16);
    }
    store_pair<0>(scores + i * PANEL, CHUNK * 4);
  }
}

// scores (16 x panels * 32, stride CHUNK) = queries times panels of keys; int8 leaves integers there
static void score_panels(
    const Part* queries, int32_t, int32_t depth, const char* const* keys, const float*, int32_t panels, float* scores) {
  const char* q = reinterpret_cast<const char*>(queries);
  const int32_t tiles = depth / DEPTH;
  if (tiles == 1) score_tiles<1>(q, keys, panels, scores);
  else if (tiles == 2) score_tiles<2>(q, keys, panels, scores);
  else if (tiles == 3) score_tiles<3>(q, keys, panels, scores);
  else if (tiles == 4) score_tiles<4>(q, keys, panels, scores);
  else score_wide_tiles(q, tiles * 64, keys, panels, scores);
}

#ifdef INT8
static constexpr bool SCALES_SCORES = true;
#else
static constexpr bool SCALES_SCORES = false;  // that is left to the weighing, where it costs nothing
#endif

// What score_panels left of 32 scores becomes them, times `factor`; keys that are not `visible` get no weight.
static inline void finish_scores(float* row, float factor, uint32_t visible) {
  for (int32_t j = 0; j < PANEL; j += LANES) {
#ifdef INT8
    vi integers;
    memcpy(&integers, row + j, sizeof integers);
    const vf scores = __builtin_convertvector(integers, vf) * factor;
#else
    const vf scores = load(row + j) * factor;
#endif
    store(row + j, visible == every_key(PANEL) ? scores : seen(scores, visible >> j));
  }
}

// tiles C and C + 1 = out (16 x 32) + weights (16 x panels * 32, stride CHUNK) times values of 32 channels
template <int C>
static inline __attribute__((always_inline)) void add_values(
    const uint16_t* weights, const char* const* values, int32_t panels, int64_t column, const float* out, int64_t stride) {
  tile_load<C>(out, stride), tile_load<C + 1>(out + 16, stride);
  for (int32_t i = 0; i < panels; i++) {
    tile_load<4>(weights + i * PANEL, CHUNK * 2);
    tile_load<6>(values[i] + column, 64), tile_load<7>(values[i] + column + TILE_BYTES, 64);
    tile_multiply_bfloat16<C, 4, 6>(), tile_multiply_bfloat16<C + 1, 4, 7>();
  }
}

// out (16 x width) += weights (16 x panels * 32, stride CHUNK) times the chunk's values
static void value_chunk(
    const uint16_t* weights, int32_t, const char* const* values, int32_t panels, int32_t width, float* out) {
  const int64_t stride = width * 4;
  for (int32_t x = 0; x < width; x += 64) {
    const bool last = x + 32 == width;
    add_values<0>(weights, values, panels, x / 16 * TILE_BYTES, out + x, stride);
    if (x) store_pair<2>(out + x - 32, stride);
    if (!last) add_values<2>(weights, values, panels, (x / 16 + 2) * TILE_BYTES, out + x + 32, stride);
    store_pair<0>(out + x, stride);
    if (x + 64 == width) store_pair<2>(out + x + 32, stride);
  }
}
