// Sparse convolution with sums in float32: gather, product and sum of a tile of output rows without leaving the cache.
// Compiled once for each instruction set with -DKERNEL, -DNAME, -DCAN_RUN, -DLANES and -DROWS (register tile).
#include "common/cells.h"
#include "convolve/convolve.h"
#include "convolve/depthwise.h"
#include "convolve/places.h"

static constexpr int32_t GRADIENT_CHANNELS = 48;
static constexpr int32_t GRADIENT_PAIRS = 128;  // multiplied at once: they stay in the first cache levels

static size_t packed_floats(int32_t depth) { return static_cast<size_t>(cells(depth)) * PANEL; }

static void pack(const WeightJob& job) {
  const int32_t count = cells(job.depth);
  for (int32_t j = 0; j < PANEL; j++) {
    float* to = job.packed + j;
    for (int32_t i = 0; i < job.depth && j < job.valid; i++)
      job.column[i] = read_element(job.weight, i * job.stride_in + j * job.stride_out, job.element);
    for (int32_t i = 0; i < count; i++)
      to[static_cast<int64_t>(i) * PANEL] = j < job.valid ? column_cell(job.column, 1, i, job.depth) : 0.0f;
  }
}

static size_t convolve_bytes(int32_t channels_in, int32_t panels) {
  return static_cast<size_t>(CONVOLVE_ROWS) * (channels_in + panels * PANEL + 1) * sizeof(float);
}

// Not inlined: the compiler has registers for all sums only in a function of their own.
template <int R, int V>
static __attribute__((noinline)) void add_products(
    const float* rows, int32_t count, const float* packed, float* sums, int32_t width, const int32_t* places) {
  vf acc[R][V];
  clear(acc);
  multiply_cells<R, V>(acc, rows, count, packed);
  for (int r = 0; r < R; r++) {
    float* to = sums + static_cast<int64_t>(places[r]) * width;
    for (int v = 0; v < V; v++) store(to + v * LANES, load(to + v * LANES) + acc[r][v]);
  }
}

static bool convolve(const ConvolveJob& job) {
  const int32_t depth = cells(job.channels_in), width = job.panels * PANEL;
  float* sums = reinterpret_cast<float*>(job.scratch);
  float* rows = sums + static_cast<int64_t>(CONVOLVE_ROWS) * width;
  int32_t* places = reinterpret_cast<int32_t*>(rows + static_cast<int64_t>(CONVOLVE_ROWS) * depth);
  memset(sums, 0, static_cast<size_t>(job.rows) * width * sizeof(float));
  for (int32_t slot = 0; slot < job.slots; slot++) {
    const int32_t* map = job.map + slot * job.map_stride;
    if (!names_only(job.input_rows, map, job.rows)) return false;
    const int32_t count = find_places(map, job.rows, places);
    for (int32_t i = 0; i < count; i++)
      read_cells(job.inputs, map[places[i]], job.channels_in, rows + static_cast<int64_t>(i) * depth);
    for (int32_t panel = 0; panel < job.panels; panel++) {
      const float* packed = job.packed + (static_cast<int64_t>(slot) * job.panels + panel) * packed_floats(job.channels_in);
      const bool half = job.channels_out - panel * PANEL <= LANES;
      for_rows<ROWS>(count, 0, [&]<int R>(int32_t r) {
        const float* some = rows + static_cast<int64_t>(r) * depth;
        (half ? add_products<R, 1> : add_products<R, VECTORS>)(some, depth, packed, sums + panel * PANEL, width, places + r);
      });
    }
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
          static_cast<size_t>(GRADIENT_PAIRS) * GRADIENT_CHANNELS + GRADIENT_ROWS) * sizeof(float);
}

