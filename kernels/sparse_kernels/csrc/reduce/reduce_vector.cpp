// Scores of rows against panels of columns, reduced while they are in registers: nearest centroid, mass of a block.
// Compiled once for each instruction set with -DKERNEL, -DNAME, -DCAN_RUN, -DLANES and -DROWS (register tile), and with
// -DBFLOAT16_PRODUCTS for the nearest and the mass of rows in bfloat16.
#include "common/cells.h"
#include "reduce/reduce.h"

static int32_t column_floats(int32_t head_dim) { return head_dim; }

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

// The first whole vectors of channels of rows in bfloat16, whose short mantissas float32 adds up a few at a time without
// a loss; returns how many channels those are.
static int32_t sum_bfloat16(const MeanJob& job, double* sum) {
  typedef uint16_t vh __attribute__((vector_size(LANES * 2)));
  constexpr int64_t few = 16;
  const uint16_t* data = static_cast<const uint16_t*>(job.rows.data);
  int32_t x = 0;
  for (; x + LANES <= job.head_dim; x += LANES) {
    for (int64_t first = job.begin; first < job.end; first += few) {
      vf part = {};
      for (int64_t i = first; i < first + few && i < job.end; i++) {
        vh bits;
        memcpy(&bits, data + row_offset(job.rows, i) + x, sizeof bits);
        part += (vf)(__builtin_convertvector(bits, vi) << 16);
      }
      for (int lane = 0; lane < LANES; lane++) sum[x + lane] += static_cast<double>(part[lane]);
    }
  }
  return x;
}

