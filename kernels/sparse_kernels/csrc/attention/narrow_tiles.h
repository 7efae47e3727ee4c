// The two products of attention_narrow.cpp in AMX tiles, 32 rows by 32 columns at a time.
#pragma once
#include "common/amx_tiles.h"

static constexpr size_t SPARE_BYTES = 0;
static inline int32_t padded_rows(int32_t rows) { return (rows + 31) / 32 * 32; }
static inline void finish_panel(Part*, int32_t) {}
static inline void store_query(const Part* row, int32_t r, int32_t depth, Part* q) {
  memcpy(q + static_cast<int64_t>(r) * depth, row, depth * sizeof(Part));
}

template <int C, int A, int B>
static inline __attribute__((always_inline)) void multiply_parts() {
#ifdef INT8
  tile_multiply_int8<C, A, B>();
#else
  tile_multiply_bfloat16<C, A, B>();
#endif
}

// scores (32 x 32, stride CHUNK) = queries (32 x depth) times one panel of keys; int8 leaves integers there
static void score_tiles(const Part* q, int32_t depth, const char* keys, float* scores) {
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  const int64_t bytes = depth * static_cast<int64_t>(sizeof(Part));
  for (int32_t x = 0; x < depth; x += DEPTH) {
    tile_load<4>(q + x, bytes);
    tile_load<5>(q + 16 * depth + x, bytes);
    tile_load<6>(keys + x / DEPTH * TILE_BYTES, 64);
    tile_load<7>(keys + 16 * bytes + x / DEPTH * TILE_BYTES, 64);
    multiply_parts<0, 4, 6>(), multiply_parts<1, 4, 7>(), multiply_parts<2, 5, 6>(), multiply_parts<3, 5, 7>();
  }
  tile_store<0>(scores, CHUNK * 4), tile_store<1>(scores + 16, CHUNK * 4);
  tile_store<2>(scores + 16 * CHUNK, CHUNK * 4), tile_store<3>(scores + 16 * CHUNK + 16, CHUNK * 4);
}

static inline vf read_scores(const float* from) {
#ifdef INT8
  vi integers;
  memcpy(&integers, from, sizeof integers);
  return __builtin_convertvector(integers, vf);
#else
  return load(from);
#endif
}

// scores (rows x 32, stride CHUNK) = factor * queries (rows x depth) times one panel of keys
static void score_panel(const Part* q, int32_t rows, int32_t depth, const char* keys, float factor, float* scores) {
  for (int32_t r = 0; r < rows; r += 32) score_tiles(q + r * depth, depth, keys, scores + r * CHUNK);
  for (int32_t r = 0; r < rows; r++)
    for (int32_t j = 0; j < PANEL; j += LANES)
      store(scores + r * CHUNK + j, read_scores(scores + r * CHUNK + j) * factor);
}

// out (32 x width) += weights (32 x panels * 32, stride CHUNK) times the chunk's values
static void value_tiles(const uint16_t* weights, const char* const* values, int32_t panels, int32_t width, float* out) {
  for (int32_t x = 0; x < width; x += 32) {
    float* to = out + x;
    tile_load<0>(to, width * 4), tile_load<1>(to + 16, width * 4);
    tile_load<2>(to + 16 * width, width * 4), tile_load<3>(to + 16 * width + 16, width * 4);
    for (int32_t i = 0; i < panels; i++) {
      tile_load<4>(weights + i * PANEL, CHUNK * 2);
      tile_load<5>(weights + 16 * CHUNK + i * PANEL, CHUNK * 2);
      tile_load<6>(values[i] + x / 16 * TILE_BYTES, 64);
      tile_load<7>(values[i] + x / 16 * TILE_BYTES + TILE_BYTES, 64);
      tile_multiply_bfloat16<0, 4, 6>(), tile_multiply_bfloat16<1, 4, 7>();
      tile_multiply_bfloat16<2, 5, 6>(), tile_multiply_bfloat16<3, 5, 7>();
    }
    tile_store<0>(to, width * 4), tile_store<1>(to + 16, width * 4);
    tile_store<2>(to + 16 * width, width * 4), tile_store<3>(to + 16 * width + 16, width * 4);
  }
}

// out (rows x width) += weights (rows x panels * 32, stride CHUNK) times the chunk's values
static void value_chunk(
    const uint16_t* weights, int32_t rows, const char* const* values, int32_t panels, int32_t width, float* out) {
  for (int32_t r = 0; r < rows; r += 32) value_tiles(weights + r * CHUNK, values, panels, width, out + r * width);
}
