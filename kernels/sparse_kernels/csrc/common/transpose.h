// A square of LANES x LANES floats, turned over in registers.
#pragma once
#include <utility>

#include "common/vector.h"

// Lane i of the first of two rows or, where bit `STEP` of i differs from `UPPER`, of the other one, STEP lanes away.
template <int STEP, bool UPPER, size_t... I>
static inline vf exchange(vf a, vf b, std::index_sequence<I...>) {
#ifdef __clang__
  if constexpr (UPPER) return __builtin_shufflevector(a, b, (I & STEP ? LANES + I : I + STEP)...);
  else return __builtin_shufflevector(a, b, (I & STEP ? LANES + I - STEP : I)...);
#else
  if constexpr (UPPER) return __builtin_shuffle(a, b, vi{static_cast<int32_t>(I & STEP ? LANES + I : I + STEP)...});
  else return __builtin_shuffle(a, b, vi{static_cast<int32_t>(I & STEP ? LANES + I - STEP : I)...});
#endif
}

// Squares of STEP x STEP change places across the diagonal, then those half as large.
template <int STEP>
static inline __attribute__((always_inline)) void transpose(vf (&rows)[LANES]) {
  if constexpr (STEP > 0) {
    for (int i = 0; i < LANES; i++) {
      if (i & STEP) continue;
      const vf a = rows[i], b = rows[i + STEP];
      rows[i] = exchange<STEP, false>(a, b, std::make_index_sequence<LANES>());
      rows[i + STEP] = exchange<STEP, true>(a, b, std::make_index_sequence<LANES>());
    }
    transpose<STEP / 2>(rows);
  }
}

// LANES rows of `from`, `from_stride` floats apart, become columns of `to`; `width` is a multiple of LANES.
static inline void transpose_rows(const float* from, int64_t from_stride, int32_t width, float* to, int64_t to_stride) {
  for (int32_t x = 0; x < width; x += LANES) {
    vf square[LANES];
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++) square[r] = load(from + r * from_stride + x);
    transpose<LANES / 2>(square);
#pragma GCC unroll 16
    for (int r = 0; r < LANES; r++) store(to + (x + r) * to_stride, square[r]);
  }
}
