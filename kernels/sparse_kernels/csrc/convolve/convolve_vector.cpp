// Sparse convolution with sums in float32: gather, product and sum of a tile of output rows without leaving the cache.
// Compiled once for each instruction set with -DKERNEL, -DNAME, -DCAN_RUN, -DLANES and -DROWS (register tile).
#include "common/cells.h"
#include "common/transpose.h"
#include "convolve/convolve.h"
#include "convolve/depthwise.h"
#include "convolve/places.h"

static constexpr int32_t GRADIENT_CHANNELS = 144;
static constexpr int32_t GRADIENT_STEP = 24;  // a multiple of every ROWS
static constexpr int32_t GRADIENT_PAIRS = 64;  // multiplied at once: they stay in the first cache levels

static size_t packed_floats(int32_t depth) { return static_cast<size_t>(cells(depth)) * PANEL; }

// A whole panel of floats whose input or output channels lie side by side; false where it is none.
static bool pack_vectors(const WeightJob& job) {
  if (CELL_ROWS > 1 || job.element != FLOAT32 || job.valid < PANEL) return false;
  const float* weight = static_cast<const float*>(job.weight);
  if (job.stride_out == 1) {
    for (int32_t i = 0; i < job.depth; i++) memcpy(job.packed + i * PANEL, weight + i * job.stride_in, PANEL * sizeof(float));
    return true;
  }
  if (job.stride_in != 1 || job.depth % LANES) return false;
  for (int32_t j = 0; j < PANEL; j += LANES)
    transpose_rows(weight + j * job.stride_out, job.stride_out, job.depth, job.packed + j, PANEL);
  return true;
}

static void pack(const WeightJob& job) {
  if (pack_vectors(job)) return;
  const int32_t count = cells(job.depth);
  for (int32_t j = 0; j < PANEL; j++) {
    float* to = job.packed + j;
    for (int32_t i = 0; i < job.depth && j < job.valid; i++)
      job.column[i] = read_element(job.weight, i * job.stride_in + j * job.stride_out, job.element);
    for (int32_t i = 0; i < count; i++)
      to[static_cast<int64_t>(i) * PANEL] = j < job.valid ? column_cell(job.column, 1, i, job.depth) : 0.0f;
  }
}

// Where a row's cells are: in the tensor itself where a cell is a float, or copied to `copy`.
static inline const float* cells_of(const Rows& rows, int64_t row, int32_t depth, float* copy) {
  if (CELL_ROWS == 1 && rows.element == FLOAT32)
    return static_cast<const float*>(rows.data) + row_offset(rows, row);
  read_cells(rows, row, depth, copy);
  return copy;
}

static inline void fetch_row(const Rows& rows, int64_t row, int32_t channels) {
  const int64_t bytes = rows.element == FLOAT32 ? 4 : 2;
  const char* data = static_cast<const char*>(rows.data) + row_offset(rows, row) * bytes;
  for (int64_t x = 0; x < channels * bytes; x += 64) __builtin_prefetch(data + x, 0, 2);
}

static size_t convolve_bytes(int32_t channels_in, int32_t panels) {
  return static_cast<size_t>(CONVOLVE_ROWS) * (channels_in + panels * PANEL) * sizeof(float);
}

// acc = rows (R, `count` cells each) times a packed panel
template <int R, int V>
static inline __attribute__((always_inline)) void multiply_rows(
    vf (&acc)[R][V], const float* const (&rows)[R], int32_t count, const float* packed) {
  clear(acc);
  for (int64_t k = 0; k < count; k++, packed += PANEL) {
    vf column[V];
    for (int v = 0; v < V; v++) column[v] = load(packed + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const vf x = broadcast_cell(rows[r] + k);
      for (int v = 0; v < V; v++) acc[r][v] = multiply_cell(acc[r][v], x, column[v]);
    }
  }
}

// sums, at the places of R rows, += these rows times one panel. Not inlined: the compiler has registers for all sums only
// in a function of their own.
template <int R, int V>
static __attribute__((noinline)) void add_products(
    const float* const* rows, int32_t count, const float* packed, float* sums, int32_t width, const int32_t* places) {
  vf acc[R][V];
  const float* row[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) row[r] = rows[r];
  multiply_rows<R, V>(acc, row, count, packed);
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) {
    float* to = sums + static_cast<int64_t>(places[r]) * width;
    for (int v = 0; v < V; v++) store(to + v * LANES, load(to + v * LANES) + acc[r][v]);
  }
}

namespace {  // as all is static: no function of a newer instruction set may be linked into an older one's path

// The pairs of one slot: places of output rows, and the input rows there, which are fetched into the second cache level
// while the slot before them is multiplied.
struct Pairs {
  int32_t count = 0, fetched = 0;
  const int32_t* map;
  int32_t places[CONVOLVE_ROWS + SPARE_PLACES];