// Sums in double: a cluster may hold most of a long sequence.
static double mean(const MeanJob& job) {
  double* sum = job.scratch;
  float* row = reinterpret_cast<float*>(sum + job.head_dim);
  memset(sum, 0, static_cast<size_t>(job.head_dim) * sizeof(double));
  const int32_t first = job.rows.element == BFLOAT16 ? sum_bfloat16(job, sum) : 0;
  for (int64_t i = job.begin; first < job.head_dim && i < job.end; i++) {
    read_row(job.rows, i, job.head_dim, job.head_dim, 1.0f, row);
    for (int32_t x = first; x < job.head_dim; x++) sum[x] += static_cast<double>(row[x]);
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

template <int R>
static void weigh_rows(const float* q, int32_t count, const float* packed, const float* lse, float scale, vf (&total)[VECTORS]) {
  vf acc[R][VECTORS];
  clear(acc);
  multiply_cells<R, VECTORS>(acc, q, count, packed);
  const vf high = broadcast(128.0f);  // 2^128 is infinite; higher exponents would spill into the sign
  for (int r = 0; r < R; r++) {
    for (int v = 0; v < VECTORS; v++) {
      const vf x = acc[r][v] * scale - lse[r];
      total[v] += exp2_vector(x > high ? high : x);
    }
  }
}

static size_t mass_bytes(int32_t head_dim) { return static_cast<size_t>(MASS_ROWS) * (head_dim + 1) * sizeof(float); }

static void mass(const MassJob& job) {
  const int32_t count = cells(job.head_dim);
  float* q = reinterpret_cast<float*>(job.scratch);
  float* lse = q + static_cast<int64_t>(MASS_ROWS) * count;
  for (int32_t r = 0; r < job.count; r++) {
    const int64_t row = job.first_row + r;
    read_cells(job.queries, row, job.head_dim, q + static_cast<int64_t>(r) * count);
    lse[r] = job.lse[place_of(job.queries, row)] * static_cast<float>(LOG2E);
  }
  for (int32_t block = job.begin; block < job.end; block++) {
    float sum = 0;
    for (int32_t panel = job.first_panel[block]; panel < job.first_panel[block + 1]; panel++) {
      const float* packed = job.packed + static_cast<int64_t>(panel) * job.head_dim * PANEL;
      vf total[VECTORS] = {};
      for_rows<ROWS>(job.count, 0, [&]<int R>(int32_t r) {
        weigh_rows<R>(q + static_cast<int64_t>(r) * count, count, packed, lse + r, job.scale, total);
      });
      float columns[PANEL];
      for (int v = 0; v < VECTORS; v++) store(columns + v * LANES, total[v]);
      for (int32_t j = 0; j < job.valid[panel]; j++) sum += columns[j];
    }
    job.mass[block] += sum;
  }
}

#ifdef BFLOAT16_PRODUCTS
static constexpr decltype(Reducer::error) error = nullptr;
static constexpr decltype(Reducer::error_bytes) error_bytes = nullptr;
static constexpr decltype(Reducer::merge) merge = nullptr;
static constexpr decltype(Reducer::merge_bytes) merge_bytes = nullptr;
#else
// |g v + v - mean|^2 = squared g^2 + cross g + constant
struct Terms {
  float squared, cross, constant;
};

// One panel of queries: sums over 4^held, which is 1 until an exponent is so large that its square would not be finite.
struct Sums {
  vf total[VECTORS], held[VECTORS];
};

template <int R>
static void add_errors(const float* rest, const Terms* terms, int32_t depth, const float* packed, Sums& sums) {
  vf acc[R][VECTORS];
  clear(acc);
  multiply<R>(acc, rest, depth, packed, PANEL, depth);
  const vf high = broadcast(static_cast<float>(30 * LOG2E));
  for (int v = 0; v < VECTORS; v++) {
    vf total = sums.total[v], top = sums.held[v];
    for (int r = 0; r < R; r++) top = larger(acc[r][v], top);
    if (!any_above(top, high)) {
      for (int r = 0; r < R; r++) {
        const vf growth = exp2_vector(acc[r][v]) - 1.0f;
        total += (terms[r].squared * growth + terms[r].cross) * growth + terms[r].constant;
      }
    } else {
      const vf held = top > sums.held[v] + high ? top : sums.held[v], one = exp2_vector(-held);
      total *= exp2_vector(2.0f * (sums.held[v] - held));
      sums.held[v] = held;
      for (int r = 0; r < R; r++) {
        const vf growth = exp2_vector(acc[r][v] - held) - one;
        total += (terms[r].squared * growth + terms[r].cross * one) * growth + terms[r].constant * one * one;
      }
    }
    sums.total[v] = total;
  }
}

static size_t error_bytes(int32_t head_dim, int32_t) {
  return static_cast<size_t>(ERROR_ROWS + 1) * head_dim * sizeof(float) + ERROR_ROWS * sizeof(Terms);
}

static void error(const ErrorJob& job) {
  const int32_t depth = job.head_dim;
  float* rest = reinterpret_cast<float*>(job.scratch);
  float* value = rest + static_cast<int64_t>(ERROR_ROWS) * depth;
  Terms* terms = reinterpret_cast<Terms*>(value + depth);
  const int32_t columns = job.panels * PANEL;
  memset(job.error, 0, static_cast<size_t>(columns) * sizeof(float));
  memset(job.held, 0, static_cast<size_t>(columns) * sizeof(float));
  for (int32_t first = 0; first < job.count; first += ERROR_ROWS) {
    const int32_t rows = job.count - first < ERROR_ROWS ? job.count - first : ERROR_ROWS;
    for (int32_t r = 0; r < rows; r++) {
      float* row = rest + static_cast<int64_t>(r) * depth;
      read_row(job.keys, job.first_row + first + r, depth, depth, 1.0f, row);
      read_row(job.values, job.first_row + first + r, depth, depth, 1.0f, value);
      Terms sums{};
      for (int32_t x = 0; x < depth; x++) {
        const float gap = value[x] - job.mean[x];
        row[x] -= job.centroid[x];
        sums.squared += value[x] * value[x];
        sums.cross += 2 * value[x] * gap;
        sums.constant += gap * gap;
      }
      terms[r] = sums;
    }
    for (int32_t panel = 0; panel < job.panels; panel++) {
      Sums sums;
      memcpy(sums.total, job.error + panel * PANEL, sizeof sums.total);
      memcpy(sums.held, job.held + panel * PANEL, sizeof sums.held);
      for_rows<ROWS>(rows, 0, [&]<int R>(int32_t r) {
        add_errors<R>(rest + static_cast<int64_t>(r) * depth, terms + r, depth,
                      job.packed + static_cast<int64_t>(panel) * depth * PANEL, sums);
      });
      memcpy(job.error + panel * PANEL, sums.total, sizeof sums.total);
      memcpy(job.held + panel * PANEL, sums.held, sizeof sums.held);
    }
  }
  for (int32_t j = 0; j < columns; j++) {
    const float sum = job.error[j] < 0 ? 0 : job.error[j];
    job.error[j] = (__builtin_log2f(sum) + 2 * job.held[j]) * static_cast<float>(1 / LOG2E);
  }
}

static size_t merge_bytes(int32_t head_dim, int32_t panels) {
  const size_t columns = static_cast<size_t>(panels) * PANEL, width = (head_dim + PANEL - 1) / PANEL * PANEL;
  return MERGE_ROWS * (head_dim + columns + width + 2) * sizeof(float);
}

template <int R>
static void score_rows(
    const float* q, int32_t depth, const float* packed, const float* weights, float* scores, int32_t columns) {
  vf acc[R][VECTORS];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < VECTORS; v++) acc[r][v] = load(weights + v * LANES);
  multiply<R>(acc, q, depth, packed, PANEL, depth);
  for (int r = 0; r < R; r++)
    for (int v = 0; v < VECTORS; v++) store(scores + static_cast<int64_t>(r) * columns + v * LANES, acc[r][v]);
}

static bool all_silent(const float* scores, int32_t columns) {
  for (int32_t j = 0; j < columns; j++)
    if (scores[j] != -__builtin_inff()) return false;
  return true;
}

// Turn a row of scores into weights that add up to 1 with the share of the computed keys, which is returned.
static float weigh_row(float* scores, int32_t columns, float exact) {
  vf best = load(scores);
  for (int32_t j = LANES; j < columns; j += LANES) {
    const vf x = load(scores + j);
    best = larger(x, best);
  }
  float top = horizontal_max(best);
  top = top > exact ? top : exact;
  if (top == -__builtin_inff() && all_silent(scores, columns)) {  // nothing answers: what was computed stays
    memset(scores, 0, static_cast<size_t>(columns) * sizeof(float));
    return 1.0f;
  }
  top = top > -1e30f ? top : -1e30f;  // no infinity less infinity
  vf total{};
  for (int32_t j = 0; j < columns; j += LANES) {
    const vf p = exp2_vector(load(scores + j) - top);
    store(scores + j, p);
    total += p;
  }
  const float share = exp2_scalar(exact - top), sum = share + horizontal_sum(total), one = 1.0f / sum;
  for (int32_t j = 0; j < columns; j += LANES) store(scores + j, load(scores + j) * one);
  return share * one;
}

template <int R>
static void mix_rows(const float* weights, int32_t columns, const float* values, int32_t width, float* out) {
  vf acc[R][VECTORS];
  clear(acc);
  multiply<R>(acc, weights, columns, values, width, columns);
  for (int r = 0; r < R; r++)
    for (int v = 0; v < VECTORS; v++) store(out + static_cast<int64_t>(r) * width + v * LANES, acc[r][v]);
}

static void merge(const MergeJob& job) {
  const int32_t depth = job.head_dim, columns = job.panels * PANEL, width = job.width;
  float* q = reinterpret_cast<float*>(job.scratch);
  float* scores = q + static_cast<int64_t>(MERGE_ROWS) * depth;
  float* mixed = scores + static_cast<int64_t>(MERGE_ROWS) * columns;
  float* shares = mixed + static_cast<int64_t>(MERGE_ROWS) * width;
  const Rows out{job.out, job.out_stride, job.queries.order, job.queries.element};
  for (int32_t r = 0; r < job.count; r++)
    read_row(job.queries, job.first_row + r, depth, depth, job.scale, q + static_cast<int64_t>(r) * depth);
  for (int32_t panel = 0; panel < job.panels; panel++) {
    for_rows<ROWS>(job.count, 0, [&]<int R>(int32_t r) {
      score_rows<R>(q + static_cast<int64_t>(r) * depth, depth, job.packed + static_cast<int64_t>(panel) * depth * PANEL,
                    job.weights + panel * PANEL, scores + static_cast<int64_t>(r) * columns + panel * PANEL, columns);
    });
  }
  for (int32_t r = 0; r < job.count; r++) {
    const float exact = job.lse[place_of(job.queries, job.first_row + r)] * static_cast<float>(LOG2E);
    shares[r] = weigh_row(scores + static_cast<int64_t>(r) * columns, columns, exact);
  }
  for (int32_t x = 0; x < width; x += PANEL) {
    for_rows<ROWS>(job.count, 0, [&]<int R>(int32_t r) {
      mix_rows<R>(scores + static_cast<int64_t>(r) * columns, columns, job.values + x, width,
                  mixed + static_cast<int64_t>(r) * width + x);
    });
  }
  for (int32_t r = 0; r < job.count; r++) {
    const float* from = mixed + static_cast<int64_t>(r) * width;
    read_row(out, job.first_row + r, depth, depth, shares[r], q);
    write_row(job.merged, place_of(job.queries, job.first_row + r) * job.merged_stride, out.element, depth,
              [&](int32_t x) { return from[x] + q[x]; });
  }
}
#endif

static bool can_run() { return CAN_RUN; }

extern "C" const Reducer KERNEL = {
    NAME, PANEL, can_run, column_floats, nearest_bytes, mass_bytes, pack, nearest, mean, mass, error_bytes, error,
    merge_bytes, merge,
};
