// The nearest centroid, the mass of blocks and the error of centroids with bf16 products in AMX tiles; with -DEMULATE
// their instructions are plain loops. What is packed in panels (centroids, keys) is the rows of a tile and tokens are its
// columns, so that a lane holds a token: minima and weights need no step across lanes.
#define LANES 16
#include "common/amx_tiles.h"
#include "common/transpose.h"
#include "reduce/reduce.h"

static constexpr int32_t PANEL = 16;  // centroids or queries in a tile
static constexpr int32_t TOKENS = 48;  // at a time: three tiles
static constexpr int32_t VECTORS = TOKENS / LANES;
static_assert(NEAREST_ROWS == TOKENS && ERROR_ROWS % TOKENS == 0);

static inline int32_t padded(int32_t head_dim) { return (head_dim + 31) / 32 * 32; }
static int32_t column_floats(int32_t head_dim) { return padded(head_dim) / 2; }

static void pack(const ColumnJob& job) {
  uint16_t* packed = reinterpret_cast<uint16_t*>(job.packed);
  memset(packed, 0, static_cast<size_t>(padded(job.head_dim)) * PANEL * sizeof(uint16_t));
  for (int32_t j = 0; j < PANEL; j++) {
    double norm = 0;
    if (j < job.valid) read_row(job.rows, job.first_row + j, job.head_dim, job.head_dim, 1.0f, job.scratch);
    for (int32_t x = 0; j < job.valid && x < job.head_dim; x++) {
      const double value = widen_bfloat16(to_bfloat16(job.scratch[x]));  // distances are those to what is compared
      norm += value * value;
      packed[x / 32 * 512 + j * 32 + x % 32] = to_bfloat16(job.scratch[x] * job.scale);
    }
    if (job.norms) job.norms[j] = j < job.valid ? static_cast<float>(norm) : __builtin_inff();
  }
}

// scores (16 x TOKENS) = one packed panel times the tokens of the first `tiles` tiles
static void score_panel(const float* packed, int32_t depth, const uint32_t* tokens, int32_t tiles, float* scores) {
  tile_zero<0>(), tile_zero<1>(), tile_zero<2>();
  for (int32_t x = 0; x < depth; x += 32) {
    const uint32_t* pairs = tokens + x / 2 * TOKENS;
    tile_load<6>(reinterpret_cast<const char*>(packed) + x / 32 * TILE_BYTES, 64);
    tile_load<3>(pairs, TOKENS * 4), tile_multiply_bfloat16<0, 6, 3>();
    if (tiles > 1) tile_load<4>(pairs + 16, TOKENS * 4), tile_multiply_bfloat16<1, 6, 4>();
    if (tiles > 2) tile_load<5>(pairs + 32, TOKENS * 4), tile_multiply_bfloat16<2, 6, 5>();
  }
  tile_store<0>(scores, TOKENS * 4);
  if (tiles > 1) tile_store<1>(scores + 16, TOKENS * 4);
  if (tiles > 2) tile_store<2>(scores + 32, TOKENS * 4);
}

// Scores, tokens and some rows of channels, each on a cache line of its own.
static size_t tile_bytes(int32_t head_dim) {
  return PANEL * TOKENS * sizeof(float) + static_cast<size_t>(padded(head_dim)) * (TOKENS + LANES) * sizeof(uint16_t);
}
namespace {
struct Buffers {
  float* scores;
  uint32_t* tokens;    // channel pair k of token r is tokens[k * TOKENS + r]
  uint16_t* channels;  // of LANES tokens, before they go there
  char* rest;

  Buffers(char* scratch, int32_t depth)
      : scores(reinterpret_cast<float*>(scratch)),
        tokens(reinterpret_cast<uint32_t*>(scores + PANEL * TOKENS)),
        channels(reinterpret_cast<uint16_t*>(tokens + depth / 2 * TOKENS)),
        rest(reinterpret_cast<char*>(channels + depth * LANES)) {
    memset(channels, 0, static_cast<size_t>(depth) * LANES * sizeof(uint16_t));
  }

  uint16_t* row(int32_t depth, int32_t r) const { return channels + r % LANES * depth; }
  // The rows of channels stand for tokens r / LANES * LANES and on. Those behind `r` are of others, which nobody asks for.
  void turn(int32_t depth, int32_t r) const {
    transpose_rows(reinterpret_cast<const float*>(channels), depth / 2, depth / 2,
                   reinterpret_cast<float*>(tokens + r / LANES * LANES), TOKENS);
  }
};
}  // namespace

static size_t nearest_bytes(int32_t head_dim) { return tile_bytes(head_dim); }

