// Block-sparse attention on AMX tiles: bf16 products with float32 sums. All inputs are rounded to bf16.
// With -DINT8 queries and keys are rounded to int8 instead, by one scale a block, the keys less their mean.
// Each is compiled twice: with -DEMULATE tile instructions are plain loops, so that the data layout is tested anywhere.
// There is no int8 kernel for AVX2: 32 products of bytes take three instructions there (maddubs, madd, add), beside
// those that give one operand its sign back, which gains nothing worth having over float32, whose FMA does 8 in one.
#include "amx_tiles.h"

#ifdef INT8
typedef int8_t Part;  // what queries and keys are rounded to
#else
typedef uint16_t Part;
#endif

static constexpr int32_t PANEL = 32;  // keys: the depth of one tile in the product with the values
static constexpr int32_t CHUNK = 128;
static constexpr int32_t CHUNK_PANELS = CHUNK / PANEL;
static constexpr int32_t DEPTH = 64 / sizeof(Part);  // channels in one tile of queries or keys
static constexpr int32_t LANE = 4 / sizeof(Part);    // neighbouring channels that are multiplied in one 32-bit lane

static inline int32_t padded(int32_t head_dim) { return (head_dim + 31) / 32 * 32; }
static inline int32_t padded_keys(int32_t head_dim) { return (head_dim + DEPTH - 1) / DEPTH * DEPTH; }

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

// Rounds a row to what the tiles multiply; `largest` is that of its block. NaN comes back through the scale.
static inline void row_to_parts(const float* from, Part* to, int32_t count, float largest) {
#ifdef INT8
  const float inverse = 127.0f / (largest > 1e-30f ? largest : 1e-30f);
  for (int32_t x = 0; x < count; x++) {
    const int32_t nearest = static_cast<int32_t>(__builtin_rintf(from[x] * inverse));
    to[x] = static_cast<Part>(nearest);
  }
#else
  (void)largest;
  row_to_bfloat16(from, to, count);
#endif
}

static inline void subtract_mean(float* row, const float* mean, int32_t head_dim) {
  if (mean)
    for (int32_t x = 0; x < head_dim; x++) row[x] -= mean[x];
}

// Keys of a panel: for each 16 keys, for each DEPTH channels one tile [LANE channels][key][LANE].
// Values of a panel: for each 16 channels one tile [key pair][channel][2].
static void pack(const PanelJob& job) {
  const int32_t width = padded(job.head_dim), depth = padded_keys(job.head_dim);
  Part* keys = static_cast<Part*>(job.packed_keys);
  uint16_t* values = static_cast<uint16_t*>(job.packed_values);
  alignas(64) float row[512];
  alignas(64) Part parts[512];
  alignas(64) uint16_t narrow[512];
  for (int32_t j = 0; j < PANEL; j++) {
    if (j < job.valid) {
      read_row(job.keys, job.first_row + j, job.head_dim, depth, 1.0f, row);
      subtract_mean(row, job.key_mean, job.head_dim);
    } else {
      memset(row, 0, depth * sizeof(float));
    }
    row_to_parts(row, parts, depth, job.key_largest);
    Part* group = keys + static_cast<int64_t>(j / 16) * 16 * depth;
    for (int32_t x = 0; x < depth; x++) group[x / LANE * 16 * LANE + j % 16 * LANE + x % LANE] = parts[x];
    if (j < job.valid) {
      read_row(job.values, job.first_row + j, job.head_dim, width, 1.0f, row);
    } else {
      memset(row, 0, width * sizeof(float));
    }
    row_to_bfloat16(row, narrow, width);
    for (int32_t x = 0; x < width; x++) values[x / 16 * 512 + j / 2 * 32 + x % 16 * 2 + j % 2] = narrow[x];
  }
}

