// The register tile that the float32 kernels share: a few rows times one panel of columns.
#pragma once
#include "common/micro_rows.h"
#include "common/vector.h"

#define VECTORS 2
static constexpr int32_t PANEL = VECTORS * LANES;

// Register by register: GCC clears a whole array of vectors in memory, which costs a tenth of a small product.
template <int R, int V>
static inline __attribute__((always_inline)) void clear(vf (&acc)[R][V]) {
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) acc[r][v] = vf{};
}

// acc += a (R rows, stride lda) times b (depth rows of V vectors, stride ldb)
template <int R, int V>
static inline __attribute__((always_inline)) void multiply(
    vf (&acc)[R][V], const float* a, int64_t lda, const float* b, int64_t ldb, int32_t depth) {
#pragma GCC unroll 4
  for (int32_t k = 0; k < depth; k++) {
    vf row[V];
    for (int v = 0; v < V; v++) row[v] = load(b + k * ldb + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      vf x = broadcast(a[r * lda + k]);
      for (int v = 0; v < V; v++) acc[r][v] += x * row[v];
    }
  }
}