static void nearest(const NearestJob& job) {
  const int32_t depth = padded(job.head_dim);
  const Buffers buffers(job.scratch, depth);
  for (int32_t r = 0; r < job.count; r++) {
    memcpy(buffers.row(depth, r), static_cast<const uint16_t*>(job.rows.data) + row_offset(job.rows, job.first_row + r),
           job.head_dim * sizeof(uint16_t));
    if (r % LANES == LANES - 1 || r + 1 == job.count) buffers.turn(depth, r);
  }
  vf best[VECTORS];
  vi label[VECTORS] = {};
  for (int v = 0; v < VECTORS; v++) best[v] = broadcast(__builtin_inff());
  begin_thread();
  for (int32_t panel = 0; panel < job.panels; panel++) {
    score_panel(job.packed + static_cast<int64_t>(panel) * PANEL * depth / 2, depth, buffers.tokens, VECTORS, buffers.scores);
    for (int32_t j = 0; j < PANEL; j++) {
      const vf norm = broadcast(job.norms[panel * PANEL + j]);
      for (int v = 0; v < VECTORS; v++) {
        const vf score = load(buffers.scores + j * TOKENS + v * LANES) + norm;
        const vi closer = score < best[v];
        best[v] = closer ? score : best[v];
        label[v] = closer ? vi{} + (panel * PANEL + j) : label[v];
      }
    }
  }
  end_thread();
  memcpy(job.labels, label, job.count * sizeof(int32_t));
}

static inline void to_channels(const float* from, int32_t depth, uint16_t* to) {
#ifdef __AVX512BF16__
  for (int32_t x = 0; x < depth; x += LANES) {
    const __m256bh narrow = _mm512_cvtneps_pbh(_mm512_loadu_ps(from + x));
    memcpy(to + x, &narrow, sizeof narrow);
  }
#else
  for (int32_t x = 0; x < depth; x++) to[x] = to_bfloat16(from[x]);
#endif
}

static size_t mass_bytes(int32_t head_dim) {
  return tile_bytes(head_dim) + (TOKENS + static_cast<size_t>(padded(head_dim))) * sizeof(float);
}

// Some queries as tokens, and their LSE in units of log2; missing ones have no weight.
static void read_queries(const MassJob& job, int32_t first, int32_t rows, float* lse, float* wide, const Buffers& buffers) {
  const int32_t depth = padded(job.head_dim);
  for (int32_t r = 0; r < TOKENS; r++) lse[r] = __builtin_inff();
  for (int32_t r = 0; r < rows; r++) {
    const int64_t row = job.first_row + first + r;
    lse[r] = job.lse[place_of(job.queries, row)] * static_cast<float>(LOG2E);
    read_row(job.queries, row, job.head_dim, depth, 1.0f, wide);
    to_channels(wide, depth, buffers.row(depth, r));
    if (r % LANES == LANES - 1 || r + 1 == rows) buffers.turn(depth, r);
  }
}

static void mass(const MassJob& job) {
  const int32_t depth = padded(job.head_dim);
  const Buffers buffers(job.scratch, depth);
  float *lse = reinterpret_cast<float*>(buffers.rest), *wide = lse + TOKENS;
  const vf high = broadcast(128.0f);  // as in reduce_vector.cpp
  begin_thread();
  for (int32_t first = 0; first < job.count; first += TOKENS) {
    const int32_t rows = job.count - first < TOKENS ? job.count - first : TOKENS, tiles = (rows + LANES - 1) / LANES;
    read_queries(job, first, rows, lse, wide, buffers);
    for (int32_t block = job.begin; block < job.end; block++) {
      vf total = {};
      for (int32_t panel = job.first_panel[block]; panel < job.first_panel[block + 1]; panel++) {
        score_panel(job.packed + static_cast<int64_t>(panel) * PANEL * depth / 2, depth, buffers.tokens, tiles, buffers.scores);
        for (int32_t j = 0; j < job.valid[panel]; j++) {
          for (int32_t v = 0; v < tiles; v++) {
            const vf x = load(buffers.scores + j * TOKENS + v * LANES) * job.scale - load(lse + v * LANES);
            total += exp2_vector(x > high ? high : x);
          }
        }
      }
      job.mass[block] += horizontal_sum(total);
    }
  }
  end_thread();
}

// |g v + v - mean|^2 = squared g^2 + cross g + constant, of each token
struct Terms {
  float squared[TOKENS], cross[TOKENS], constant[TOKENS];
};

static size_t error_bytes(int32_t head_dim, int32_t panels) {
  return tile_bytes(head_dim) + 4 * static_cast<size_t>(padded(head_dim)) * sizeof(float) + sizeof(Terms) +
         static_cast<size_t>(panels) * PANEL * LANES * sizeof(float);
}