#ifdef INT8
static float largest(const Rows& rows, int64_t first_row, int64_t count, int32_t head_dim, const float* mean) {
  alignas(64) float row[512];
  vf best = {};
  const vi magnitude = vi{} + 0x7fffffff;
  const int32_t width = (head_dim + LANES - 1) / LANES * LANES;
  for (int64_t i = 0; i < count; i++) {
    read_row(rows, first_row + i, head_dim, width, 1.0f, row);
    subtract_mean(row, mean, head_dim);
    for (int32_t x = 0; x < width; x += LANES) {
      const vf size = (vf)((vi)load(row + x) & magnitude);
      best = (size > best) | (size != size) ? size : best;  // NaN is taken up and kept
    }
  }
  return horizontal_max(best) + horizontal_sum(best - best);  // plus 0, or NaN where a lane is not finite
}
#endif

static size_t panel_bytes(int32_t head_dim) { return static_cast<size_t>(padded(head_dim)) * PANEL * 2; }

static size_t scratch_bytes(int32_t head_dim) {
  const size_t width = padded(head_dim);
  return TILE_ROWS * (padded_keys(head_dim) * sizeof(Part) + width * 4 + CHUNK * 4 + CHUNK * 2 + 12) + 64 * 8;
}

template <int C, int A, int B>
static inline __attribute__((always_inline)) void multiply_parts() {
#ifdef INT8
  tile_multiply_int8<C, A, B>();
#else
  tile_multiply_bfloat16<C, A, B>();
#endif
}

// scores (32 x 32, stride CHUNK) = queries (32 x depth) times one panel of keys; int8 leaves integers there
static void score_tiles(const Part* q, int32_t depth, const char* keys, float* scores) {
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>(), tile_zero<3>();
  const int64_t bytes = depth * static_cast<int64_t>(sizeof(Part));
  for (int32_t x = 0; x < depth; x += DEPTH) {
    tile_load<4>(q + x, bytes);
    tile_load<5>(q + 16 * depth + x, bytes);
    tile_load<6>(keys + x / DEPTH * TILE_BYTES, 64);
    tile_load<7>(keys + 16 * bytes + x / DEPTH * TILE_BYTES, 64);
    multiply_parts<0, 4, 6>(), multiply_parts<1, 4, 7>(), multiply_parts<2, 5, 6>(), multiply_parts<3, 5, 7>();
  }
  tile_store<0>(scores, CHUNK * 4), tile_store<1>(scores + 16, CHUNK * 4);
  tile_store<2>(scores + 16 * CHUNK, CHUNK * 4), tile_store<3>(scores + 16 * CHUNK + 16, CHUNK * 4);
}

// What a score of this panel is multiplied with, and the score itself.
static inline float score_factor(const TileJob& job, int32_t panel) {
#ifdef INT8
  return job.scale * (job.query_largest / 127.0f) * (job.key_largest[panel] / 127.0f);
#else
  (void)panel;
  return job.scale;
#endif
}
static inline vf read_scores(const float* from) {
#ifdef INT8
  vi integers;
  memcpy(&integers, from, sizeof integers);
  return __builtin_convertvector(integers, vf);
#else
  return load(from);
#endif
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
      tile_multiply_bfloat16<0, 4, 6>(), tile_multiply_bfloat16<1, 4, 7>();
      tile_multiply_bfloat16<2, 5, 6>(), tile_multiply_bfloat16<3, 5, 7>();
    }
    tile_store<0>(to, width * 4), tile_store<1>(to + 16, width * 4);
    tile_store<2>(to + 16 * width, width * 4), tile_store<3>(to + 16 * width + 16, width * 4);
  }
}

// The score that a query has with the mean of the keys, in units of log2.
static inline float mean_score(const TileJob& job, const float* query) {
  float sum = 0;
  if (job.key_mean)
    for (int32_t x = 0; x < job.head_dim; x++) sum += query[x] * job.key_mean[x];
  return sum * job.scale;
}

