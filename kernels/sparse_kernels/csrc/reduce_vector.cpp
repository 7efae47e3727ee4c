// Scores of rows against panels of columns, reduced while they are in registers: nearest centroid, mass of a block.
// Compiled once for each instruction set with -DKERNEL, -DNAME, -DCAN_RUN, -DLANES and -DROWS (register tile), and with
// -DBFLOAT16_PRODUCTS for the nearest of rows in bfloat16 alone.
#include "cells.h"
#include "reduce.h"

static constexpr float LOG2_E = 1.4426950408889634f;

static void pack(const ColumnJob& job) {
  for (int32_t j = 0; j < PANEL; j++) {
    if (j < job.valid) {
      read_row(job.rows, job.first_row + j, job.head_dim, job.head_dim, 1.0f, job.scratch);
    } else {
      memset(job.scratch, 0, static_cast<size_t>(job.head_dim) * sizeof(float));
    }
    double norm = 0;
    for (int32_t x = 0; x < job.head_dim; x++) {
      const double value = rounded(job.scratch[x]);  // distances are those to what is compared
      norm += value * value;
      job.scratch[x] *= job.scale;
    }
    for (int32_t i = 0; i < cells(job.head_dim); i++)
      job.packed[static_cast<int64_t>(i) * PANEL + j] = column_cell(job.scratch, 1, i, job.head_dim);
    if (job.norms) job.norms[j] = j < job.valid ? static_cast<float>(norm) : __builtin_inff();
  }
}

// Smallest score and its vector's number, for each lane of R rows.
template <int R>
static void nearest_rows(
    const float* rows, int32_t count, const float* packed, const float* norms, int32_t panel, float* best, int32_t* where) {
  vf acc[R][VECTORS];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < VECTORS; v++) acc[r][v] = load(norms + v * LANES);
  multiply_cells<R, VECTORS>(acc, rows, count, packed);
  for (int r = 0; r < R; r++) {
    vf smallest = load(best + r * LANES);
    vi number;
    memcpy(&number, where + r * LANES, sizeof number);
    for (int v = 0; v < VECTORS; v++) {
      const vi closer = acc[r][v] < smallest;
      smallest = closer ? acc[r][v] : smallest;
      number = closer ? vi{} + (panel * VECTORS + v) : number;
    }
    store(best + r * LANES, smallest);
    memcpy(where + r * LANES, &number, sizeof number);
  }
}

static int32_t first_of_smallest(const float* best, const int32_t* where) {
  float smallest = best[0];
  int32_t label = where[0] * LANES;
  for (int32_t lane = 1; lane < LANES; lane++) {
    const int32_t column = where[lane] * LANES + lane;
    const bool closer = best[lane] < smallest || (best[lane] == smallest && column < label);
    smallest = closer ? best[lane] : smallest;
    label = closer ? column : label;
  }
  return label;
}

static size_t nearest_bytes(int32_t head_dim) {
  return static_cast<size_t>(NEAREST_ROWS) * (head_dim + 2 * LANES) * sizeof(float);
}

static void nearest(const NearestJob& job) {
  const int32_t depth = cells(job.head_dim);
  float* best = reinterpret_cast<float*>(job.scratch);
  int32_t* where = reinterpret_cast<int32_t*>(best + NEAREST_ROWS * LANES);
  float* rows = reinterpret_cast<float*>(where + NEAREST_ROWS * LANES);
  for (int32_t r = 0; r < job.count; r++)
    read_cells(job.rows, job.first_row + r, job.head_dim, rows + static_cast<int64_t>(r) * depth);
  for (int32_t i = 0; i < job.count * LANES; i++) {
    best[i] = __builtin_inff();
    where[i] = 0;
  }
  for (int32_t panel = 0; panel < job.panels; panel++) {
    const float* packed = job.packed + static_cast<int64_t>(panel) * job.head_dim * PANEL;
    for_rows<ROWS>(job.count, 0, [&]<int R>(int32_t r) {
      nearest_rows<R>(rows + static_cast<int64_t>(r) * depth, depth, packed, job.norms + panel * PANEL, panel,
                      best + r * LANES, where + r * LANES);
    });
  }
  for (int32_t r = 0; r < job.count; r++) job.labels[r] = first_of_smallest(best + r * LANES, where + r * LANES);
}