// The tokens less their centroid, and what their values ask for; `wide` holds centroid, mean, key and value.
static void read_tokens(const ErrorJob& job, int32_t first, int32_t rows, float* wide, const Buffers& buffers, Terms& terms) {
  const int32_t depth = padded(job.head_dim);
  float *key = wide + 2 * depth, *value = key + depth;
  memset(&terms, 0, sizeof terms);
  for (int32_t r = 0; r < rows; r++) {
    read_row(job.keys, job.first_row + first + r, job.head_dim, depth, 1.0f, key);
    read_row(job.values, job.first_row + first + r, job.head_dim, depth, 1.0f, value);
    vf squared = {}, cross = {}, constant = {};
    for (int32_t x = 0; x < depth; x += LANES) {
      const vf v = load(value + x), gap = v - load(wide + depth + x);
      store(key + x, load(key + x) - load(wide + x));
      squared += v * v;
      cross += v * gap;
      constant += gap * gap;
    }
    terms.squared[r] = horizontal_sum(squared);
    terms.cross[r] = 2 * horizontal_sum(cross);
    terms.constant[r] = horizontal_sum(constant);
    to_channels(key, depth, buffers.row(depth, r));
    if (r % LANES == LANES - 1 || r + 1 == rows) buffers.turn(depth, r);
  }
}

// One query, some tokens: the sum is over 4^held, which is 1 until a weight's square would not be finite.
static inline void add_errors(const float* scores, const Terms& terms, int32_t vectors, float& held, vf& total) {
  const float high = static_cast<float>(30 * LOG2E);
  vf top = load(scores);
  for (int32_t v = 1; v < vectors; v++) top = larger(load(scores + v * LANES), top);
  if (held == 0 && !any_above(top, broadcast(high))) {
    for (int32_t v = 0; v < vectors; v++) {
      const vf growth = exp2_vector(load(scores + v * LANES)) - 1.0f;
      total += (load(terms.squared + v * LANES) * growth + load(terms.cross + v * LANES)) * growth +
               load(terms.constant + v * LANES);
    }
    return;
  }
  const float largest = horizontal_max(top), now = largest > held + high ? largest : held, one = exp2_scalar(-now);
  total *= exp2_scalar(2 * (held - now));
  held = now;
  for (int32_t v = 0; v < vectors; v++) {
    const vf growth = exp2_vector(load(scores + v * LANES) - held) - one;
    const vf cross = load(terms.cross + v * LANES) * one, constant = load(terms.constant + v * LANES) * (one * one);
    total += (load(terms.squared + v * LANES) * growth + cross) * growth + constant;
  }
}

static void error(const ErrorJob& job) {
  const int32_t depth = padded(job.head_dim), columns = job.panels * PANEL;
  const Buffers buffers(job.scratch, depth);
  float* wide = reinterpret_cast<float*>(buffers.rest);
  Terms& terms = *reinterpret_cast<Terms*>(wide + 4 * depth);
  float* totals = reinterpret_cast<float*>(&terms + 1);
  memset(wide, 0, 2 * depth * sizeof(float));
  memcpy(wide, job.centroid, job.head_dim * sizeof(float));
  memcpy(wide + depth, job.mean, job.head_dim * sizeof(float));
  memset(totals, 0, static_cast<size_t>(columns) * LANES * sizeof(float));
  memset(job.held, 0, static_cast<size_t>(columns) * sizeof(float));
  begin_thread();
  for (int32_t first = 0; first < job.count; first += TOKENS) {
    const int32_t rows = job.count - first < TOKENS ? job.count - first : TOKENS, tiles = (rows + LANES - 1) / LANES;
    read_tokens(job, first, rows, wide, buffers, terms);
    for (int32_t panel = 0; panel < job.panels; panel++) {
      score_panel(job.packed + static_cast<int64_t>(panel) * PANEL * depth / 2, depth, buffers.tokens, tiles, buffers.scores);
      for (int32_t j = 0; j < PANEL && panel * PANEL + j < job.columns; j++) {
        const int32_t column = panel * PANEL + j;
        vf total = load(totals + column * LANES);
        add_errors(buffers.scores + j * TOKENS, terms, tiles, job.held[column], total);
        store(totals + column * LANES, total);
      }
    }
  }
  end_thread();
  for (int32_t j = 0; j < job.columns; j++) {
    const float sum = horizontal_sum(load(totals + j * LANES));
    job.error[j] = (__builtin_log2f(sum < 0 ? 0 : sum) + 2 * job.held[j]) * static_cast<float>(1 / LOG2E);
  }
}

extern "C" const Reducer KERNEL = {
    NAME, PANEL, can_run, column_floats, nearest_bytes, mass_bytes, pack, nearest, nullptr, mass, error_bytes, error,
    nullptr, nullptr,
};
