// Which places of a kernel map name a row.
#pragma once
#include <cstdint>

#ifdef __AVX2__
#include <immintrin.h>
#endif

constexpr int32_t SPARE_PLACES = 16;  // room behind the places that find_places needs

// The places in the map that name a row, with few branches, since which do is as good as random. Returns how many.
static inline int32_t find_places(const int32_t* map, int32_t rows, int32_t* places) {
  int32_t count = 0, r = 0;
#ifdef __AVX512F__
  __m512i at = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (; r + 16 <= rows; r += 16, at = _mm512_add_epi32(at, _mm512_set1_epi32(16))) {
    const __mmask16 named = _mm512_cmpge_epi32_mask(_mm512_loadu_si512(map + r), _mm512_setzero_si512());
    _mm512_storeu_si512(places + count, _mm512_maskz_compress_epi32(named, at));  // Zen stores compressed slowly
    count += __builtin_popcount(named);
  }
#elif defined(__AVX2__)
  for (; r + 32 <= rows; r += 32) {
    uint32_t missing = 0;  // their signs
    for (int32_t i = 0; i < 32; i += 8) {
      const __m256i some = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(map + r + i));
      missing |= static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(some))) << i;
    }
    for (uint32_t named = ~missing; named != 0; named &= named - 1) places[count++] = r + __builtin_ctz(named);
  }
#endif
  for (; r < rows; r++) {
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
