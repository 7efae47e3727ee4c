// torch.ops.sparse_kernels.find_neighbors_cpu and reach_places_cpu: the kernel maps of sparse convolution. Arguments are
// checked by sparse_conv/build.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <bit>
#include <numeric>
#include <tuple>
#include <vector>

#include "common/tensors.h"
#include "common/work.h"
#include "convolve/grid.h"

namespace {

// Open addressing over the rows' keys; Fibonacci hashing spreads neighbouring keys.
struct Table {
  const int64_t* keys;
  int shift;
  std::vector<int32_t> rows;

  Table(const int64_t* keys, int64_t count)
      : keys(keys), shift(64 - std::bit_width(static_cast<uint64_t>(2 * count + 1))), rows(size_t{1} << (64 - shift), -1) {}

  size_t start(int64_t key) const { return static_cast<uint64_t>(key) * 0x9E3779B97F4A7C15ull >> shift; }

  bool insert(int32_t row) {
    size_t at = start(keys[row]);
    for (; rows[at] >= 0; at = (at + 1) & (rows.size() - 1))
      if (keys[rows[at]] == keys[row]) return false;
    rows[at] = row;
    return true;
  }

  int32_t find(int64_t key) const {
    for (size_t at = start(key);; at = (at + 1) & (rows.size() - 1))
      if (rows[at] < 0 || keys[rows[at]] == key) return rows[at];
  }
};

// The same over a grid.
struct RankedRows {
  Grid grid;
  const int64_t* keys;
  std::vector<int32_t> rows;  // by rank

  RankedRows(const int64_t* keys, int64_t first, int64_t span) : grid(first, span), keys(keys) {}

  bool insert(int32_t row) { return grid.add(keys[row]); }

  void rank(int64_t count) {
    grid.count_before();
    rows.resize(count);
    for (int64_t row = 0; row < count; row++) rows[grid.rank(keys[row])] = static_cast<int32_t>(row);
  }

  int32_t find(int64_t key) const {
    const int32_t rank = grid.rank(key);
    return rank < 0 ? -1 : rows[rank];
  }
};

template <class Rows>
int64_t insert_all(Rows& rows, int64_t count) {
  for (int64_t row = 0; row < count; row++)
    if (!rows.insert(static_cast<int32_t>(row))) return row;
  return -1;
}

template <class Rows>
void fill_neighbors(const Rows& rows, const int64_t* keys, int64_t count, const int64_t* steps, int64_t half, int32_t* map) {
  share_out(half + 1, 0, [&](int64_t slot, char*) {
    int32_t* there = map + slot * count;
    int32_t* back = map + (2 * half - slot) * count;
    if (slot == half) {
      std::iota(there, there + count, 0);
      return;
    }
    std::fill_n(back, count, -1);
    for (int64_t row = 0; row < count; row++) {
      const int32_t found = rows.find(keys[row] + steps[slot]);
      there[row] = found;
      if (found >= 0) back[found] = static_cast<int32_t>(row);
    }
  });
}

// keys (n), steps (half): the map (2 half + 1, n) of rows whose key is so much larger, its mirror image and, between
// them, the rows themselves; and the first row whose key another row has, or -1.
std::tuple<Tensor, int64_t> find_neighbors(Tensor keys, Tensor steps) {
  const int64_t count = keys.size(0), half = steps.size(0);
  const int64_t* key = static_cast<const int64_t*>(keys.data_ptr());
  const int64_t* step = static_cast<const int64_t*>(steps.data_ptr());
  Tensor map = torch::stable::new_empty(keys, {2 * half + 1, count}, ScalarType::Int);
  if (count == 0) return {map, -1};
  const auto [least, most] = std::minmax_element(key, key + count);
  auto fill = [&](auto& rows, auto ready) {
    const int64_t twin = insert_all(rows, count);
    if (twin >= 0) return twin;
    ready(rows);
    fill_neighbors(rows, key, count, step, half, static_cast<int32_t*>(map.data_ptr()));
    return twin;
  };
  if (Grid::pays(*most - *least + 1, count)) {
    RankedRows rows(key, *least, *most - *least + 1);
    return {map, fill(rows, [&](RankedRows& all) { if (half > 0) all.rank(count); })};
  }
  Table table(key, count);
  return {map, fill(table, [](Table&) {})};
}

// Numbers keys in the order in which they come.
struct Numbering {
  std::vector<int64_t> keys;
  std::vector<int32_t> table = std::vector<int32_t>(1024, -1);

  size_t place(int64_t key) const {
    size_t at = static_cast<uint64_t>(key) * 0x9E3779B97F4A7C15ull >> (64 - std::countr_zero(table.size()));
    while (table[at] >= 0 && keys[table[at]] != key) at = (at + 1) & (table.size() - 1);
    return at;
  }

  int32_t number(int64_t key) {
    const size_t at = place(key);
    if (table[at] >= 0) return table[at];
    const int32_t next = static_cast<int32_t>(keys.size());
    table[at] = next;
    keys.push_back(key);
    if (2 * keys.size() > table.size()) {
      table.assign(2 * table.size(), -1);
      for (int32_t i = 0; i <= next; i++) table[place(keys[i])] = i;
    }
    return next;
  }
};

struct Axis {
  int64_t kernel, stride, padding, dilation, size;

  // The place that an input reaches with slot `at`, or -1.
  int64_t reach(int64_t place, int64_t at, bool transposed) const {
    int64_t target = transposed ? place * stride + at * dilation - padding : place + padding - at * dilation;
    if (target < 0 || (!transposed && target % stride)) return -1;
    if (!transposed) target /= stride;
    return target < size ? target : -1;
  }
};

// What the rows of coordinates (batch, axes) reach.
struct Reach {
  const int64_t* rows;
  int64_t count, axes;
  const Axis* axis;
  bool transposed;

