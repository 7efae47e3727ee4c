// torch.ops.sparse_kernels.block_mass_cpu: exp(q k scale - lse) summed over blocks, one head after the other.
// Arguments are checked by block_scores/api.py.
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

constexpr int64_t CHUNK_BYTES = 256 << 10;  // of packed keys: half of a small second-level cache

// The rows of one head that stand at the positions the offsets count.
struct Side {
  Rows rows;
  const int32_t* offsets;
  int32_t blocks;
};

void pack_keys(const Side& keys, const Panels& panels, const Reducer& reducer, int32_t head_dim, float* packed) {
  const int64_t bytes = head_dim * static_cast<int64_t>(sizeof(float));
  const int64_t panel_floats = reducer.panel * reducer.column_floats(head_dim);
  share_out(static_cast<int64_t>(panels.row.size()), bytes, [&](int64_t i, char* scratch) {
    reducer.pack({keys.rows, panels.row[i], panels.valid[i], head_dim, 1.0f, packed + i * panel_floats, nullptr,
                  reinterpret_cast<float*>(scratch)});
  });
}

// Cut the key blocks where a chunk of them fills the cache; a chunk holds at least one block.
std::vector<int32_t> cut_chunks(const Panels& panels, int64_t panel_bytes) {
  std::vector<int32_t> cuts{0};
  const int32_t blocks = static_cast<int32_t>(panels.first.size()) - 1;
  for (int32_t j = 0; j < blocks; j++)
    if (j > cuts.back() && (panels.first[j + 1] - panels.first[cuts.back()]) * panel_bytes > CHUNK_BYTES) cuts.push_back(j);
  cuts.push_back(blocks);
  return cuts;
}

// One item is a query block against one chunk of keys; its sums are nobody else's.
void sum_head(const Side& queries, const Panels& panels, const Reducer& reducer, int32_t head_dim, float scale,
              const float* lse, const float* packed, float* mass) {
  const int64_t panel_bytes = reducer.panel * reducer.column_floats(head_dim) * static_cast<int64_t>(sizeof(float));
  const std::vector<int32_t> cuts = cut_chunks(panels, panel_bytes);
  const int64_t blocks = static_cast<int64_t>(panels.first.size()) - 1, items = (cuts.size() - 1) * queries.blocks;
  share_out(items, reducer.mass_bytes(head_dim), [&](int64_t item, char* scratch) {
    const int64_t chunk = item / queries.blocks, i = item % queries.blocks;
    const int32_t rows = queries.offsets[i + 1] - queries.offsets[i];
    const int32_t parts = (rows + MASS_ROWS - 1) / MASS_ROWS, step = parts ? (rows + parts - 1) / parts : 1;
    for (int32_t row = 0; row < rows; row += step) {
      reducer.mass({queries.rows, queries.offsets[i] + row, std::min(step, rows - row), head_dim, scale, lse, packed,
                    panels.first.data(), panels.valid.data(), cuts[chunk], cuts[chunk + 1], mass + i * blocks, scratch});
    }
  });
}

Tensor block_mass(Tensor q, Tensor k, Tensor lse, Tensor q_offsets, Tensor kv_offsets, std::optional<Tensor> q_order,
                  std::optional<Tensor> kv_order, double scale, std::string instructions) {
  const Reducer& reducer = choose_reducer(instructions);
  check(reducer.mass, "instruction set ", instructions, " does not sum the mass of blocks");
  const int32_t head_dim = static_cast<int32_t>(q.size(3));
  const int32_t nq = static_cast<int32_t>(q_offsets.size(2)) - 1, nk = static_cast<int32_t>(kv_offsets.size(2)) - 1;
  Tensor mass = torch::stable::new_zeros(q, {q.size(0), q.size(1), nq, nk}, ScalarType::Float);
  const float scale_log2 = static_cast<float>(scale * LOG2E);
  Floats packed;
  for (int64_t b = 0; b < q.size(0); b++) {
    for (int64_t h = 0; h < q.size(1); h++) {
      const Side queries{head_rows(q, q_order, b, h, h), integers<int32_t>(q_offsets, b, h), nq};
      const Side keys{head_rows(k, kv_order, b, h * k.size(1) / q.size(1), h), integers<int32_t>(kv_offsets, b, h), nk};
      const Panels panels = cut_panels(keys.offsets, nk, reducer.panel);
      packed.resize(panels.row.size() * static_cast<size_t>(reducer.panel * reducer.column_floats(head_dim)));
      pack_keys(keys, panels, reducer, head_dim, packed.data());
      const int64_t head = b * q.size(1) + h;
      sum_head(queries, panels, reducer, head_dim, scale_log2, static_cast<const float*>(lse.data_ptr()) + head * q.size(2),
               packed.data(), static_cast<float*>(mass.data_ptr()) + head * nq * nk);
    }
  }
  return mass;
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparse_kernels, m) {
  m.def(
      "block_mass_cpu(Tensor q, Tensor k, Tensor lse, Tensor q_offsets, Tensor kv_offsets, Tensor? q_order, "
      "Tensor? kv_order, float scale, str instructions) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) { m.impl("block_mass_cpu", OPERATOR(block_mass)); }

}  // namespace
