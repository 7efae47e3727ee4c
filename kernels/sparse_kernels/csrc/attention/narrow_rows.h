// The two products of attention_narrow.cpp in AVX-512 registers: up to ROWS rows by 32 columns at a time.
// Both need AVX512_BF16, int8 AVX512_VNNI too. Pairs of channels (bf16), or fours (int8), lie side by side in 32 bits;
// those of a query are broadcast, those of 16 keys fill a register.
#pragma once
#include <immintrin.h>

#include "common/micro_rows.h"

static constexpr int32_t CHUNK = 128, TILE_ROWS = 96, GROUP_ROWS = TILE_ROWS;
static constexpr bool SCALES_SCORES = true;
static inline int32_t padded_rows(int32_t rows) { return rows; }
static inline const Part* query_at(const Part* q, int32_t r, int32_t) { return q + r * LANE; }
static inline Part* query_row(Part*, int32_t, int32_t, Part* row) { return row; }
static void begin_thread() {}
static void end_thread() {}
static bool can_run() { return CAN_RUN; }

static inline __m512i load_bits(const void* from) { return _mm512_loadu_si512(from); }
static inline __m512i broadcast_bits(const void* from) {
  int32_t bits;
  memcpy(&bits, from, sizeof bits);
  return _mm512_set1_epi32(bits);
}
static inline void multiply_bfloat16(__m512& sum, __m512i a, __m512i b) {
  sum = _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

#ifdef INT8
// Assembly, since GCC 12 spills the sums of the intrinsic to the stack.
static inline __attribute__((always_inline)) void multiply_int8(__m512i& sum, __m512i a, __m512i b) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

// One operand of the instruction is unsigned: queries get 128 added, and 128 times the keys' sum is taken off again.
static constexpr size_t SPARE_BYTES = PANEL * sizeof(int32_t);
static inline int64_t sums_at(int32_t depth) { return static_cast<int64_t>(PANEL) * depth; }

static void finish_panel(Part* keys, int32_t depth) {
  int32_t sums[PANEL] = {};
  for (int32_t j = 0; j < PANEL; j++) {
    const Part* group = keys + static_cast<int64_t>(j / 16) * 16 * depth;
    for (int32_t x = 0; x < depth; x++) sums[j] -= 128 * group[x / LANE * 16 * LANE + j % 16 * LANE + x % LANE];
  }
  memcpy(keys + sums_at(depth), sums, sizeof sums);
}
static constexpr uint32_t TO_UNSIGNED = 0x80808080u;
#else
static constexpr size_t SPARE_BYTES = 0;
static inline void finish_panel(Part*, int32_t) {}
static constexpr uint32_t TO_UNSIGNED = 0;
#endif

// Queries lie as [32 bits of channels][row], so that one pointer serves all rows of a register tile.
static inline void store_query(const Part* row, int32_t r, int32_t depth, Part* q) {
  for (int32_t x = 0; x < depth; x += LANE) {
    uint32_t bits;
    memcpy(&bits, row + x, sizeof bits);
    bits ^= TO_UNSIGNED;
    memcpy(q + static_cast<int64_t>(x) * TILE_ROWS + r * LANE, &bits, sizeof bits);
  }
}

// Not inlined: the compiler has registers for all sums only in a function of their own.
template <int R>
static __attribute__((noinline)) void score_rows(const Part* q, int32_t depth, const char* keys, float factor, float* scores) {
  const char* second = keys + static_cast<int64_t>(16) * depth * sizeof(Part);
  const __m512 scale = _mm512_set1_ps(factor);
#ifdef INT8
  __m512i acc[R][2];
  const __m512i start[2] = {load_bits(keys + sums_at(depth)), load_bits(keys + sums_at(depth) + 64)};
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) acc[r][0] = start[0], acc[r][1] = start[1];
#else
  __m512 acc[R][2];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
#endif
  for (int32_t x = 0; x < depth; x += LANE) {
    const __m512i left = load_bits(keys + x / LANE * 64), right = load_bits(second + x / LANE * 64);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const __m512i query = broadcast_bits(q + x * TILE_ROWS + r * LANE);
#ifdef INT8
      multiply_int8(acc[r][0], query, left);
      multiply_int8(acc[r][1], query, right);
#else
      multiply_bfloat16(acc[r][0], query, left);
      multiply_bfloat16(acc[r][1], query, right);
#endif
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    for (int v = 0; v < 2; v++) {
#ifdef INT8
      const __m512 value = _mm512_cvtepi32_ps(acc[r][v]);
#else
      const __m512 value = acc[r][v];
#endif
      _mm512_storeu_ps(scores + r * CHUNK + v * 16, _mm512_mul_ps(value, scale));
    }
  }
}

// scores (rows x panels * 32, stride CHUNK) = factors * queries times panels of keys
static void score_panels(
    const Part* q, int32_t rows, int32_t depth, const char* const* keys, const float* factors, int32_t panels, float* scores) {
  for (int32_t i = 0; i < panels; i++) {
    for_rows<ROWS>(rows, 0, [&]<int R>(int32_t r) {
      score_rows<R>(q + r * LANE, depth, keys[i], factors[i], scores + r * CHUNK + i * PANEL);
    });
  }
}

template <int R>
static __attribute__((noinline)) void value_rows(const uint16_t* weights, const char* const* values, int32_t panels, int32_t width, float* out) {
  for (int32_t x = 0; x < width; x += 32) {
    __m512 acc[R][2];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
      for (int v = 0; v < 2; v++) acc[r][v] = _mm512_loadu_ps(out + r * width + x + v * 16);
    for (int32_t i = 0; i < panels; i++) {
      const char* left = values[i] + x / 16 * 1024;
      for (int32_t pair = 0; pair < PANEL / 2; pair++) {
        const __m512i first = load_bits(left + pair * 64), second = load_bits(left + 1024 + pair * 64);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++) {
          const __m512i weight = broadcast_bits(weights + r * CHUNK + i * PANEL + pair * 2);
          multiply_bfloat16(acc[r][0], weight, first);
          multiply_bfloat16(acc[r][1], weight, second);
        }
      }
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
      for (int v = 0; v < 2; v++) _mm512_storeu_ps(out + r * width + x + v * 16, acc[r][v]);
  }
}

// out (rows x width) += weights (rows x panels * 32, stride CHUNK) times the chunk's values
static void value_chunk(
    const uint16_t* weights, int32_t rows, const char* const* values, int32_t panels, int32_t width, float* out) {
  for_rows<ROWS>(rows, 0, [&]<int R>(int32_t r) {
    value_rows<R>(weights + r * CHUNK, values, panels, width, out + static_cast<int64_t>(r) * width);
  });
}

// In registers scores are scaled before they are stored: all that is left is to hide keys.
static inline void finish_scores(float* row, float, uint32_t visible) {
  if (visible != every_key(PANEL)) hide_keys(row, visible, PANEL);
}
