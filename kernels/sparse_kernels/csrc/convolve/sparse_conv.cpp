// torch.ops.sparse_kernels.sparse_conv_cpu, sparse_conv_weight_cpu, find_neighbors_cpu and reach_places_cpu: convolution
// over a kernel map, and the map itself. Every output has one author and a fixed order of summation, so that the bits do
// not depend on the number of threads. Arguments are checked by sparse_conv/api.py and build.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <bit>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "common/choose.h"
#include "convolve/convolve.h"
#include "common/tensors.h"
#include "common/work.h"

namespace {

const Convolver& choose_convolver(const std::string& wanted, bool narrow) {
#ifdef X86
  const Convolver* const all[] = {&convolver_avx512_bf16, &convolver_avx512, &convolver_avx2, &convolver_portable};
#else
  const Convolver* const all[] = {&convolver_portable};
#endif
  auto fits = [&](const Convolver& one) { return narrow || one.name != std::string("avx512_bf16"); };
  const Convolver& convolver = choose(all, wanted, fits);
  check(fits(convolver), "instruction set ", wanted, " is not available for these inputs, which must be bfloat16");
  return convolver;
}

Rows rows_of(const Tensor& x) { return {x.data_ptr(), x.stride(0), nullptr, element_of(x)}; }

void check_named(bool named, int64_t rows) {
  check(named, "the kernel map must name input rows 0 to ", rows - 1, ", or -1 for none; it names others");
}

std::vector<float> pack_weights(const Convolver& convolver, const Tensor& weight, int64_t panels) {
  const int64_t slots = weight.size(0), depth = weight.size(1), width = weight.size(2), panel = convolver.panel;
  std::vector<float> packed(slots * panels * depth * panel);
  const float* data = static_cast<const float*>(weight.data_ptr());
  share_out(slots * panels, 0, [&](int64_t item, char*) {
    const int64_t slot = item / panels, first = item % panels * panel;
    convolver.pack({data + slot * weight.stride(0) + first * weight.stride(2), weight.stride(1), weight.stride(2),
                    static_cast<int32_t>(depth), static_cast<int32_t>(std::min(panel, width - first)),
                    packed.data() + item * depth * panel});
  });
  return packed;
}

// x (n c_in), weight (slots c_in c_out) in float32, map (slots m) -> (m c_out)
Tensor convolve(Tensor x, Tensor weight, Tensor map, std::string instructions) {
  const Convolver& convolver = choose_convolver(instructions, x.scalar_type() == ScalarType::BFloat16);
  const int64_t rows = map.size(1), width = weight.size(2), panels = (width + convolver.panel - 1) / convolver.panel;
  Tensor out = torch::stable::new_empty(x, {rows, width});
  const std::vector<float> packed = pack_weights(convolver, weight, panels);
  const Rows inputs = rows_of(x);
  const int64_t tiles = (rows + CONVOLVE_ROWS - 1) / CONVOLVE_ROWS;
  const int64_t row_bytes = width * static_cast<int64_t>(element_bytes(inputs.element));
  const int32_t depth = static_cast<int32_t>(weight.size(1)), panel_count = static_cast<int32_t>(panels);
  std::atomic<bool> named{true};
  share_out(tiles, convolver.convolve_bytes(depth, panel_count), [&](int64_t tile, char* scratch) {
    const int64_t first = tile * CONVOLVE_ROWS;
    if (!convolver.convolve({inputs, x.size(0), depth, static_cast<int32_t>(width), packed.data(),
                             static_cast<int32_t>(map.size(0)), panel_count,
                             static_cast<const int32_t*>(map.data_ptr()) + first, map.stride(0),
                             static_cast<int32_t>(std::min<int64_t>(CONVOLVE_ROWS, rows - first)),
                             static_cast<char*>(out.data_ptr()) + first * row_bytes, scratch}))
      named = false;
  });
  check_named(named, x.size(0));
  return out;
}

// x (n c_in), gradient (m c_out), map (slots m) -> (slots c_in c_out) in float32
Tensor weight_gradient(Tensor x, Tensor gradient, Tensor map, std::string instructions) {
  const Convolver& convolver = choose_convolver(instructions, false);
  const int64_t slots = map.size(0), depth = x.size(1), width = gradient.size(1);
  const int32_t panels = static_cast<int32_t>((width + convolver.panel - 1) / convolver.panel);
  Tensor out = torch::stable::new_empty(x, {slots, depth, width}, ScalarType::Float);
  const int64_t parts = (depth + GRADIENT_CHANNELS - 1) / GRADIENT_CHANNELS;
  const Rows inputs = rows_of(x), gradients = rows_of(gradient);
  std::atomic<bool> named{true};
  share_out(slots * parts, convolver.gradient_bytes(panels), [&](int64_t item, char* scratch) {
    const int64_t slot = item / parts, first = item % parts * GRADIENT_CHANNELS;
    if (!convolver.gradient({inputs, gradients, x.size(0), static_cast<int32_t>(width), panels, static_cast<int32_t>(first),
                             static_cast<int32_t>(std::min<int64_t>(GRADIENT_CHANNELS, depth - first)),
                             static_cast<const int32_t*>(map.data_ptr()) + slot * map.stride(0), map.size(1),
                             static_cast<float*>(out.data_ptr()) + (slot * depth + first) * width, scratch}))
      named = false;
  });
  check_named(named, x.size(0));
  return out;
}

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

// keys (n), steps (half): the map (2 half + 1, n) of rows whose key is so much larger, its mirror image and, between
// them, the rows themselves; and the first row whose key another row has, or -1.
std::tuple<Tensor, int64_t> find_neighbors(Tensor keys, Tensor steps) {
  const int64_t count = keys.size(0), half = steps.size(0), slots = 2 * half + 1;
  const int64_t* key = static_cast<const int64_t*>(keys.data_ptr());
  const int64_t* step = static_cast<const int64_t*>(steps.data_ptr());
  Tensor map = torch::stable::new_empty(keys, {slots, count}, ScalarType::Int);
  int32_t* data = static_cast<int32_t*>(map.data_ptr());
  Table table(key, count);
  for (int64_t row = 0; row < count; row++)
    if (!table.insert(static_cast<int32_t>(row))) return {map, row};
  share_out(slots - half, 0, [&](int64_t slot, char*) {
    int32_t* there = data + slot * count;
    int32_t* back = data + (slots - 1 - slot) * count;
    if (slot == half) {
      for (int64_t row = 0; row < count; row++) there[row] = static_cast<int32_t>(row);
      return;
    }
    std::fill_n(back, count, -1);
    for (int64_t row = 0; row < count; row++) {
      const int32_t found = table.find(key[row] + step[slot]);
      there[row] = found;
      if (found >= 0) back[found] = static_cast<int32_t>(row);
    }
  });
  return {map, -1};
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

// coordinates (n, 1 + axes), settings (axes, 5) as in Axis -> numbers (m) of the places that inputs reach, ascending;
// the input that each of them reads in every slot (slots m), and the place that each input reaches (slots n), or -1.
std::tuple<Tensor, Tensor, Tensor> reach_places(Tensor coordinates, Tensor settings, bool transposed) {
  const int64_t count = coordinates.size(0), axes = settings.size(0);
  const int64_t* rows = static_cast<const int64_t*>(coordinates.data_ptr());
  const Axis* axis = static_cast<const Axis*>(settings.data_ptr());
  int64_t slots = 1;
  for (int64_t i = 0; i < axes; i++) slots *= axis[i].kernel;
  Tensor backward = torch::stable::new_empty(coordinates, {slots, count}, ScalarType::Int);
  int32_t* back = static_cast<int32_t*>(backward.data_ptr());
  std::fill_n(back, slots * count, -1);
  Numbering places;
  struct Hit { int64_t slot, key; };
  std::vector<Hit> hits, longer;
  for (int64_t row = 0; row < count; row++) {
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
    for (const Hit& hit : hits) back[hit.slot * count + row] = places.number(hit.key);
  }
  const int64_t found = static_cast<int64_t>(places.keys.size());
  std::vector<int32_t> order(found), rank(found);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return places.keys[a] < places.keys[b]; });
  Tensor numbers = torch::stable::new_empty(coordinates, {found});
  for (int64_t i = 0; i < found; i++) {
    static_cast<int64_t*>(numbers.data_ptr())[i] = places.keys[order[i]];
    rank[order[i]] = static_cast<int32_t>(i);
  }
  Tensor forward = torch::stable::new_empty(coordinates, {slots, found}, ScalarType::Int);
  int32_t* there = static_cast<int32_t*>(forward.data_ptr());
  share_out(slots, 0, [&](int64_t slot, char*) {
    std::fill_n(there + slot * found, found, -1);
    int32_t* own = back + slot * count;
    for (int64_t row = 0; row < count; row++) {
      if (own[row] < 0) continue;
      own[row] = rank[own[row]];
      there[slot * found + own[row]] = static_cast<int32_t>(row);
    }
  });
  return {numbers, forward, backward};
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparse_kernels, m) {
  m.def("sparse_conv_cpu(Tensor x, Tensor weight, Tensor map, str instructions) -> Tensor");
  m.def("sparse_conv_weight_cpu(Tensor x, Tensor gradient, Tensor map, str instructions) -> Tensor");
  m.def("find_neighbors_cpu(Tensor keys, Tensor steps) -> (Tensor, int)");
  m.def("reach_places_cpu(Tensor coordinates, Tensor settings, bool transposed) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("sparse_conv_cpu", OPERATOR(convolve));
  m.impl("sparse_conv_weight_cpu", OPERATOR(weight_gradient));
  m.impl("find_neighbors_cpu", OPERATOR(find_neighbors));
  m.impl("reach_places_cpu", OPERATOR(reach_places));
}

}  // namespace
