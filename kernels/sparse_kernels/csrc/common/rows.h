// What every kernel is told about its inputs.
#pragma once
#include <cstddef>
#include <cstdint>

constexpr double LOG2E = 1.4426950408889634;  // exponentials and logarithms are to base 2 inside

enum Element : int32_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, BYTE = 3 };  // BYTE: spikes only

// Rows of one head in memory: row i starts at data + order[i] * stride elements (order may be null).
struct Rows {
  const void* data;
  int64_t stride;
  const int64_t* order;
  Element element;
};

static inline int64_t place_of(const Rows& rows, int64_t row) { return rows.order ? rows.order[row] : row; }
