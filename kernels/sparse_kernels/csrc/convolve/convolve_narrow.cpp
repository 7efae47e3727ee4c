// Sparse convolution of bfloat16 in AMX tiles, 32 rows by 32 columns at a time, with sums in float32.
// With -DEMULATE tile instructions are plain loops, so that the data layout is tested anywhere.
#define LANES 16
#include "common/amx_tiles.h"
#include "convolve/convolve.h"
#include "convolve/places.h"

#include <utility>

static constexpr int32_t PANEL = 32;
static constexpr int32_t DEPTH = 32;  // channels, or pairs of rows, that one tile multiplies
static constexpr int32_t GRADIENT_CHANNELS = 64;
static constexpr int32_t GRADIENT_PAIRS = 256;  // multiplied at once: they stay in the second cache level
static constexpr int32_t STEPS = GRADIENT_PAIRS / DEPTH;

static inline int32_t padded(int32_t channels) { return (channels + DEPTH - 1) / DEPTH * DEPTH; }

static size_t packed_floats(int32_t depth) { return static_cast<size_t>(padded(depth)) * PANEL / 2; }

// For each DEPTH input channels two tiles of 16 output channels each: [input channel pair][output channel][2].
static void pack(const WeightJob& job) {
  const uint16_t* weight = static_cast<const uint16_t*>(job.weight);
  uint16_t* packed = reinterpret_cast<uint16_t*>(job.packed);
  for (int32_t j = 0; j < PANEL; j++) {
    const uint16_t* from = weight + j * job.stride_out;
    uint16_t* to = packed + j / 16 * 512 + j % 16 * 2;
    for (int32_t i = 0; i < padded(job.depth); i += 2) {
      uint16_t* cell = to + i / DEPTH * 1024 + i % DEPTH * 16;
      cell[0] = i < job.depth && j < job.valid ? from[i * job.stride_in] : 0;
      cell[1] = i + 1 < job.depth && j < job.valid ? from[(i + 1) * job.stride_in] : 0;
    }
  }
}

static size_t convolve_bytes(int32_t channels_in, int32_t panels) {
  return static_cast<size_t>(CONVOLVE_ROWS) * (padded(channels_in) * 2 + panels * PANEL * 4 + 4) + DEPTH * PANEL * 4 +
         SPARE_PLACES * 4;
}

static inline const uint16_t* row_at(const Rows& rows, int64_t row) {
  return static_cast<const uint16_t*>(rows.data) + row_offset(rows, row);
}

// One row, filled with zeros up to a multiple of DEPTH.
static inline void copy_row(const uint16_t* from, int32_t channels, uint16_t* to) {
  int32_t x = 0;
  for (; x + DEPTH <= channels; x += DEPTH) memcpy(to + x, from + x, DEPTH * 2);
  if (x == channels) return;
  memset(to + x, 0, DEPTH * 2);
  for (; x < channels; x++) to[x] = from[x];
}

// products (32 x 32) = rows times one panel; only the tiles of the upper 16 rows where TALL, left 16 columns where WIDE
// is false
template <bool TALL, bool WIDE>
static void multiply_tiles(const uint16_t* rows, int32_t depth, const char* packed, float* products) {
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  for (int32_t x = 0; x < depth; x += DEPTH, packed += 2 * TILE_BYTES) {
    tile_load<4>(rows + x, depth * 2);
    tile_load<6>(packed, 64);
    tile_multiply_bfloat16<0, 4, 6>();
    if constexpr (WIDE) tile_load<7>(packed + TILE_BYTES, 64), tile_multiply_bfloat16<1, 4, 7>();
    if constexpr (TALL) tile_load<5>(rows + 16 * depth + x, depth * 2), tile_multiply_bfloat16<2, 5, 6>();
    if constexpr (TALL && WIDE) tile_multiply_bfloat16<3, 5, 7>();
  }
  tile_store<0>(products, PANEL * 4);
  if constexpr (WIDE) tile_store<1>(products + 16, PANEL * 4);
  if constexpr (TALL) tile_store<2>(products + 16 * PANEL, PANEL * 4);
  if constexpr (TALL && WIDE) tile_store<3>(products + 16 * PANEL + 16, PANEL * 4);
}

