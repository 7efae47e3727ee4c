// AMX tiles: eight of 16 rows with 64 bytes each. With -DEMULATE their instructions are plain loops.
#pragma once
#include "common/vector.h"

#ifndef EMULATE
#include <sys/syscall.h>
#include <unistd.h>
#endif

static constexpr int32_t TILE_BYTES = 1024;  // 16 rows of 64 bytes

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
template <int C, int A, int B>
static inline void tile_multiply_bfloat16() {
  float* c = reinterpret_cast<float*>(tiles.tile[C]);
  const uint16_t* a = reinterpret_cast<const uint16_t*>(tiles.tile[A]);
  const uint16_t* b = reinterpret_cast<const uint16_t*>(tiles.tile[B]);
  for (int r = 0; r < 16; r++)
    for (int k = 0; k < 16; k++)
      for (int n = 0; n < 16; n++)
        for (int half = 0; half < 2; half++)
          c[r * 16 + n] += widen_bfloat16(a[r * 32 + 2 * k + half]) * widen_bfloat16(b[k * 32 + 2 * n + half]);
}
template <int C, int A, int B>
static inline void tile_multiply_int8() {
  int32_t* c = reinterpret_cast<int32_t*>(tiles.tile[C]);
  const int8_t* a = reinterpret_cast<const int8_t*>(tiles.tile[A]);
  const int8_t* b = reinterpret_cast<const int8_t*>(tiles.tile[B]);
  for (int r = 0; r < 16; r++)
    for (int k = 0; k < 16; k++)
      for (int n = 0; n < 16; n++)
        for (int part = 0; part < 4; part++) c[r * 16 + n] += a[r * 64 + 4 * k + part] * b[k * 64 + 4 * n + part];
}
static void begin_thread() {}
static void end_thread() {}
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
static inline __attribute__((always_inline)) void tile_multiply_bfloat16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
}
template <int C, int A, int B>
static inline __attribute__((always_inline)) void tile_multiply_int8() {
  __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(C), "i"(A), "i"(B));
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
  // The intrinsic of GCC 12 declares only eight bytes of the configuration as read, and the compiler drops the rest.
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
}
static void end_thread() { __asm__ volatile("tilerelease"); }

static bool amx_is_usable() {
  uint32_t a, b, c, d;
  __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
  const bool amx_bf16 = (d >> 22 & 1) && (d >> 24 & 1);
#ifdef INT8
  if (!(d >> 25 & 1)) return false;
#endif
  // All that these files are compiled for: a virtual machine may hide parts of it.
  if (!amx_bf16 || !__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512f") ||
      !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("fma"))
    return false;
  constexpr long request_permission = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
}
#endif

static bool can_run() { return CAN_RUN; }
