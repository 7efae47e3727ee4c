// torch.ops.sparse_kernels.pack_mask_cpu, .permutes_cpu and .orders_labels_cpu: masks of blocks as lists, and whether
// orders that kernels trust hold what they must. torch takes a pass over memory for every step of these, and wakes its
// threads for each. Shapes are checked by block_map.py, _checks.py and centroids/api.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <tuple>

#include "common/tensors.h"
#include "common/work.h"

namespace {

constexpr int64_t FEW = 1 << 17;  // numbers that are read before another thread is awake

template <class F>
void for_each_row(int64_t rows, int64_t length, size_t scratch_bytes, const F& f) {
  const int64_t together = std::max<int64_t>(1, FEW / std::max<int64_t>(1, length));  // rows that one thread takes
  share_out<TinyStays>((rows + together - 1) / together, scratch_bytes, [&](int64_t item, char* scratch) {
    const int64_t first = item * together, end = std::min(rows, first + together);
    for (int64_t row = first; row < end; row++) f(row, scratch);
  });
}

// A tensor, so that graphs can hold it.
Tensor truth(const Tensor& like, bool value) {
  Tensor made = torch::stable::new_empty(like, {}, ScalarType::Bool);
  *static_cast<bool*>(made.data_ptr()) = value;
  return made;
}

// Visited blocks come first, in rising order, then zeros. Counts are of all visited blocks, also where `room` is less.
std::tuple<Tensor, Tensor> pack_mask(Tensor mask, int64_t room) {
  const int64_t blocks = mask.size(3), rows = mask.size(0) * mask.size(1) * mask.size(2);
  Tensor counts = torch::stable::new_empty(mask, {mask.size(0), mask.size(1), mask.size(2)}, ScalarType::Int);
  Tensor indices = torch::stable::new_empty(mask, {mask.size(0), mask.size(1), mask.size(2), room}, ScalarType::Int);
  for_each_row(rows, blocks, 0, [&](int64_t row, char*) {
    const uint8_t* visited = static_cast<const uint8_t*>(mask.data_ptr()) + row * blocks;
    int32_t* list = static_cast<int32_t*>(indices.data_ptr()) + row * room;
    int64_t count = 0;
    for (int64_t j = 0; j < blocks; j++) {
      if (visited[j] && count < room) list[count] = static_cast<int32_t>(j);
      count += visited[j] != 0;
    }
    if (count < room) std::fill(list + count, list + room, 0);
    static_cast<int32_t*>(counts.data_ptr())[row] = static_cast<int32_t>(count);
  });
  return {counts, indices};
}

// Whether each row of a contiguous tensor (rows n) of int64 holds every number from 0 to n - 1 once.
Tensor permutes(Tensor order) {
  const int64_t n = order.size(1);
  std::atomic<bool> all{true};
  for_each_row(order.size(0), n, n, [&](int64_t row, char* seen) {
    const int64_t* numbers = static_cast<const int64_t*>(order.data_ptr()) + row * n;
    std::memset(seen, 0, n);
    bool fine = true;
    for (int64_t i = 0; i < n; i++) {
      const int64_t number = numbers[i];
      if (number < 0 || number >= n || seen[number]) fine = false;
      else seen[number] = 1;
    }
    if (!fine) all = false;
  });
  return truth(order, all);
}

// Whether the labels of rows order[offsets[c]] to order[offsets[c + 1] - 1] are c, for every c; all tensors are
// contiguous, (rows n) but for offsets, (rows clusters + 1), which rise from 0 to n; orders hold rows.
Tensor orders_labels(Tensor labels, Tensor order, Tensor offsets) {
  const int64_t n = labels.size(1), clusters = offsets.size(1) - 1;
  std::atomic<bool> all{true};
  for_each_row(labels.size(0), n, 0, [&](int64_t row, char*) {
    const int32_t* label = static_cast<const int32_t*>(labels.data_ptr()) + row * n;
    const int64_t* numbers = static_cast<const int64_t*>(order.data_ptr()) + row * n;
    const int32_t* ends = static_cast<const int32_t*>(offsets.data_ptr()) + row * (clusters + 1);
    bool fine = true;
    for (int64_t c = 0; c < clusters; c++)
      for (int32_t i = ends[c]; i < ends[c + 1]; i++) fine &= label[numbers[i]] == c;
    if (!fine) all = false;
  });
  return truth(order, all);
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparse_kernels, m) {
  m.def("pack_mask_cpu(Tensor mask, int room) -> (Tensor, Tensor)");
  m.def("permutes_cpu(Tensor order) -> Tensor");
  m.def("orders_labels_cpu(Tensor labels, Tensor order, Tensor offsets) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("pack_mask_cpu", OPERATOR(pack_mask));
  m.impl("permutes_cpu", OPERATOR(permutes));
  m.impl("orders_labels_cpu", OPERATOR(orders_labels));
}

}  // namespace