  void find(const ConvolveJob& job, int32_t slot) {
    map = job.map + slot * job.map_stride;
    fetched = count = 0;
    if (slot < job.slots) count = find_places(map, job.rows, places);
  }

  void fetch(const ConvolveJob& job, int32_t some) {
    const int32_t end = fetched + some < count ? fetched + some : count;
    for (; fetched < end; fetched++) fetch_row(job.inputs, map[places[fetched]], job.channels_in);
  }
};

}  // namespace

static void add_slot(const ConvolveJob& job, int32_t slot, const Pairs& pairs, Pairs& next, float* copies, float* sums) {
  const int32_t depth = cells(job.channels_in), width = job.panels * PANEL;
  const float* rows[CONVOLVE_ROWS];
  for (int32_t i = 0; i < pairs.count; i++)
    rows[i] = cells_of(job.inputs, pairs.map[pairs.places[i]], job.channels_in, copies + static_cast<int64_t>(i) * depth);
  const int32_t some = next.count / (pairs.count * job.panels / ROWS + 1) + 1;
  for (int32_t panel = 0; panel < job.panels; panel++) {
    const float* packed = job.packed + (static_cast<int64_t>(slot) * job.panels + panel) * packed_floats(job.channels_in);
    const bool half = job.channels_out - panel * PANEL <= LANES;
    for_rows<ROWS>(pairs.count, 0, [&]<int R>(int32_t r) {
      next.fetch(job, some);
      (half ? add_products<R, 1> : add_products<R, VECTORS>)(
          rows + r, depth, packed, sums + panel * PANEL, width, pairs.places + r);
    });
  }
}

static bool convolve(const ConvolveJob& job) {
  const int32_t width = job.panels * PANEL;
  float* sums = reinterpret_cast<float*>(job.scratch);
  float* copies = sums + static_cast<int64_t>(CONVOLVE_ROWS) * width;
  for (int32_t slot = 0; slot < job.slots; slot++)
    if (!names_only(job.input_rows, job.map + slot * job.map_stride, job.rows)) return false;
  memset(sums, 0, static_cast<size_t>(job.rows) * width * sizeof(float));
  Pairs two[2];
  two[0].find(job, 0);
  for (int32_t slot = 0; slot < job.slots; slot++) {
    two[(slot + 1) % 2].find(job, slot + 1);
    add_slot(job, slot, two[slot % 2], two[(slot + 1) % 2], copies, sums);
  }
  for (int32_t r = 0; r < job.rows; r++) {
    const float* from = sums + static_cast<int64_t>(r) * width;
    write_row(job.out, r * job.out_stride, job.inputs.element, job.channels_out,
              [&](int32_t x) { return from[x]; });
  }
  return true;
}

static size_t gradient_bytes(int32_t panels) {
  return (static_cast<size_t>(GRADIENT_PAIRS + 2 * GRADIENT_CHANNELS) * panels * PANEL +
          static_cast<size_t>(GRADIENT_PAIRS) * GRADIENT_CHANNELS) * sizeof(float);
}

