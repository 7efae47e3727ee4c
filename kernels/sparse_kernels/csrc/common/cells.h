// A cell is 32 bits of a row or of a column: one float, or with -DBFLOAT16_PRODUCTS two channels in bfloat16.
#pragma once
#include "common/micro_kernel.h"

#ifdef BFLOAT16_PRODUCTS
static inline int32_t cells(int32_t depth) { return (depth + 1) / 2; }

static inline void read_cells(const Rows& rows, int64_t row, int32_t depth, float* to) {
  uint16_t* channels = reinterpret_cast<uint16_t*>(to);
  memcpy(channels, static_cast<const uint16_t*>(rows.data) + row_offset(rows, row), depth * sizeof(uint16_t));
  if (depth % 2) channels[depth] = 0;
}

// Cell i of a column with `depth` channels, `stride` floats apart.
static inline float column_cell(const float* column, int64_t stride, int32_t i, int32_t depth) {
  const float* at = column + 2 * i * stride;
  const uint32_t second = 2 * i + 1 < depth ? to_bfloat16(at[stride]) : 0;
  const uint32_t bits = to_bfloat16(at[0]) | second << 16;
  float cell;
  memcpy(&cell, &bits, sizeof cell);
  return cell;
}

// What a channel counts as.
static inline float rounded(float x) { return widen_bfloat16(to_bfloat16(x)); }

// acc += rows (R, `count` cells each) times a packed panel
template <int R, int V>
static inline __attribute__((always_inline)) void multiply_cells(
    vf (&acc)[R][V], const float* rows, int32_t count, const float* packed) {
  for (int32_t k = 0; k < count; k++) {
    __m512bh column[V];
    for (int v = 0; v < V; v++) column[v] = (__m512bh)_mm512_loadu_si512(packed + k * PANEL + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const __m512bh x = (__m512bh)_mm512_castps_si512(_mm512_set1_ps(rows[r * static_cast<int64_t>(count) + k]));
      for (int v = 0; v < V; v++) acc[r][v] = (vf)_mm512_dpbf16_ps((__m512)acc[r][v], x, column[v]);
    }
  }
}

// A cell of two rows instead of two channels: what is multiplied where rows are summed over.
static constexpr int32_t CELL_ROWS = 2;

// Channel by channel the cells of two rows, of which -1 is all zeros; filled with zeros up to `width`.
static inline void read_rows_as_cells(
    const Rows& rows, const int64_t (&row)[CELL_ROWS], int32_t depth, int32_t width, float* to) {
  const uint16_t* data = static_cast<const uint16_t*>(rows.data);
  const uint16_t* low = data + (row[0] < 0 ? 0 : row_offset(rows, row[0]));
  const uint16_t* high = data + (row[1] < 0 ? 0 : row_offset(rows, row[1]));
  uint32_t* cells = reinterpret_cast<uint32_t*>(to);
  const uint32_t low_there = row[0] < 0 ? 0 : 0xffffu, high_there = row[1] < 0 ? 0 : 0xffff0000u;
  for (int32_t x = 0; x < depth; x++) cells[x] = (low[x] & low_there) | (static_cast<uint32_t>(high[x]) << 16 & high_there);
  for (int32_t x = depth; x < width; x++) cells[x] = 0;
}

static inline vf broadcast_cell(const float* cell) { return (vf)_mm512_set1_ps(*cell); }

static inline vf multiply_cell(vf sum, vf a, vf b) {
  return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#else
static inline int32_t cells(int32_t depth) { return depth; }

static inline void read_cells(const Rows& rows, int64_t row, int32_t depth, float* to) {
  read_row(rows, row, depth, depth, 1.0f, to);
}

static inline float column_cell(const float* column, int64_t stride, int32_t i, int32_t) { return column[i * stride]; }

static inline float rounded(float x) { return x; }

template <int R, int V>
static inline __attribute__((always_inline)) void multiply_cells(
    vf (&acc)[R][V], const float* rows, int32_t count, const float* packed) {
  multiply<R>(acc, rows, count, packed, PANEL, count);
}

static constexpr int32_t CELL_ROWS = 1;

static inline void read_rows_as_cells(
    const Rows& rows, const int64_t (&row)[CELL_ROWS], int32_t depth, int32_t width, float* to) {
  read_row(rows, row[0], depth, width, 1.0f, to);
}

static inline vf broadcast_cell(const float* cell) { return broadcast(*cell); }

static inline vf multiply_cell(vf sum, vf a, vf b) { return sum + a * b; }
#endif
