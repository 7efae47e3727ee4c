// torch.ops.sparse_kernels.centroid_log_error_cpu, .merge_centroids_cpu and .pooled_cpu: what it costs that a cluster's
// centroid answers for its keys, and these answers. Every result has one author and a fixed order of summation.
// Arguments are checked by centroids/api.py and block_scores/pooled.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "reduce/choose_reducer.h"
#include "common/floats.h"
#include "common/tensors.h"
#include "common/work.h"

namespace {

// One that has the function of that name.
template <class F>
const Reducer& reducer_with(F Reducer::* function, const std::string& instructions) {
  const Reducer& reducer = choose_reducer(instructions);
  check(reducer.*function, "instruction set ", instructions, " does not weigh centroids");
  return reducer;
}

// All rows of every head of a contiguous float32 tensor (b h n d), as columns in panels.
struct Packed {
  int32_t panels;
  int64_t depth, floats;  // of one column, and of one head
  Floats data;

  Packed(const Tensor& x, float scale, const Reducer& reducer)
      : panels(static_cast<int32_t>((x.size(2) + reducer.panel - 1) / reducer.panel)),
        depth(reducer.column_floats(static_cast<int32_t>(x.size(3)))),
        floats(panels * reducer.panel * depth),
        data(x.size(0) * x.size(1) * floats) {
    const int64_t n = x.size(2), d = x.size(3), bytes = d * static_cast<int64_t>(sizeof(float));
    share_out(x.size(0) * x.size(1) * panels, bytes, [&](int64_t item, char* scratch) {
      const int64_t head = item / panels, first = item % panels * reducer.panel;
      const Rows rows{static_cast<const float*>(x.data_ptr()) + head * n * d, d, nullptr, FLOAT32};
      reducer.pack({rows, first, static_cast<int32_t>(std::min<int64_t>(reducer.panel, n - first)), static_cast<int32_t>(d),
                    scale, data.data() + head * floats + first * depth, nullptr, reinterpret_cast<float*>(scratch)});
    });
  }
};

Tensor centroid_log_error(Tensor queries, Tensor k, Tensor v, Tensor order, Tensor offsets, Tensor centroids, Tensor values,
                      double scale, std::string instructions) {
  const Reducer& reducer = reducer_with(&Reducer::error, instructions);
  const int64_t heads = k.size(1), nq = queries.size(2), nk = centroids.size(2), d = k.size(3);
  Tensor error = torch::stable::new_empty(queries, {k.size(0), heads, nq, nk}, ScalarType::Float);
  const Packed packed(queries, static_cast<float>(scale * LOG2E), reducer);
  const int64_t columns = packed.panels * reducer.panel;
  const size_t bytes = reducer.error_bytes(static_cast<int32_t>(d), packed.panels);
  share_out(k.size(0) * heads * nk, bytes + 2 * columns * sizeof(float), [&](int64_t item, char* scratch) {
    const int64_t b = item / nk / heads, h = item / nk % heads, j = item % nk;
    const int32_t* ends = integers<int32_t>(offsets, b, h);
    float* sums = reinterpret_cast<float*>(scratch + bytes);
    reducer.error({head_rows(k, order, b, h, h), head_rows(v, order, b, h, h), ends[j], ends[j + 1] - ends[j],
                   static_cast<int32_t>(d), static_cast<const float*>(centroids.data_ptr()) + item * d,
                   static_cast<const float*>(values.data_ptr()) + item * d,
                   packed.data.data() + item / nk * packed.floats, packed.panels, static_cast<int32_t>(nq), sums, sums + columns, scratch});
    float* to = static_cast<float*>(error.data_ptr()) + item / nk * nq * nk + j;
    for (int64_t i = 0; i < nq; i++) to[i * nk] = sums[i];
  });
  return error;
}

// Rows that `order` does not name keep what `out` says.
Tensor merge_centroids(Tensor q, Tensor out, Tensor lse, Tensor order, Tensor offsets, Tensor weights, Tensor centroids,
                       Tensor values, double scale, std::string instructions) {
  const Reducer& reducer = reducer_with(&Reducer::merge, instructions);
  const int32_t d = static_cast<int32_t>(q.size(3)), width = (d + reducer.panel - 1) / reducer.panel * reducer.panel;
  const int64_t heads = q.size(1), nq = weights.size(2), nk = weights.size(3);
  Tensor merged = torch::stable::clone(out);
  if (merged.stride(3) != 1) merged = torch::stable::contiguous(merged);  // where rows of `out` overlap
  const Packed packed(centroids, 1.0f, reducer);
  const int64_t columns = packed.panels * reducer.panel;
  std::vector<float> padded(q.size(0) * heads * columns * width);
  for (int64_t i = 0; i < q.size(0) * heads; i++)
    for (int64_t j = 0; j < nk; j++)
      std::copy_n(static_cast<const float*>(values.data_ptr()) + (i * nk + j) * d, d, padded.data() + (i * columns + j) * width);
  const size_t bytes = reducer.merge_bytes(d, packed.panels);
  share_out(q.size(0) * heads * nq, bytes + columns * sizeof(float), [&](int64_t item, char* scratch) {
    const int64_t b = item / nq / heads, h = item / nq % heads, head = item / nq;
    const int32_t* ends = integers<int32_t>(offsets, b, h) + item % nq;
    float* own = reinterpret_cast<float*>(scratch + bytes);
    for (int64_t j = 0; j < columns; j++)
      own[j] = j < nk ? static_cast<const float*>(weights.data_ptr())[item * nk + j] * static_cast<float>(LOG2E) : -__builtin_inff();
    const size_t element = element_bytes(element_of(q));
    for (int32_t first = ends[0]; first < ends[1]; first += MERGE_ROWS) {
      reducer.merge({head_rows(q, order, b, h, h), first, std::min(MERGE_ROWS, ends[1] - first), d,
                     static_cast<float>(scale * LOG2E),
                     static_cast<const float*>(lse.data_ptr()) + head * lse.size(2),
                     packed.data.data() + head * packed.floats, own, packed.panels, padded.data() + head * columns * width,
                     width, head_data(out, b, h, element), out.stride(2),
                     const_cast<char*>(head_data(merged, b, h, element)), merged.stride(2), scratch});
    }
  });
  return merged;
}

Tensor pooled(Tensor x, Tensor offsets, std::optional<Tensor> order, std::string instructions) {
  const Reducer& reducer = reducer_with(&Reducer::mean, instructions);
  const int64_t heads = x.size(1), blocks = offsets.size(2) - 1, d = x.size(3);
  Tensor means = torch::stable::new_zeros(x, {x.size(0), heads, blocks, d}, ScalarType::Float);
  share_out(x.size(0) * heads * blocks, d * (sizeof(double) + sizeof(float)), [&](int64_t item, char* scratch) {
    const int64_t b = item / blocks / heads, h = item / blocks % heads;
    const int32_t* ends = integers<int32_t>(offsets, b, h) + item % blocks;
    if (ends[0] == ends[1]) return;
    reducer.mean({head_rows(x, order, b, h, h), ends[0], ends[1], static_cast<int32_t>(d),
                  static_cast<float*>(means.data_ptr()) + item * d, reinterpret_cast<double*>(scratch)});
  });
  return means;
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparse_kernels, m) {
  m.def(
      "centroid_log_error_cpu(Tensor queries, Tensor k, Tensor v, Tensor order, Tensor offsets, Tensor centroids, "
      "Tensor values, float scale, str instructions) -> Tensor");
  m.def(
      "merge_centroids_cpu(Tensor q, Tensor out, Tensor lse, Tensor order, Tensor offsets, Tensor weights, "
      "Tensor centroids, Tensor values, float scale, str instructions) -> Tensor");
  m.def("pooled_cpu(Tensor x, Tensor offsets, Tensor? order, str instructions) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("centroid_log_error_cpu", OPERATOR(centroid_log_error));
  m.impl("merge_centroids_cpu", OPERATOR(merge_centroids));
  m.impl("pooled_cpu", OPERATOR(pooled));
}

}  // namespace