// sums (R channels) += the outer products of `count` rows of cells of inputs and of gradients, from two channels on
template <int R, int V>
static __attribute__((noinline)) void add_outer(
    const float* const* inputs, int32_t channel, const float* const* gradients, int32_t column, int32_t count,
    int32_t width, float* sums) {
  vf acc[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) acc[r][v] = load(sums + r * width + v * LANES);
  for (int32_t k = 0; k < count; k++) {
    const float *x = inputs[k] + channel, *y = gradients[k] + column;
    vf row[V];
    for (int v = 0; v < V; v++) row[v] = load(y + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const vf one = broadcast_cell(x + r);
      for (int v = 0; v < V; v++) acc[r][v] = multiply_cell(acc[r][v], one, row[v]);
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(sums + r * width + v * LANES, acc[r][v]);
}

namespace {

// The pairs of GRADIENT_ROWS places of the map, which are fetched into the second cache level while those before them are
// multiplied.
struct Window {
  int64_t first = 0;
  int32_t count = 0, fetched = 0;
  int32_t places[GRADIENT_ROWS + SPARE_PLACES];

  // False where the map names a row that is not there.
  bool find(const GradientJob& job, int64_t at) {
    first = at, count = fetched = 0;
    if (at >= job.rows) return true;
    const int64_t left = job.rows - at;
    const int32_t rows = static_cast<int32_t>(left < GRADIENT_ROWS ? left : GRADIENT_ROWS);
    count = find_places(job.map + at, rows, places);
    return names_only(job.input_rows, job.map + at, rows);
  }

  void fetch(const GradientJob& job, int32_t some) {
    const int32_t end = fetched + some < count ? fetched + some : count;
    for (; fetched < end; fetched++) {
      const int64_t row = first + places[fetched];
      fetch_row(job.inputs, job.map[row], job.channels);
      fetch_row(job.gradients, row, job.channels_out);
    }
  }
};

// Up to GRADIENT_PAIRS pairs, CELL_ROWS of them to a row of cells.
struct Cells {
  int32_t count;
  const float *inputs[GRADIENT_PAIRS], *gradients[GRADIENT_PAIRS];

  void read(const GradientJob& job, const Window& window, int32_t begin, float* copies) {
    const int32_t width = job.panels * PANEL, left = window.count - begin;
    const int32_t pairs = left < GRADIENT_PAIRS ? left : GRADIENT_PAIRS;
    const bool in_place = CELL_ROWS == 1 && job.inputs.element == FLOAT32 && job.channels_out % LANES == 0;
    float* more = copies + GRADIENT_PAIRS * GRADIENT_CHANNELS;
    count = (pairs + CELL_ROWS - 1) / CELL_ROWS;
    for (int32_t i = 0; i < count; i++) {
      int64_t from[CELL_ROWS], to[CELL_ROWS];
      for (int32_t c = 0; c < CELL_ROWS; c++) {
        const int32_t at = i * CELL_ROWS + c;
        to[c] = at < pairs ? window.first + window.places[begin + at] : -1;
        from[c] = at < pairs ? job.map[to[c]] : -1;
      }
      if (in_place) {
        inputs[i] = static_cast<const float*>(job.inputs.data) + row_offset(job.inputs, from[0]);
        gradients[i] = static_cast<const float*>(job.gradients.data) + row_offset(job.gradients, to[0]);
        continue;
      }
      float* input = copies + i * GRADIENT_CHANNELS;
      float* gradient = more + static_cast<int64_t>(i) * width;
      read_rows_as_cells(job.inputs, from, job.channels, job.channels, input);
      read_rows_as_cells(job.gradients, to, job.channels_out, width, gradient);
      inputs[i] = input, gradients[i] = gradient;
    }
  }
};

}  // namespace

static void add_window(const GradientJob& job, const Window& window, Window& next, float* copies, float* sums) {
  const int32_t width = job.panels * PANEL;
  const int32_t blocks = (window.count + GRADIENT_PAIRS - 1) / GRADIENT_PAIRS * job.panels;
  const int32_t some = next.count / (blocks * ((job.channels + ROWS - 1) / ROWS) + 1) + 1;
  Cells cells;
  for (int32_t begin = 0; begin < window.count; begin += GRADIENT_PAIRS) {
    cells.read(job, window, begin, copies);
    for (int32_t panel = 0; panel < job.panels; panel++) {
      const bool half = job.channels_out - panel * PANEL <= LANES;
      for_rows<ROWS>(job.channels, 0, [&]<int R>(int32_t i) {
        next.fetch(job, some);
        (half ? add_outer<R, 1> : add_outer<R, VECTORS>)(
            cells.inputs, i, cells.gradients, panel * PANEL, cells.count, width,
            sums + static_cast<int64_t>(i) * width + panel * PANEL);
      });
    }
  }
}

static bool gradient(const GradientJob& job) {
  const int32_t width = job.panels * PANEL;
  float* sums = reinterpret_cast<float*>(job.scratch);
  float* totals = sums + static_cast<int64_t>(GRADIENT_CHANNELS) * width;
  float* copies = totals + static_cast<int64_t>(GRADIENT_CHANNELS) * width;
  const int64_t numbers = static_cast<int64_t>(job.channels) * width;
  memset(sums, 0, numbers * sizeof(float));
  memset(totals, 0, numbers * sizeof(float));
  Window two[2];
  bool named = two[0].find(job, 0);
  for (int64_t i = 0; named && i * GRADIENT_ROWS < job.rows; i++) {
    named = two[(i + 1) % 2].find(job, (i + 1) * GRADIENT_ROWS);
    if (!named) break;
    add_window(job, two[i % 2], two[(i + 1) % 2], copies, sums);
    put_aside(sums, totals, numbers);
  }
  for (int32_t i = 0; i < job.channels; i++)
    memcpy(job.out + i * job.out_stride, totals + static_cast<int64_t>(i) * width,
           static_cast<size_t>(job.channels_out) * sizeof(float));
  return named;
}

static bool can_run() { return CAN_RUN; }

extern "C" const Convolver KERNEL = {
    NAME, PANEL, GRADIENT_CHANNELS, GRADIENT_STEP, can_run, packed_floats, convolve_bytes, gradient_bytes,
    pack, convolve, gradient, depthwise, depthwise_gradient,
};
