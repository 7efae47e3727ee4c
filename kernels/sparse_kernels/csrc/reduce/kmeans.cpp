// torch.ops.sparse_kernels.kmeans_cpu: Lloyd's iterations for many heads. Every result has one author and a fixed order
// of summation, so that the bits do not depend on the number of threads. Arguments are checked by kmeans/api.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <numeric>
#include <string>
#include <tuple>
#include <vector>

#include "reduce/choose_reducer.h"
#include "common/floats.h"
#include "common/tensors.h"
#include "common/work.h"

namespace {

struct Clustering {
  const Tensor& x;
  const Reducer& reducer;
  double (*mean)(const MeanJob&);
  int64_t heads, rows, clusters, panels;
  int32_t head_dim, depth;  // depth: floats of a packed centroid
  float* centroids;
  int32_t *labels, *sizes, *offsets;
  int64_t* order;
  Floats packed, norms;
  std::vector<double> moved;    // squared, of every centroid
  std::vector<int64_t> active;  // heads that still move

  Rows head(int64_t i, const int64_t* sorted = nullptr) const {
    const Element element = element_of(x);
    return {head_data(x, i / x.size(1), i % x.size(1), element_bytes(element)), x.stride(2), sorted, element};
  }
};

void pack_centroids(Clustering& c) {
  const int64_t panel = c.reducer.panel, bytes = c.head_dim * static_cast<int64_t>(sizeof(float));
  share_out(static_cast<int64_t>(c.active.size()) * c.panels, bytes, [&](int64_t item, char* scratch) {
    const int64_t head = c.active[item / c.panels], first = item % c.panels * panel, at = head * c.panels * panel + first;
    const Rows rows{c.centroids + head * c.clusters * c.head_dim, c.head_dim, nullptr, FLOAT32};
    const int32_t valid = static_cast<int32_t>(std::min(panel, c.clusters - first));
    // |x|^2 is the same for all centroids: |c|^2 - 2 x c decides.
    c.reducer.pack({rows, first, valid, c.head_dim, -2.0f, c.packed.data() + at * c.depth, c.norms.data() + at,
                    reinterpret_cast<float*>(scratch)});
  });
}

void assign(Clustering& c) {
  const int64_t tiles = (c.rows + NEAREST_ROWS - 1) / NEAREST_ROWS, columns = c.panels * c.reducer.panel;
  const size_t bytes = c.reducer.nearest_bytes(c.head_dim);
  share_out(static_cast<int64_t>(c.active.size()) * tiles, bytes, [&](int64_t item, char* scratch) {
    const int64_t head = c.active[item / tiles], first = item % tiles * NEAREST_ROWS;
    const int32_t count = static_cast<int32_t>(std::min<int64_t>(NEAREST_ROWS, c.rows - first));
    c.reducer.nearest({c.head(head), first, count, c.head_dim, c.packed.data() + head * columns * c.depth,
                       c.norms.data() + head * columns, static_cast<int32_t>(c.panels), c.labels + head * c.rows + first,
                       scratch});
  });
}

// A counting sort: stable, one head a thread.
void sort_rows(Clustering& c) {
  share_out(static_cast<int64_t>(c.active.size()), 0, [&](int64_t item, char*) {
    const int64_t head = c.active[item];
    const int32_t* labels = c.labels + head * c.rows;
    int32_t* sizes = c.sizes + head * c.clusters;
    int32_t* offsets = c.offsets + head * (c.clusters + 1);
    std::fill_n(sizes, c.clusters, 0);
    for (int64_t i = 0; i < c.rows; i++) sizes[labels[i]]++;
    offsets[0] = 0;
    std::partial_sum(sizes, sizes + c.clusters, offsets + 1);
    std::vector<int32_t> next(offsets, offsets + c.clusters);
    for (int64_t i = 0; i < c.rows; i++) c.order[head * c.rows + next[labels[i]]++] = i;
  });
}

void move_centroids(Clustering& c) {
  const int64_t bytes = c.head_dim * static_cast<int64_t>(sizeof(double) + sizeof(float));
  share_out(static_cast<int64_t>(c.active.size()) * c.clusters, bytes, [&](int64_t item, char* scratch) {
    const int64_t head = c.active[item / c.clusters], i = item % c.clusters, at = head * c.clusters + i;
    const int32_t* offsets = c.offsets + head * (c.clusters + 1);
    const Rows rows = c.head(head, c.order + head * c.rows);
    c.moved[at] = 0;
    if (offsets[i] == offsets[i + 1]) return;  // an empty cluster keeps its centroid
    c.moved[at] = c.mean({rows, offsets[i], offsets[i + 1], c.head_dim, c.centroids + at * c.head_dim,
                          reinterpret_cast<double*>(scratch)});
  });
}

void drop_settled_heads(Clustering& c, double tolerance) {
  std::erase_if(c.active, [&](int64_t head) {
    const auto first = c.moved.begin() + head * c.clusters;
    return !(std::sqrt(*std::max_element(first, first + c.clusters)) > tolerance);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> kmeans(
    Tensor x, Tensor start, int64_t iterations, double tolerance, std::string instructions) {
  const Reducer& reducer = choose_reducer(instructions);
  const int64_t b = x.size(0), h = x.size(1), n = x.size(2), k = start.size(2), d = x.size(3);
  Tensor centroids = torch::stable::clone(start);
  Tensor labels = torch::stable::new_empty(x, {b, h, n}, ScalarType::Int);
  Tensor sizes = torch::stable::new_empty(x, {b, h, k}, ScalarType::Int);
  Tensor order = torch::stable::new_empty(x, {b, h, n}, ScalarType::Long);
  Tensor offsets = torch::stable::new_empty(x, {b, h, k + 1}, ScalarType::Int);
  const int64_t panels = (k + reducer.panel - 1) / reducer.panel;
  const int32_t depth = reducer.column_floats(static_cast<int32_t>(d));
  Clustering c{x, reducer, reducer.mean ? reducer.mean : choose_reducer("").mean, b * h, n, k, panels,
               static_cast<int32_t>(d), depth, static_cast<float*>(centroids.data_ptr()),
               static_cast<int32_t*>(labels.data_ptr()), static_cast<int32_t*>(sizes.data_ptr()),
               static_cast<int32_t*>(offsets.data_ptr()), static_cast<int64_t*>(order.data_ptr())};
  c.packed.resize(b * h * panels * reducer.panel * depth);
  c.norms.resize(b * h * panels * reducer.panel);
  c.moved.resize(b * h * k);
  c.active.resize(b * h);
  std::iota(c.active.begin(), c.active.end(), 0);
  for (int64_t i = 0; i < std::max<int64_t>(iterations, 1) && !c.active.empty(); i++) {
    pack_centroids(c);
    assign(c);
    sort_rows(c);
    if (iterations == 0) break;
    move_centroids(c);
    drop_settled_heads(c, tolerance);
  }
  return {labels, centroids, sizes, order, offsets};
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparse_kernels, m) {
  m.def(
      "kmeans_cpu(Tensor x, Tensor centroids, int iterations, float tolerance, str instructions) -> "
      "(Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) { m.impl("kmeans_cpu", OPERATOR(kmeans)); }

}  // namespace
