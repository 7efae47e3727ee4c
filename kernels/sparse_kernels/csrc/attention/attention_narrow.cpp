// Block-sparse attention with bf16 products and float32 sums: all inputs are rounded to bf16.
// With -DINT8 queries and keys are rounded to int8 instead, by one scale a block, the keys less their mean.
// With -DROWS the products are made in AVX-512 registers, without in AMX tiles; with -DEMULATE tile instructions are
// plain loops, so that the data layout is tested anywhere.
// There is no int8 kernel for AVX2: 32 products of bytes take three instructions there (maddubs, madd, add), beside
// those that give one operand its sign back, which gains nothing worth having over float32, whose FMA does 8 in one.
#define LANES 16
#include "attention/softmax.h"
#include "common/transpose.h"

#ifdef INT8
typedef int8_t Part;  // what queries and keys are rounded to
#else
typedef uint16_t Part;
#endif

static constexpr int32_t PANEL = 32;  // keys: the depth of one tile in the product with the values
static constexpr int32_t DEPTH = 64 / sizeof(Part);  // channels in one tile of queries or keys
static constexpr int32_t LANE = 4 / sizeof(Part);    // neighbouring channels that are multiplied in one 32-bit lane

static inline int32_t padded(int32_t head_dim) { return (head_dim + 31) / 32 * 32; }
static inline int32_t padded_keys(int32_t head_dim) { return (head_dim + DEPTH - 1) / DEPTH * DEPTH; }

// These say how many queries a tile has (TILE_ROWS), how many of them are scored, weighed and multiplied with values at a
// time (GROUP_ROWS), and with how many keys (CHUNK); and whether score_panels and finish_scores scale all scores (SCALES_SCORES).
#ifdef ROWS
#include "attention/narrow_rows.h"
#else
#include "attention/narrow_tiles.h"
#endif
static constexpr int32_t CHUNK_PANELS = CHUNK / PANEL;

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

static inline void store_bfloat16(vf left, vf right, uint16_t* to) {
#ifdef __AVX512BF16__
  const __m512bh narrow = _mm512_cvtne2ps_pbh((__m512)right, (__m512)left);
  memcpy(to, &narrow, sizeof narrow);
#else
  for (int32_t j = 0; j < LANES; j++) to[j] = to_bfloat16(left[j]), to[LANES + j] = to_bfloat16(right[j]);
#endif
}

static inline void subtract_mean(float* row, const float* mean, int32_t head_dim) {
  if (mean)
    for (int32_t x = 0; x < head_dim; x++) row[x] -= mean[x];
}

// One row in bf16, filled with zeros up to `width`; what is bf16 already is copied.
static inline void read_bfloat16(const Rows& rows, int64_t row, int32_t head_dim, int32_t width, uint16_t* to) {
  if (rows.element == BFLOAT16) {
    memcpy(to, static_cast<const uint16_t*>(rows.data) + row_offset(rows, row), head_dim * sizeof(uint16_t));
    memset(to + head_dim, 0, (width - head_dim) * sizeof(uint16_t));
    return;
  }
  alignas(64) float wide[512];
  read_row(rows, row, head_dim, width, 1.0f, wide);
  row_to_bfloat16(wide, to, width);
}

// One row of queries or keys as the products take it, less `mean` (or null); `wide` gets it in float32 for int8.
static inline void read_parts(
    const Rows& rows, int64_t row, int32_t head_dim, int32_t depth, const float* mean, float largest, float* wide,
    Part* to) {
#ifdef INT8
  read_row(rows, row, head_dim, depth, 1.0f, wide);
  subtract_mean(wide, mean, head_dim);
  const float inverse = 127.0f / (largest > 1e-30f ? largest : 1e-30f);  // NaN comes back through the scale
  for (int32_t x = 0; x < depth; x++) {
    const int32_t nearest = static_cast<int32_t>(__builtin_rintf(wide[x] * inverse));
    to[x] = static_cast<Part>(nearest);
  }
#else
  (void)mean, (void)largest, (void)wide;
  read_bfloat16(rows, row, head_dim, depth, to);
#endif
}

