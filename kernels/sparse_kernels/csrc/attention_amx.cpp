// Block-sparse attention on AMX tiles: bf16 products with float32 sums. All inputs are rounded to bf16.
// Compiled twice: with -DEMULATE the tile instructions are plain loops, so that the data layout is tested anywhere.
#define LANES 16
#include "vector.h"

#ifndef EMULATE
#include <immintrin.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

static constexpr int32_t PANEL = 32;  // keys: the depth of one tile in the product with the values
static constexpr int32_t CHUNK = 128;
static constexpr int32_t CHUNK_PANELS = CHUNK / PANEL;
static constexpr int32_t TILE_BYTES = 1024;  // 16 rows of 64 bytes

static inline int32_t padded(int32_t head_dim) { return (head_dim + 31) / 32 * 32; }

#ifdef EMULATE
struct TileFile {
  alignas(64) char tile[8][TILE_BYTES];
};
static thread_local TileFile tiles;

template <int T>
static inline void tile_zero() {
  memset(tiles.tile[T], 0, TILE_BYTES);
}
template <int T>
static inline void tile_load(const void* from, int64_t stride) {
  for (int r = 0; r < 16; r++) memcpy(tiles.tile[T] + r * 64, static_cast<const char*>(from) + r * stride, 64);
}
template <int T>
static inline void tile_store(void* to, int64_t stride) {
  for (int r = 0; r < 16; r++) memcpy(static_cast<char*>(to) + r * stride, tiles.tile[T] + r * 64, 64);
}
static inline float widen(uint16_t bits) { return read_element(&bits, 0, BFLOAT16); }
template <int C, int A, int B>
static inline void tile_multiply() {
  float* c = reinterpret_cast<float*>(tiles.tile[C]);
  const uint16_t* a = reinterpret_cast<const uint16_t*>(tiles.tile[A]);
  const uint16_t* b = reinterpret_cast<const uint16_t*>(tiles.tile[B]);
  for (int r = 0; r < 16; r++)
    for (int k = 0; k < 16; k++)
      for (int n = 0; n < 16; n++)
        for (int half = 0; half < 2; half++)
          c[r * 16 + n] += widen(a[r * 32 + 2 * k + half]) * widen(b[k * 32 + 2 * n + half]);
}
static void begin_thread() {}
static void end_thread() {}
static bool can_run() { return true; }
#else
// Assembly, since the intrinsics of some compilers accept only literal tile numbers, not template arguments.
template <int T>
static inline __attribute__((always_inline)) void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(T));
}
template <int T>
static inline __attribute__((always_inline)) void tile_load(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(T) : "memory");
}
template <int T>
static inline __attribute__((always_inline)) void tile_store(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(T) : "memory");
}
template <int C, int A, int B>
static inline __attribute__((always_inline)) void tile_multiply() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes[16];
  uint8_t rows[16];
};
static void begin_thread() {
  TileConfig config = {};
  config.palette = 1;
  for (int i = 0; i < 8; i++) {
    config.bytes[i] = 64;
    config.rows[i] = 16;
  }
  _tile_loadconfig(&config);
}
static void end_thread() { _tile_release(); }

static bool can_run() {
  uint32_t a, b, c, d;
  __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
  const bool amx_bf16 = (d >> 22 & 1) && (d >> 24 & 1);
  if (!amx_bf16 || !__builtin_cpu_supports("avx512bf16")) return false;
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#endif

static inline void row_to_bfloat16(const float* from, uint16_t* to, int32_t count) {
#ifdef __AVX512BF16__
  for (int32_t j = 0; j < count; j += 16) {
    __m256bh narrow = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + j));
    memcpy(to + j, &narrow, 32);
  }
#else
  for (int32_t j = 0; j < count; j++) to[j] = to_bfloat16(from[j]);
#endif
}

// Keys of a panel: for each 16 keys, for each 32 channels one tile [channel pair][key][2].
// Values of a panel: for each 16 channels one tile [key pair][channel][2].
static void pack(const PanelJob& job) {
  const int32_t width = padded(job.head_dim);
  uint16_t* keys = static_cast<uint16_t*>(job.packed_keys);
  uint16_t* values = static_cast<uint16_t*>(job.packed_values);
  alignas(64) float row[512];
  alignas(64) uint16_t narrow[512];
  for (int32_t j = 0; j < PANEL; j++) {
    if (j < job.valid) {
      read_row(job.keys, job.first_row + j, job.head_dim, width, 1.0f, row);
    } else {
      memset(row, 0, width * sizeof(float));
    }
    row_to_bfloat16(row, narrow, width);
    uint16_t* group = keys + static_cast<int64_t>(j / 16) * 16 * width;
    for (int32_t x = 0; x < width; x++) group[x / 2 * 32 + j % 16 * 2 + x % 2] = narrow[x];
    if (j < job.valid) {
      read_row(job.values, job.first_row + j, job.head_dim, width, 1.0f, row);
    } else {
      memset(row, 0, width * sizeof(float));
    }
    row_to_bfloat16(row, narrow, width);
    for (int32_t x = 0; x < width; x++) values[x / 16 * 512 + j / 2 * 32 + x % 16 * 2 + j % 2] = narrow[x];
  }
}

static size_t panel_bytes(int32_t head_dim) { return static_cast<size_t>(padded(head_dim)) * PANEL * 2; }