// sums, at the places of `count` rows, += these rows times one panel
template <bool WIDE>
static void add_products(
    const uint16_t* rows, int32_t depth, const char* packed, int32_t count, const int32_t* places, float* products,
    float* sums, int32_t width) {
  for (int32_t first = 0; first < count; first += 32) {
    const int32_t left = count - first < 32 ? count - first : 32;
    const uint16_t* some = rows + static_cast<int64_t>(first) * depth;
    (left > 16 ? multiply_tiles<true, WIDE> : multiply_tiles<false, WIDE>)(some, depth, packed, products);
    for (int32_t r = 0; r < left; r++) {
      float* to = sums + static_cast<int64_t>(places[first + r]) * width;
      for (int32_t x = 0; x < (WIDE ? PANEL : PANEL / 2); x += LANES)
        store(to + x, load(to + x) + load(products + r * PANEL + x));
    }
  }
}

static void add_slots(const ConvolveJob& job, float* sums, float* products, uint16_t* rows, int32_t* places) {
  const int32_t depth = padded(job.channels_in), width = job.panels * PANEL;
  const size_t bytes = packed_floats(job.channels_in) * sizeof(float);
  const char* packed = reinterpret_cast<const char*>(job.packed);
  for (int32_t slot = 0; slot < job.slots; slot++) {
    const int32_t* map = job.map + slot * job.map_stride;
    const int32_t count = find_places(map, job.rows, places);
    for (int32_t i = 0; i < count; i++)
      copy_row(row_at(job.inputs, map[places[i]]), job.channels_in, rows + static_cast<int64_t>(i) * depth);
    for (int32_t panel = 0; panel < job.panels; panel++, packed += bytes) {
      const bool half = job.channels_out - panel * PANEL <= 16;
      (half ? add_products<false> : add_products<true>)(
          rows, depth, packed, count, places, products, sums + panel * PANEL, width);
    }
  }
}

static bool convolve(const ConvolveJob& job) {
  const int32_t depth = padded(job.channels_in), width = job.panels * PANEL;
  float* sums = reinterpret_cast<float*>(job.scratch);
  float* products = sums + static_cast<int64_t>(CONVOLVE_ROWS) * width;
  uint16_t* rows = reinterpret_cast<uint16_t*>(products + DEPTH * PANEL);
  int32_t* places = reinterpret_cast<int32_t*>(rows + static_cast<int64_t>(CONVOLVE_ROWS) * depth);
  for (int32_t slot = 0; slot < job.slots; slot++)
    if (!names_only(job.input_rows, job.map + slot * job.map_stride, job.rows)) return false;
  memset(sums, 0, static_cast<size_t>(job.rows) * width * sizeof(float));
  begin_thread();
  add_slots(job, sums, products, rows, places);
  end_thread();
  for (int32_t r = 0; r < job.rows; r++) {
    const float* from = sums + static_cast<int64_t>(r) * width;
    write_row(job.out, r * job.out_stride, BFLOAT16, job.channels_out, [&](int32_t x) { return from[x]; });
  }
  return true;
}

static size_t gradient_bytes(int32_t panels) {
  const size_t width = static_cast<size_t>(panels) * PANEL;
  return 2 * GRADIENT_CHANNELS * width * 4 + GRADIENT_PAIRS * (width + GRADIENT_CHANNELS) * 2 +
         (GRADIENT_ROWS + SPARE_PLACES) * 4;
}

