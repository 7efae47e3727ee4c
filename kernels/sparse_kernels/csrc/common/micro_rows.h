#pragma once
#include <cstdint>

// Call f with the number of rows as a compile-time constant: full register tiles first, then what is left.
template <int R, class F>
static inline void for_rows(int32_t rows, int32_t first, F f) {
  if constexpr (R > 0) {
    for (; rows - first >= R; first += R) f.template operator()<R>(first);
    for_rows<R - 1>(rows, first, f);
  }
}
