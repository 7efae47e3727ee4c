// How the schedulers read torch's tensors and cut keys into panels; included by files built on the stable ABI.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "common/errors.h"
#include "common/rows.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Element element_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return FLOAT32;
    case ScalarType::BFloat16: return BFLOAT16;
    case ScalarType::Half: return FLOAT16;
    default: check(false, "tensors must be float32, bfloat16 or float16"); return FLOAT32;
  }
}

inline size_t element_bytes(Element element) { return element == FLOAT32 ? 4 : 2; }

// One head of a tensor (b h s d), or of a row order (b h s); sizes of 1 are shared by all batches or heads.
inline const char* head_data(const Tensor& x, int64_t batch, int64_t head, size_t bytes) {
  int64_t offset = (x.size(0) == 1 ? 0 : batch) * x.stride(0) + (x.size(1) == 1 ? 0 : head) * x.stride(1);
  return static_cast<const char*>(x.data_ptr()) + offset * static_cast<int64_t>(bytes);
}

template <class T>
const T* integers(const Tensor& x, int64_t batch, int64_t head) {
  return reinterpret_cast<const T*>(head_data(x, batch, head, sizeof(T)));
}

inline Rows head_rows(const Tensor& x, const std::optional<Tensor>& order, int64_t batch, int64_t head, int64_t order_head) {
  Element element = element_of(x);
  const int64_t* rows = order ? integers<int64_t>(*order, batch, order_head) : nullptr;
  return {head_data(x, batch, head, element_bytes(element)), x.stride(2), rows, element};
}

// How the keys of one (batch, head) of the map are cut into panels.
struct Panels {
  std::vector<int32_t> first;    // of each key block, and one past the last
  std::vector<int64_t> row;      // position of each panel's first key
  std::vector<uint8_t> valid;
};

inline Panels cut_panels(const int32_t* offsets, int64_t blocks, int32_t panel) {
  Panels panels;
  panels.first.push_back(0);
  for (int64_t j = 0; j < blocks; j++) {
    for (int32_t row = offsets[j]; row < offsets[j + 1]; row += panel) {
      panels.row.push_back(row);
      panels.valid.push_back(static_cast<uint8_t>(std::min(panel, offsets[j + 1] - row)));
    }
    panels.first.push_back(static_cast<int32_t>(panels.row.size()));
  }
  return panels;
}

}  // namespace