// Keys of a panel: for each 16 keys, for each DEPTH channels one tile [LANE channels][key][LANE].
// Values of a panel: for each 16 channels one tile [key pair][channel][2].
static void pack(const PanelJob& job) {
  const int32_t width = padded(job.head_dim), depth = padded_keys(job.head_dim);
  Part* keys = static_cast<Part*>(job.packed_keys);
  uint16_t* values = static_cast<uint16_t*>(job.packed_values);
  alignas(64) float wide[512];
  alignas(64) Part group[LANES * 512];
  alignas(64) uint16_t pair[2][512];
  for (int32_t j = 0; j < PANEL; j++) {
    const int64_t row = job.first_row + j;
    Part* parts = group + j % LANES * depth;
    if (j < job.valid) {
      read_parts(job.keys, row, job.head_dim, depth, job.key_mean, job.key_largest, wide, parts);
      read_bfloat16(job.values, row, job.head_dim, width, pair[j % 2]);
    } else {
      memset(parts, 0, depth * sizeof(Part));
      memset(pair[j % 2], 0, width * sizeof(uint16_t));
    }
    if (j % 2 == 0) continue;
    for (int32_t x = 0; x < width; x += 16) {
      uint16_t* tile = values + x / 16 * 512 + j / 2 * 32;
      for (int32_t i = 0; i < 16; i++) tile[2 * i] = pair[0][x + i], tile[2 * i + 1] = pair[1][x + i];
    }
    if (j % LANES != LANES - 1) continue;
    Part* packed = keys + static_cast<int64_t>(j - (LANES - 1)) * depth;
    transpose_rows(reinterpret_cast<float*>(group), depth / LANE, depth / LANE, reinterpret_cast<float*>(packed), LANES);
  }
  finish_panel(keys, depth);
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

// The spare bytes hold what a kernel keeps of a panel beside it.
static size_t panel_bytes(int32_t head_dim) { return static_cast<size_t>(padded(head_dim)) * PANEL * 2 + SPARE_BYTES; }

static size_t scratch_bytes(int32_t head_dim) {
  const size_t width = padded(head_dim);
  return TILE_ROWS * (padded_keys(head_dim) * sizeof(Part) + width * 4 + LANES * 4 + 8) + GROUP_ROWS * CHUNK * 6 + 64 * 8;
}

// What a score of this panel is multiplied with.
static inline float score_factor(const TileJob& job, int32_t panel) {
#ifdef INT8
  return job.scale * (job.query_largest / 127.0f) * (job.key_largest[panel] / 127.0f);
#else
  (void)panel;
  return job.scale;
#endif
}
// The score that a query has with the mean of the keys, in units of log2.
static inline float mean_score(const TileJob& job, const float* query) {
  float sum = 0;
  if (job.key_mean)
    for (int32_t x = 0; x < job.head_dim; x++) sum += query[x] * job.key_mean[x];
  return sum * job.scale;
}

// As softmax_row, but the weights are rounded to bf16, and the scores are still to be multiplied with `factor`.
static inline void weigh_row(
    const float* scores, float factor, int32_t columns, float& m, float* sums, float* out, int32_t width, uint16_t* weights) {
  vf best = load(scores) * factor, total = load(sums);
  for (int32_t j = LANES; j < columns; j += LANES) best = larger(load(scores + j) * factor, best);
  raise_maximum(best, m, total, out, width);
  const vf maximum = broadcast(m);
  for (int32_t j = 0; j < columns; j += 2 * LANES) {
    const vf left = exp2_vector(load(scores + j) * factor - maximum);
    const vf right = exp2_vector(load(scores + j + LANES) * factor - maximum);
    total += left + right;
    store_bfloat16(left, right, weights + j);
  }
  store(sums, total);
}

// Where a tile's rows lie while they are attended.
struct Buffers {
  int32_t width, depth, rows;
  Part* q;
  float *out, *scores, *m, *sums, *shift;  // LANES partial sums a row; what the keys' mean takes off the LSE
  uint16_t* weights;
};

static Buffers lay_out(const TileJob& job) {
  Buffers at;
  at.width = padded(job.head_dim), at.depth = padded_keys(job.head_dim), at.rows = padded_rows(job.rows);
  char* free = job.scratch;
  auto take = [&](size_t bytes) {
    char* start = free;
    free += (bytes + 63) / 64 * 64;
    return start;
  };
  at.q = reinterpret_cast<Part*>(take(static_cast<size_t>(TILE_ROWS) * at.depth * sizeof(Part)));
  at.out = reinterpret_cast<float*>(take(static_cast<size_t>(TILE_ROWS) * at.width * 4));
  at.scores = reinterpret_cast<float*>(take(GROUP_ROWS * CHUNK * 4));
  at.weights = reinterpret_cast<uint16_t*>(take(GROUP_ROWS * CHUNK * 2));
  at.m = reinterpret_cast<float*>(take(TILE_ROWS * 4));
  at.sums = reinterpret_cast<float*>(take(TILE_ROWS * LANES * 4));
  at.shift = reinterpret_cast<float*>(take(TILE_ROWS * 4));
  return at;
}

static void begin_rows(const TileJob& job, const Buffers& at) {
  alignas(64) float wide[512];
  alignas(64) Part parts[512];
  for (int32_t r = 0; r < at.rows; r++) {
    Part* row = query_row(at.q, r, at.depth, parts);
    if (r < job.rows)
      read_parts(job.queries, job.first_row + r, job.head_dim, at.depth, nullptr, job.query_largest, wide, row);
    else
      memset(row, 0, at.depth * sizeof(Part));  // rows that only fill up a tile
    store_query(row, r, at.depth, at.q);
    at.shift[r] = r < job.rows ? mean_score(job, wide) : 0;
    at.m[r] = -__builtin_inff();
  }
  memset(at.out, 0, static_cast<size_t>(at.rows) * at.width * sizeof(float));
  memset(at.sums, 0, static_cast<size_t>(at.rows) * LANES * sizeof(float));
}

// The panels that are taken together, by one group of rows after another.
struct Chunk {
  int32_t panels;
  const char *keys[CHUNK_PANELS], *values[CHUNK_PANELS];
  float factors[CHUNK_PANELS];  // what a score of each is multiplied with
  const uint32_t* visible;      // of each, or null for summaries
  const float* summaries;       // what is added to the scores, or null for keys
  bool plain;                   // nothing is hidden, nothing added
};

static Chunk take_panels(const TileJob& job, int32_t begin) {
  const int64_t bytes = static_cast<int64_t>(panel_bytes(job.head_dim));
  const int32_t keys_end = job.panel_count - job.summary_count;
  Chunk chunk;
  chunk.panels = next_panels(job, begin, CHUNK_PANELS);
  chunk.visible = begin < keys_end ? job.visible + begin : nullptr;
  chunk.summaries = begin < keys_end ? nullptr : job.weights + static_cast<int64_t>(begin - keys_end) * PANEL;
  chunk.plain = !chunk.summaries;
  for (int32_t i = 0; i < chunk.panels; i++) {
    const int32_t panel = job.panels[begin + i];
    chunk.keys[i] = job.packed_keys + panel * bytes;
    chunk.values[i] = job.packed_values + panel * bytes;
    // The scale is applied to the scores and not to the queries, which would be rounded once more.
    chunk.factors[i] = score_factor(job, panel);
    chunk.plain = chunk.plain && chunk.visible[i] == every_key(PANEL);
  }
  return chunk;
}

// The scores of one row as weigh_row takes them where it is not to multiply them with a factor.
static void scale_and_hide(const Chunk& chunk, float* row) {
  for (int32_t i = 0; i < chunk.panels; i++)
    finish_scores(row + i * PANEL, chunk.factors[i], chunk.visible ? chunk.visible[i] : every_key(PANEL));
  if (chunk.summaries) weigh_summaries(row, chunk.summaries, chunk.panels * PANEL);
}

static void attend_group(const TileJob& job, const Buffers& at, const Chunk& chunk, int32_t first) {
  const int32_t rows = at.rows - first < GROUP_ROWS ? at.rows - first : GROUP_ROWS;
  const int32_t valid = job.rows - first < rows ? job.rows - first : rows, columns = chunk.panels * PANEL;
  const bool finished = SCALES_SCORES || !chunk.plain;
  const float factor = finished ? 1.0f : job.scale;
  float* out = at.out + static_cast<int64_t>(first) * at.width;
  score_panels(query_at(at.q, first, at.depth), rows, at.depth, chunk.keys, chunk.factors, chunk.panels, at.scores);
  for (int32_t r = 0; r < valid; r++) {
    if (finished) scale_and_hide(chunk, at.scores + r * CHUNK);
    weigh_row(at.scores + r * CHUNK, factor, columns, at.m[first + r], at.sums + (first + r) * LANES, out + r * at.width,
              at.width, at.weights + r * CHUNK);
  }
  value_chunk(at.weights, rows, chunk.values, chunk.panels, at.width, out);
}

static void attend(const TileJob& job) {
  const Buffers at = lay_out(job);
  const int32_t keys_end = job.panel_count - job.summary_count;
  begin_rows(job, at);
  for (int32_t begin = 0; begin < job.panel_count;) {
    if (begin == keys_end && job.lse_of_visited) write_lse(job, keys_end == 0, at.m, at.sums);
    const Chunk chunk = take_panels(job, begin);
    for (int32_t first = 0; first < job.rows; first += GROUP_ROWS) attend_group(job, at, chunk, first);
    begin += chunk.panels;
  }
  for (int32_t r = 0; r < job.rows; r++) at.m[r] += at.shift[r];
  finish_rows(job, at.out, at.width, at.m, at.sums);
}

#ifndef INT8
static constexpr decltype(Kernel::largest) largest = nullptr;
#endif
extern "C" const Kernel KERNEL = {
    NAME, PANEL, TILE_ROWS, can_run, panel_bytes, scratch_bytes, begin_thread, end_thread, pack, attend, largest,
};