// Channels of two rows (null for zeros) side by side in lanes of 32 bits; those from `valid` on are zeros.
static inline vi pair_up(const uint16_t* low, const uint16_t* high, int32_t valid) {
  typedef uint16_t Channels __attribute__((vector_size(LANES * 2)));
  Channels a = {}, b = {};
  const int32_t bytes = (valid < LANES ? valid : LANES) * 2;
  if (bytes == LANES * 2) {  // a copy of constant size is one instruction
    if (low) memcpy(&a, low, sizeof a);
    if (high) memcpy(&b, high, sizeof b);
  } else {
    if (low) memcpy(&a, low, bytes);
    if (high) memcpy(&b, high, bytes);
  }
  return __builtin_convertvector(a, vi) | __builtin_convertvector(b, vi) << 16;
}

// In blocks of S x S lanes: those above the diagonal of each 2S x 2S against those below it.
template <int S, int... I>
static inline __attribute__((always_inline)) void exchange(vi (&rows)[16], std::integer_sequence<int, I...>) {
#pragma GCC unroll 16
  for (int r = 0; r < 16; r++) {
    if (r & S) continue;
    const vi a = rows[r], b = rows[r + S];
#ifdef __clang__
    rows[r] = __builtin_shufflevector(a, b, (I & S ? 16 + I - S : I)...);
    rows[r + S] = __builtin_shufflevector(a, b, (I & S ? 16 + I : I + S)...);
#else  // GCC has the other one since 12
    rows[r] = __builtin_shuffle(a, b, vi{(I & S ? 16 + I - S : I)...});
    rows[r + S] = __builtin_shuffle(a, b, vi{(I & S ? 16 + I : I + S)...});
#endif
  }
}

static inline __attribute__((always_inline)) void transpose(vi (&rows)[16]) {
  constexpr auto lanes = std::make_integer_sequence<int, 16>();
  exchange<1>(rows, lanes), exchange<2>(rows, lanes), exchange<4>(rows, lanes), exchange<8>(rows, lanes);
}

// Up to DEPTH rows, two to a line of cells, 16 channels to a tile; with TRANSPOSED a line of the tile is a channel.
template <bool TRANSPOSED>
static void fill_tiles(const uint16_t* const (&rows)[DEPTH], int32_t channels, int32_t tile_step, char* tiles) {
  for (int32_t x = 0; x < channels; x += 16, tiles += static_cast<int64_t>(tile_step) * TILE_BYTES) {
    vi lines[16];
    for (int32_t i = 0; i < 16; i++) {
      const uint16_t *low = rows[2 * i], *high = rows[2 * i + 1];
      lines[i] = pair_up(low ? low + x : nullptr, high ? high + x : nullptr, channels - x);
    }
    if constexpr (TRANSPOSED) transpose(lines);
    memcpy(tiles, lines, TILE_BYTES);
  }
}

// Inputs: for each 16 channels STEPS tiles [channel][pair]; gradients: for each step `width / 16` tiles [pair][channel].
static int32_t fill_pairs(
    const GradientJob& job, int64_t first, const int32_t* places, int32_t pairs, char* inputs, char* gradients) {
  const int32_t groups = job.panels * PANEL / 16;
  int32_t step = 0;
  for (int32_t begin = 0; begin < pairs; begin += DEPTH, step++) {
    const uint16_t *from[DEPTH], *to[DEPTH];
    for (int32_t i = 0; i < DEPTH; i++) {
      const bool there = begin + i < pairs;
      const int64_t row = there ? first + places[begin + i] : 0;
      from[i] = there ? row_at(job.inputs, job.map[row]) : nullptr;
      to[i] = there ? row_at(job.gradients, row) : nullptr;
    }
    fill_tiles<true>(from, job.channels, STEPS, inputs + step * TILE_BYTES);
    fill_tiles<false>(to, job.channels_out, 1, gradients + static_cast<int64_t>(step) * groups * TILE_BYTES);
  }
  return step;
}