// Sums in double: a cluster may hold most of a long sequence.
static double mean(const MeanJob& job) {
  double* sum = job.scratch;
  float* row = reinterpret_cast<float*>(sum + job.head_dim);
  memset(sum, 0, static_cast<size_t>(job.head_dim) * sizeof(double));
  for (int64_t i = job.begin; i < job.end; i++) {
    read_row(job.rows, i, job.head_dim, job.head_dim, 1.0f, row);
    for (int32_t x = 0; x < job.head_dim; x++) sum[x] += static_cast<double>(row[x]);
  }
  const double share = 1.0 / static_cast<double>(job.end - job.begin);
  double moved = 0;
  for (int32_t x = 0; x < job.head_dim; x++) {
    const float value = static_cast<float>(sum[x] * share);
    const double step = static_cast<double>(value) - job.centroid[x];
    moved += step * step;
    job.centroid[x] = value;
  }
  return moved;
}

#ifdef BFLOAT16_PRODUCTS
static constexpr decltype(Reducer::mass) mass = nullptr;
static constexpr decltype(Reducer::mass_bytes) mass_bytes = nullptr;
#else
template <int R>
static void weigh_rows(const float* q, int32_t depth, const float* packed, const float* lse, vf (&total)[VECTORS]) {
  vf acc[R][VECTORS];
  clear(acc);
  multiply<R>(acc, q, depth, packed, PANEL, depth);
  const vf high = broadcast(128.0f);  // 2^128 is infinite; higher exponents would spill into the sign
  for (int r = 0; r < R; r++) {
    for (int v = 0; v < VECTORS; v++) {
      const vf x = acc[r][v] - lse[r];
      total[v] += exp2_vector(x > high ? high : x);
    }
  }
}

static size_t mass_bytes(int32_t head_dim) { return static_cast<size_t>(MASS_ROWS) * (head_dim + 1) * sizeof(float); }

static void mass(const MassJob& job) {
  const int32_t depth = job.head_dim;
  float* q = reinterpret_cast<float*>(job.scratch);
  float* lse = q + static_cast<int64_t>(MASS_ROWS) * depth;
  for (int32_t r = 0; r < job.count; r++) {
    const int64_t row = job.first_row + r;
    read_row(job.queries, row, depth, depth, job.scale, q + static_cast<int64_t>(r) * depth);
    lse[r] = job.lse[job.queries.order ? job.queries.order[row] : row] * LOG2_E;
  }
  for (int32_t block = job.begin; block < job.end; block++) {
    float sum = 0;
    for (int32_t panel = job.first_panel[block]; panel < job.first_panel[block + 1]; panel++) {
      const float* packed = job.packed + static_cast<int64_t>(panel) * depth * PANEL;
      vf total[VECTORS] = {};
      for_rows<ROWS>(job.count, 0, [&]<int R>(int32_t r) {
        weigh_rows<R>(q + static_cast<int64_t>(r) * depth, depth, packed, lse + r, total);
      });
      float columns[PANEL];
      for (int v = 0; v < VECTORS; v++) store(columns + v * LANES, total[v]);
      for (int32_t j = 0; j < job.valid[panel]; j++) sum += columns[j];
    }
    job.mass[block] += sum;
  }
}
#endif

static bool can_run() { return CAN_RUN; }

extern "C" const Reducer KERNEL = {
    NAME, PANEL, can_run, nearest_bytes, mass_bytes, pack, nearest, mean, mass,
};