static void attend(const TileJob& job) {
  const int32_t width = padded(job.head_dim), depth = padded_keys(job.head_dim), rows = (job.rows + 31) / 32 * 32;
  char* free = job.scratch;
  auto take = [&](size_t bytes) {
    char* start = free;
    free += (bytes + 63) / 64 * 64;
    return start;
  };
  Part* q = reinterpret_cast<Part*>(take(static_cast<size_t>(TILE_ROWS) * depth * sizeof(Part)));
  float* out = reinterpret_cast<float*>(take(static_cast<size_t>(TILE_ROWS) * width * 4));
  float* scores = reinterpret_cast<float*>(take(TILE_ROWS * CHUNK * 4));
  uint16_t* weights = reinterpret_cast<uint16_t*>(take(TILE_ROWS * CHUNK * 2));
  float* m = reinterpret_cast<float*>(take(TILE_ROWS * 4));
  float* sum = reinterpret_cast<float*>(take(TILE_ROWS * 4));
  float* shift = reinterpret_cast<float*>(take(TILE_ROWS * 4));  // what the keys' mean takes off the LSE
  for (int32_t r = 0; r < rows; r++) {
    // Rows that only fill up a tile are zeros; `scores` is a buffer for the widened row here.
    memset(scores, 0, depth * sizeof(float));
    if (r < job.rows) read_row(job.queries, job.first_row + r, job.head_dim, depth, 1.0f, scores);
    row_to_parts(scores, q + static_cast<int64_t>(r) * depth, depth, job.query_largest);
    shift[r] = mean_score(job, scores);
    m[r] = -__builtin_inff();
    sum[r] = 0;
  }
  memset(out, 0, static_cast<size_t>(rows) * width * sizeof(float));
  memset(weights, 0, TILE_ROWS * CHUNK * 2);
  const int64_t bytes = static_cast<int64_t>(panel_bytes(job.head_dim));
  for (int32_t begin = 0; begin < job.panel_count; begin += CHUNK_PANELS) {
    const int32_t panels = job.panel_count - begin < CHUNK_PANELS ? job.panel_count - begin : CHUNK_PANELS;
    const char* values[CHUNK_PANELS];
    float factors[CHUNK_PANELS];
    for (int32_t i = 0; i < panels; i++) {
      const int32_t panel = job.panels[begin + i];
      values[i] = job.packed_values + panel * bytes;
      factors[i] = score_factor(job, panel);
      for (int32_t r = 0; r < rows; r += 32)
        score_tiles(q + r * depth, depth, job.packed_keys + panel * bytes, scores + r * CHUNK + i * PANEL);
    }
    for (int32_t r = 0; r < job.rows; r++) {
      // The scale is applied here and not to the queries, which would be rounded to bf16 once more.
      float* row = scores + r * CHUNK;
      for (int32_t j = 0; j < panels * PANEL; j += LANES) store(row + j, read_scores(row + j) * factors[j / PANEL]);
      for (int32_t i = 0; i < panels; i++) hide_padding(row + i * PANEL, job.valid[job.panels[begin + i]], PANEL);
      softmax_row(row, panels * PANEL, m[r], sum[r], out + static_cast<int64_t>(r) * width, width);
      row_to_bfloat16(row, weights + r * CHUNK, panels * PANEL);
    }
    for (int32_t r = 0; r < rows; r += 32) value_tiles(weights + r * CHUNK, values, panels, width, out + r * width);
  }
  for (int32_t r = 0; r < job.rows; r++) m[r] += shift[r];
  finish_rows(job, out, width, m, sum);
}

#ifdef INT8
#define NAME(suffix) "amx_int8" suffix
#define KERNEL(suffix) kernel_amx_int8##suffix
#else
#define NAME(suffix) "amx" suffix
#define KERNEL(suffix) kernel_amx##suffix
static constexpr decltype(Kernel::largest) largest = nullptr;
#endif
#ifdef EMULATE
extern "C" const Kernel KERNEL(_emulated) = {
    NAME("_emulated"), PANEL, can_run, panel_bytes, scratch_bytes, begin_thread, end_thread, pack, attend, largest,
};
#else
extern "C" const Kernel KERNEL() = {
    NAME(""), PANEL, can_run, panel_bytes, scratch_bytes, begin_thread, end_thread, pack, attend, largest,
};
#endif