// sums (32 x 32) += inputs transposed times gradients, over some steps
static void add_outer(const char* inputs, const char* gradients, int64_t step_bytes, int32_t steps, int32_t width, float* sums) {
  float* lower = sums + 16 * width;
  tile_load<0>(sums, width * 4), tile_load<1>(sums + 16, width * 4);
  tile_load<2>(lower, width * 4), tile_load<3>(lower + 16, width * 4);
  for (int32_t i = 0; i < steps; i++, inputs += TILE_BYTES, gradients += step_bytes) {
    tile_load<4>(inputs, 64), tile_load<5>(inputs + STEPS * TILE_BYTES, 64);
    tile_load<6>(gradients, 64), tile_load<7>(gradients + TILE_BYTES, 64);
    tile_multiply_bfloat16<0, 4, 6>(), tile_multiply_bfloat16<1, 4, 7>();
    tile_multiply_bfloat16<2, 5, 6>(), tile_multiply_bfloat16<3, 5, 7>();
  }
  tile_store<0>(sums, width * 4), tile_store<1>(sums + 16, width * 4);
  tile_store<2>(lower, width * 4), tile_store<3>(lower + 16, width * 4);
}

// The sums of all pairs; false where the map names a row that is not there.
static bool add_pairs(const GradientJob& job, float* sums, float* totals, char* inputs, char* gradients, int32_t* places) {
  const int32_t width = job.panels * PANEL;
  const int64_t step_bytes = static_cast<int64_t>(width / 16) * TILE_BYTES;
  for (int64_t first = 0; first < job.rows; first += GRADIENT_ROWS) {
    const int64_t left = job.rows - first;
    const int32_t rows = static_cast<int32_t>(left < GRADIENT_ROWS ? left : GRADIENT_ROWS);
    if (!names_only(job.input_rows, job.map + first, rows)) return false;
    const int32_t found = find_places(job.map + first, rows, places);
    for (int32_t begin = 0; begin < found; begin += GRADIENT_PAIRS) {
      const int32_t pairs = found - begin < GRADIENT_PAIRS ? found - begin : GRADIENT_PAIRS;
      const int32_t steps = fill_pairs(job, first, places + begin, pairs, inputs, gradients);
      for (int32_t i = 0; i < job.channels; i += 32)
        for (int32_t x = 0; x < width; x += PANEL)
          add_outer(inputs + i / 16 * STEPS * TILE_BYTES, gradients + x / 16 * TILE_BYTES, step_bytes, steps, width,
                    sums + static_cast<int64_t>(i) * width + x);
    }
    put_aside(sums, totals, static_cast<int64_t>(GRADIENT_CHANNELS) * width);
  }
  return true;
}

static bool gradient(const GradientJob& job) {
  const int32_t width = job.panels * PANEL;
  float* sums = reinterpret_cast<float*>(job.scratch);
  float* totals = sums + static_cast<int64_t>(GRADIENT_CHANNELS) * width;
  char* inputs = reinterpret_cast<char*>(totals + static_cast<int64_t>(GRADIENT_CHANNELS) * width);
  char* gradients = inputs + GRADIENT_PAIRS * GRADIENT_CHANNELS * 2;
  int32_t* places = reinterpret_cast<int32_t*>(gradients + static_cast<int64_t>(GRADIENT_PAIRS) * width * 2);
  memset(sums, 0, 2 * static_cast<size_t>(GRADIENT_CHANNELS) * width * sizeof(float));
  begin_thread();
  const bool named = add_pairs(job, sums, totals, inputs, gradients, places);
  end_thread();
  for (int32_t i = 0; i < job.channels; i++)
    memcpy(job.out + i * job.out_stride, totals + static_cast<int64_t>(i) * width,
           static_cast<size_t>(job.channels_out) * sizeof(float));
  return named;
}

extern "C" const Convolver KERNEL = {
    NAME, PANEL, GRADIENT_CHANNELS, PANEL, can_run, packed_floats, convolve_bytes, gradient_bytes,
    pack, convolve, gradient, nullptr, nullptr,
};