static size_t scratch_bytes(int32_t head_dim) {
  const size_t width = padded(head_dim);
  return TILE_ROWS * (width * 2 + width * 4 + CHUNK * 4 + CHUNK * 2 + 8) + 64 * 8;
}

// scores (32 x 32, stride CHUNK) = queries (32 x width) times one panel of keys
static void score_tiles(const uint16_t* q, int32_t width, const char* keys, float* scores) {
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  const int64_t group = static_cast<int64_t>(width) * 32;  // bytes of 16 keys
  for (int32_t x = 0; x < width; x += 32) {
    tile_load<4>(q + x, width * 2);
    tile_load<5>(q + 16 * width + x, width * 2);
    tile_load<6>(keys + x / 32 * TILE_BYTES, 64);
    tile_load<7>(keys + group + x / 32 * TILE_BYTES, 64);
    tile_multiply<0, 4, 6>(), tile_multiply<1, 4, 7>(), tile_multiply<2, 5, 6>(), tile_multiply<3, 5, 7>();
  }
  tile_store<0>(scores, CHUNK * 4), tile_store<1>(scores + 16, CHUNK * 4);
  tile_store<2>(scores + 16 * CHUNK, CHUNK * 4), tile_store<3>(scores + 16 * CHUNK + 16, CHUNK * 4);
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
      tile_multiply<0, 4, 6>(), tile_multiply<1, 4, 7>(), tile_multiply<2, 5, 6>(), tile_multiply<3, 5, 7>();
    }
    tile_store<0>(to, width * 4), tile_store<1>(to + 16, width * 4);
    tile_store<2>(to + 16 * width, width * 4), tile_store<3>(to + 16 * width + 16, width * 4);
  }
}

static void attend(const TileJob& job) {
  const int32_t width = padded(job.head_dim), rows = (job.rows + 31) / 32 * 32;
  char* free = job.scratch;
  auto take = [&](size_t bytes) {
    char* start = free;
    free += (bytes + 63) / 64 * 64;
    return start;
  };
  uint16_t* q = reinterpret_cast<uint16_t*>(take(static_cast<size_t>(TILE_ROWS) * width * 2));
  float* out = reinterpret_cast<float*>(take(static_cast<size_t>(TILE_ROWS) * width * 4));
  float* scores = reinterpret_cast<float*>(take(TILE_ROWS * CHUNK * 4));
  uint16_t* weights = reinterpret_cast<uint16_t*>(take(TILE_ROWS * CHUNK * 2));
  float* m = reinterpret_cast<float*>(take(TILE_ROWS * 4));
  float* sum = reinterpret_cast<float*>(take(TILE_ROWS * 4));
  for (int32_t r = 0; r < rows; r++) {
    // Rows that only fill up a tile are zeros; `scores` is a buffer for the widened row here.
    memset(scores, 0, width * sizeof(float));
    if (r < job.rows) read_row(job.queries, job.first_row + r, job.head_dim, width, 1.0f, scores);
    row_to_bfloat16(scores, q + static_cast<int64_t>(r) * width, width);
    m[r] = -__builtin_inff();
    sum[r] = 0;
  }
  memset(out, 0, static_cast<size_t>(rows) * width * sizeof(float));
  memset(weights, 0, TILE_ROWS * CHUNK * 2);
  const int64_t bytes = static_cast<int64_t>(panel_bytes(job.head_dim));
  for (int32_t begin = 0; begin < job.panel_count; begin += CHUNK_PANELS) {
    const int32_t panels = job.panel_count - begin < CHUNK_PANELS ? job.panel_count - begin : CHUNK_PANELS;
    const char* values[CHUNK_PANELS];
    for (int32_t i = 0; i < panels; i++) {
      const int32_t panel = job.panels[begin + i];
      values[i] = job.packed_values + panel * bytes;
      for (int32_t r = 0; r < rows; r += 32)
        score_tiles(q + r * width, width, job.packed_keys + panel * bytes, scores + r * CHUNK + i * PANEL);
    }
    for (int32_t r = 0; r < job.rows; r++) {
      // The scale is applied here and not to the queries, which would be rounded to bf16 once more.
      float* row = scores + r * CHUNK;
      for (int32_t j = 0; j < panels * PANEL; j += LANES) store(row + j, load(row + j) * job.scale);
      for (int32_t i = 0; i < panels; i++) hide_padding(row + i * PANEL, job.valid[job.panels[begin + i]], PANEL);
      softmax_row(row, panels * PANEL, m[r], sum[r], out + static_cast<int64_t>(r) * width, width);
      row_to_bfloat16(row, weights + r * CHUNK, panels * PANEL);
    }
    for (int32_t r = 0; r < rows; r += 32) value_tiles(weights + r * CHUNK, values, panels, width, out + r * width);
  }
  finish_rows(job, out, width, m, sum);
}

#ifdef EMULATE
extern "C" const Kernel kernel_amx_emulated = {
    "amx_emulated", PANEL, can_run, panel_bytes, scratch_bytes, begin_thread, end_thread, pack, attend,
};
#else
extern "C" const Kernel kernel_amx = {
    "amx", PANEL, can_run, panel_bytes, scratch_bytes, begin_thread, end_thread, pack, attend,
};
#endif