// sums (R channels) += the outer products of `count` rows of cells of inputs and of gradients
template <int R, int V>
static __attribute__((noinline)) void add_outer(
    const float* inputs, int32_t count, const float* gradients, int32_t width, float* sums) {
  vf acc[R][V];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) acc[r][v] = load(sums + r * width + v * LANES);
  for (int32_t k = 0; k < count; k++) {
    vf row[V];
    for (int v = 0; v < V; v++) row[v] = load(gradients + static_cast<int64_t>(k) * width + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const vf x = broadcast_cell(inputs + k * GRADIENT_CHANNELS + r);
      for (int v = 0; v < V; v++) acc[r][v] = multiply_cell(acc[r][v], x, row[v]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < V; v++) store(sums + r * width + v * LANES, acc[r][v]);
}

// Reads the rows of some pairs, CELL_ROWS to a row of cells. Returns how many rows of cells there are.
static int32_t read_pairs(
    const GradientJob& job, int64_t first, const int32_t* places, int32_t pairs, float* inputs, float* gradients) {
  const int32_t width = job.panels * PANEL, count = (pairs + CELL_ROWS - 1) / CELL_ROWS;
  for (int32_t i = 0; i < count; i++) {
    int64_t from[CELL_ROWS], to[CELL_ROWS];
    for (int32_t c = 0; c < CELL_ROWS; c++) {
      const int32_t at = i * CELL_ROWS + c;
      to[c] = at < pairs ? first + places[at] : -1;
      from[c] = at < pairs ? job.map[to[c]] : -1;
    }
    read_rows_as_cells(job.inputs, from, job.channels, job.channels, inputs + i * GRADIENT_CHANNELS);
    read_rows_as_cells(job.gradients, to, job.channels_out, width, gradients + static_cast<int64_t>(i) * width);
  }
  return count;
}

static bool gradient(const GradientJob& job) {
  const int32_t width = job.panels * PANEL;
  float* sums = reinterpret_cast<float*>(job.scratch);
  float* totals = sums + static_cast<int64_t>(GRADIENT_CHANNELS) * width;
  float* gradients = totals + static_cast<int64_t>(GRADIENT_CHANNELS) * width;
  float* inputs = gradients + static_cast<int64_t>(GRADIENT_PAIRS) * width;
  int32_t* places = reinterpret_cast<int32_t*>(inputs + GRADIENT_PAIRS * GRADIENT_CHANNELS);
  const int64_t numbers = static_cast<int64_t>(job.channels) * width;
  memset(sums, 0, numbers * sizeof(float));
  memset(totals, 0, numbers * sizeof(float));
  for (int64_t first = 0; first < job.rows; first += GRADIENT_ROWS) {
    const int64_t left = job.rows - first;
    const int32_t rows = static_cast<int32_t>(left < GRADIENT_ROWS ? left : GRADIENT_ROWS);
    if (!names_only(job.input_rows, job.map + first, rows)) return false;
    const int32_t found = find_places(job.map + first, rows, places);
    for (int32_t begin = 0; begin < found; begin += GRADIENT_PAIRS) {
      const int32_t pairs = found - begin < GRADIENT_PAIRS ? found - begin : GRADIENT_PAIRS;
      const int32_t count = read_pairs(job, first, places + begin, pairs, inputs, gradients);
      for (int32_t panel = 0; panel < job.panels; panel++) {
        const bool half = job.channels_out - panel * PANEL <= LANES;
        for_rows<ROWS>(job.channels, 0, [&]<int R>(int32_t i) {
          float* to = sums + static_cast<int64_t>(i) * width + panel * PANEL;
          (half ? add_outer<R, 1> : add_outer<R, VECTORS>)(inputs + i, count, gradients + panel * PANEL, width, to);
        });
      }
    }
    put_aside(sums, totals, numbers);
  }
  for (int32_t i = 0; i < job.channels; i++)
    memcpy(job.out + i * job.out_stride, totals + static_cast<int64_t>(i) * width,
           static_cast<size_t>(job.channels_out) * sizeof(float));
  return true;
}

static bool can_run() { return CAN_RUN; }

extern "C" const Convolver KERNEL = {
    NAME, PANEL, GRADIENT_CHANNELS, can_run, packed_floats, convolve_bytes, gradient_bytes,
    pack, convolve, gradient, depthwise, depthwise_gradient,
};