  struct Hit {
    int64_t slot, key;
  };

  // f(slot, key) for every place that the row reaches; the lists are room for this.
  template <class F>
  void for_hits(int64_t row, std::vector<Hit>& hits, std::vector<Hit>& longer, const F& f) const {
    const int64_t* from = rows + row * (axes + 1);
    hits.assign(1, {0, from[0]});
    for (int64_t i = 0; i < axes; i++) {
      longer.clear();
      for (int64_t at = 0; at < axis[i].kernel; at++) {
        const int64_t target = axis[i].reach(from[i + 1], at, transposed);
        if (target < 0) continue;
        for (const Hit& hit : hits) longer.push_back({hit.slot * axis[i].kernel + at, hit.key * axis[i].size + target});
      }
      hits.swap(longer);
    }
    for (const Hit& hit : hits) f(hit.slot, hit.key);
  }

  int64_t slots() const {
    int64_t product = 1;
    for (int64_t i = 0; i < axes; i++) product *= axis[i].kernel;
    return product;
  }

  // How many keys there could be, or a number too large for a grid.
  int64_t span() const {
    int64_t product = 1;
    for (int64_t row = 0; row < count; row++) product = std::max(product, rows[row * (axes + 1)] + 1);
    for (int64_t i = 0; i < axes; i++) product = product > INT32_MAX ? product : product * axis[i].size;
    return product;
  }
};

// back (slots n) gets the key of every place that a row reaches, which all fit into 32 bits; the keys go into the grid.
void add_hits(const Reach& reach, Grid& grid, int32_t* back) {
  constexpr int64_t rows_of_job = 1024;
  share_out((reach.count + rows_of_job - 1) / rows_of_job, 0, [&](int64_t job, char*) {
    std::vector<Reach::Hit> hits, longer;
    for (int64_t row = job * rows_of_job; row < std::min(reach.count, (job + 1) * rows_of_job); row++)
      reach.for_hits(row, hits, longer, [&](int64_t slot, int64_t key) {
        back[slot * reach.count + row] = static_cast<int32_t>(key);
        grid.add(key);
      });
  });
}

// The same with numbers of keys, in the order in which they come.
void number_hits(const Reach& reach, Numbering& places, int32_t* back) {
  std::vector<Reach::Hit> hits, longer;
  for (int64_t row = 0; row < reach.count; row++)
    reach.for_hits(row, hits, longer,
                   [&](int64_t slot, int64_t key) { back[slot * reach.count + row] = places.number(key); });
}

// What back (slots n) names becomes its rank, rank(name); -> the input that each of them reads in every slot (slots m)
template <class F>
Tensor turn_over(const Tensor& numbers, int64_t slots, int64_t count, int32_t* back, const F& rank) {
  const int64_t found = numbers.size(0);
  Tensor forward = torch::stable::new_empty(numbers, {slots, found}, ScalarType::Int);
  int32_t* there = static_cast<int32_t*>(forward.data_ptr());
  share_out(slots, 0, [&](int64_t slot, char*) {
    std::fill_n(there + slot * found, found, -1);
    int32_t* own = back + slot * count;
    for (int64_t row = 0; row < count; row++) {
      if (own[row] < 0) continue;
      own[row] = rank(own[row]);
      there[slot * found + own[row]] = static_cast<int32_t>(row);
    }
  });
  return forward;
}

// coordinates (n, 1 + axes), settings (axes, 5) as in Axis -> numbers (m) of the places that inputs reach, ascending;
// the input that each of them reads in every slot (slots m), and the place that each input reaches (slots n), or -1.
std::tuple<Tensor, Tensor, Tensor> reach_places(Tensor coordinates, Tensor settings, bool transposed) {
  const Reach reach{static_cast<const int64_t*>(coordinates.data_ptr()), coordinates.size(0), settings.size(0),
                    static_cast<const Axis*>(settings.data_ptr()), transposed};
  const int64_t count = reach.count, slots = reach.slots(), span = reach.span();
  Tensor backward = torch::stable::new_empty(coordinates, {slots, count}, ScalarType::Int);
  int32_t* back = static_cast<int32_t*>(backward.data_ptr());
  std::fill_n(back, slots * count, -1);
  if (Grid::pays(span, count)) {
    Grid grid(0, span);
    add_hits(reach, grid, back);
    Tensor numbers = torch::stable::new_empty(coordinates, {grid.count_before()});
    int64_t* number = static_cast<int64_t*>(numbers.data_ptr());
    grid.for_keys([&](int64_t key) { *number++ = key; });
    return {numbers, turn_over(numbers, slots, count, back, [&](int32_t key) { return grid.rank(key); }), backward};
  }
  Numbering places;
  number_hits(reach, places, back);
  const int64_t found = static_cast<int64_t>(places.keys.size());
  std::vector<int32_t> order(found), ranks(found);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return places.keys[a] < places.keys[b]; });
  Tensor numbers = torch::stable::new_empty(coordinates, {found});
  for (int64_t i = 0; i < found; i++) {
    static_cast<int64_t*>(numbers.data_ptr())[i] = places.keys[order[i]];
    ranks[order[i]] = static_cast<int32_t>(i);
  }
  return {numbers, turn_over(numbers, slots, count, back, [&](int32_t name) { return ranks[name]; }), backward};
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparse_kernels, m) {
  m.def("find_neighbors_cpu(Tensor keys, Tensor steps) -> (Tensor, int)");
  m.def("reach_places_cpu(Tensor coordinates, Tensor settings, bool transposed) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("find_neighbors_cpu", OPERATOR(find_neighbors));
  m.impl("reach_places_cpu", OPERATOR(reach_places));
}

}  // namespace
