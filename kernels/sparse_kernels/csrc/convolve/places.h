// Which places of a kernel map name a row.
#pragma once
#include <cstdint>

// The places in the map that name a row; without a branch, since which do is as good as random. Returns how many.
static inline int32_t find_places(const int32_t* map, int32_t rows, int32_t* places) {
  int32_t count = 0;
  for (int32_t r = 0; r < rows; r++) {
    places[count] = r;
    count += map[r] >= 0;
  }
  return count;
}

// Next to nothing beside the search for places, since the compiler makes vectors of it.
static inline bool names_only(int64_t rows, const int32_t* map, int32_t count) {
  int32_t most = -1;
  for (int32_t r = 0; r < count; r++) most = map[r] > most ? map[r] : most;
  return most < rows;
}

// What GRADIENT_ROWS add up to is put aside: one long sum in float32 loses what is small beside it.
static inline void put_aside(float* sums, float* totals, int64_t count) {
  for (int64_t i = 0; i < count; i++) totals[i] += sums[i], sums[i] = 0;
}
