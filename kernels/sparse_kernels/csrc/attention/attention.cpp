// torch.ops.sparse_kernels.block_sparse_attention_cpu: checks, packing, and the order of work.
// Built on torch's stable ABI: one binary serves every supported torch.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "attention/kernel.h"
#include "attention/visits.h"
#include "common/choose.h"
#include "common/tensors.h"
#include "common/work.h"

namespace {

const Kernel& choose_kernel(const std::string& wanted, Element element) {
#ifdef X86
  const Kernel* const kernels[] = {&kernel_amx,         &kernel_avx512_bf16,  &kernel_avx512,
                                   &kernel_avx2,        &kernel_portable,     &kernel_amx_int8,
                                   &kernel_avx512_int8, &kernel_amx_emulated, &kernel_amx_int8_emulated};
#else
  const Kernel* const kernels[] = {&kernel_portable, &kernel_amx_emulated, &kernel_amx_int8_emulated};
#endif
  // Two round to bf16, so only bf16 inputs go there unasked; what stands behind the portable one is taken by name only.
  return choose(kernels, wanted, [&](const Kernel& kernel) {
    const std::string name = kernel.name;
    return element == BFLOAT16 || (name != "amx" && name != "avx512_bf16");
  });
}

std::string instruction_set(const std::string& element) {
  if (element == "int8") {
#ifdef X86
    for (const Kernel* kernel : {&kernel_amx_int8, &kernel_avx512_int8})
      if (kernel->can_run()) return kernel->name;
#endif
    return "";
  }
  return choose_kernel("", element == "bfloat16" ? BFLOAT16 : FLOAT32).name;
}

struct Tile {
  int64_t batch, head, block, first_row, cost;
  int32_t rows;
};

// What answers for key blocks that a query block does not visit; packed as panels behind those of the keys.
struct Summaries {
  std::optional<Tensor> keys, values, weights;  // (b h blocks d) twice and (b h blocks), float32
  int64_t blocks = 0, panels = 0;               // panels of one head

  int64_t head(int64_t batch, int64_t head) const {
    return (weights->size(0) == 1 ? 0 : batch) * weights->size(1) + (weights->size(1) == 1 ? 0 : head);
  }
  int64_t panel_total() const { return weights ? weights->size(0) * weights->size(1) * panels : 0; }
};

struct Call {
  const Tensor &q, &k, &v, &counts, &indices, &q_offsets, &kv_offsets;
  const std::optional<Tensor>&q_order, &kv_order, &key_mean;
  const Kernel& kernel;
  const Summaries& summaries;
  bool lse_of_visited;
  int64_t batches, heads, kv_heads, head_dim, map_heads, map_batches;
  std::vector<Panels> panels;      // per (map batch, map head)
  std::vector<int64_t> pack_of;    // per (batch, head): which packing it reads
  std::vector<std::pair<int64_t, int64_t>> packings;  // (batch, head) that each packing is made from
  std::vector<int64_t> pack_start;  // in panels
  int64_t panel_total = 0;
  bool blocks_share_panels = false;
  std::vector<float> query_largest;  // per (batch, head, query block), for kernels that quantise
  std::vector<float> key_largest;    // per panel, that of its key block

  const Panels& panels_of(int64_t batch, int64_t head) const {
    return panels[(map_batches == 1 ? 0 : batch) * map_heads + (map_heads == 1 ? 0 : head)];
  }
  const float* mean_of(int64_t batch, int64_t head) const {
    if (!key_mean) return nullptr;
    return reinterpret_cast<const float*>(head_data(*key_mean, batch, head * kv_heads / heads, sizeof(float)));
  }
};

// Whether fewer panels are visited where blocks share them: neighbours then fill the panel that holds their border, but
// a block by itself begins and ends within one. Kernels that quantise round every block by itself.
bool fewer_if_shared(const Call& call) {
  if (call.kernel.largest) return false;
  int64_t own = 0, shared = 0;
  for (int64_t b = 0; b < std::max(call.counts.size(0), call.kv_offsets.size(0)); b++) {
    for (int64_t h = 0; h < std::max(call.counts.size(1), call.kv_offsets.size(1)); h++) {
      const int32_t *q_offsets = integers<int32_t>(call.q_offsets, b, h), *offsets = integers<int32_t>(call.kv_offsets, b, h);
      const int32_t *counts = integers<int32_t>(call.counts, b, h), *indices = integers<int32_t>(call.indices, b, h);
      for (int64_t i = 0; i < call.counts.size(2); i++) {
        const int64_t rows = q_offsets[i + 1] - q_offsets[i];
        const int32_t* list = indices + i * call.indices.stride(2);
        own += rows * count_panels(offsets, list, counts[i], call.kernel.panel, false);
        shared += rows * count_panels(offsets, list, counts[i], call.kernel.panel, true);
      }
    }
  }
  return shared < own;
}

void plan_panels(Call& call) {
  const int64_t blocks = call.kv_offsets.size(2) - 1;
  const int32_t whole[] = {0, static_cast<int32_t>(call.k.size(2))};
  for (int64_t b = 0; b < call.map_batches; b++) {
    for (int64_t h = 0; h < call.map_heads; h++) {
      const int32_t* offsets = integers<int32_t>(call.kv_offsets, b, h);
      call.panels.push_back(call.blocks_share_panels ? cut_panels(whole, 1, call.kernel.panel)
                                                     : cut_panels(offsets, blocks, call.kernel.panel));
    }
  }
  // Heads that share a key head, its order and its blocks share one packing (grouped queries).
  const bool shared = call.map_heads == 1 && (!call.kv_order || call.kv_order->size(1) == 1);
  const int64_t group = call.heads / call.kv_heads;
  for (int64_t b = 0; b < call.batches; b++) {
    for (int64_t h = 0; h < call.heads; h++) {
      if (shared && h % group) {
        call.pack_of.push_back(call.pack_of.back());
        continue;
      }
      call.pack_of.push_back(static_cast<int64_t>(call.packings.size()));
      call.packings.emplace_back(b, h);
      call.pack_start.push_back(call.panel_total);
      call.panel_total += static_cast<int64_t>(call.panels_of(b, h).row.size());
    }
  }
}

void find_largest(Call& call) {
  if (!call.kernel.largest) return;
  const int64_t q_blocks = call.q_offsets.size(2) - 1, kv_blocks = call.kv_offsets.size(2) - 1;
  const int64_t queries = call.batches * call.heads * q_blocks;
  const int64_t keys = static_cast<int64_t>(call.packings.size()) * kv_blocks;
  const int32_t head_dim = static_cast<int32_t>(call.head_dim);
  call.query_largest.resize(static_cast<size_t>(queries));
  call.key_largest.resize(static_cast<size_t>(call.panel_total));
  torch::stable::parallel_for(0, queries + keys, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; i++) {
      if (i < queries) {
        const int64_t b = i / q_blocks / call.heads, h = i / q_blocks % call.heads;
        const int32_t* block = integers<int32_t>(call.q_offsets, b, h) + i % q_blocks;
        const Rows rows = head_rows(call.q, call.q_order, b, h, h);
        call.query_largest[i] = call.kernel.largest(rows, block[0], block[1] - block[0], head_dim, nullptr);
        continue;
      }
      const int64_t packing = (i - queries) / kv_blocks, j = (i - queries) % kv_blocks;
      const auto [b, h] = call.packings[packing];
      const int32_t* block = integers<int32_t>(call.kv_offsets, b, h) + j;
      const Rows rows = head_rows(call.k, call.kv_order, b, h * call.kv_heads / call.heads, h);
      const float value = call.kernel.largest(rows, block[0], block[1] - block[0], head_dim, call.mean_of(b, h));
      float* of_panels = call.key_largest.data() + call.pack_start[packing];
      const Panels& panels = call.panels_of(b, h);
      std::fill(of_panels + panels.first[j], of_panels + panels.first[j + 1], value);
    }
  });
}

void pack_panels(const Call& call, char* keys, char* values) {
  const int64_t bytes = static_cast<int64_t>(call.kernel.panel_bytes(static_cast<int32_t>(call.head_dim)));
  torch::stable::parallel_for(0, call.panel_total, 16, [&](int64_t begin, int64_t end) {
    size_t packing = std::upper_bound(call.pack_start.begin(), call.pack_start.end(), begin) - call.pack_start.begin() - 1;
    for (int64_t i = begin; i < end; i++) {
      while (packing + 1 < call.pack_start.size() && call.pack_start[packing + 1] <= i) packing++;
      const auto [b, h] = call.packings[packing];
      const int64_t kv_head = h * call.kv_heads / call.heads;
      const Panels& panels = call.panels_of(b, h);
      const int64_t panel = i - call.pack_start[packing];
      call.kernel.pack({head_rows(call.k, call.kv_order, b, kv_head, h), head_rows(call.v, call.kv_order, b, kv_head, h),
                        panels.row[panel], panels.valid[panel], static_cast<int32_t>(call.head_dim), keys + i * bytes,
                        values + i * bytes, call.key_largest.empty() ? 0 : call.key_largest[i], call.mean_of(b, h)});
    }
  });
}

void pack_summaries(const Call& call, char* keys, char* values) {
  const Summaries& summaries = call.summaries;
  const int64_t bytes = static_cast<int64_t>(call.kernel.panel_bytes(static_cast<int32_t>(call.head_dim)));
  share_out(summaries.panel_total(), 0, [&](int64_t i, char*) {
    const int64_t head = i / summaries.panels, b = head / summaries.weights->size(1), h = head % summaries.weights->size(1);
    const int64_t first = i % summaries.panels * call.kernel.panel;
    const int32_t valid = static_cast<int32_t>(std::min<int64_t>(call.kernel.panel, summaries.blocks - first));
    call.kernel.pack({head_rows(*summaries.keys, std::nullopt, b, h, h), head_rows(*summaries.values, std::nullopt, b, h, h),
                      first, valid, static_cast<int32_t>(call.head_dim), keys + i * bytes, values + i * bytes, 0, nullptr});
  });
}

// Which panels of summaries a query block hears, counted from the first panel of the keys that it reads, and the weight
// of each summary in them.
void hear_summaries(const Call& call, const Tile& tile, const int32_t* indices, int32_t count, int64_t first_panel,
                    std::vector<int32_t>& visited, std::vector<float>& weights) {
  const Summaries& summaries = call.summaries;
  const int64_t panel = call.kernel.panel, head = summaries.head(tile.batch, tile.head);
  const float* own = static_cast<const float*>(summaries.weights->data_ptr()) + head * summaries.blocks;
  weights.assign(static_cast<size_t>(summaries.panels * panel), SILENT);
  for (int64_t j = 0; j < summaries.blocks; j++)
    if (own[j] > -__builtin_inff()) weights[j] = own[j] * static_cast<float>(LOG2E);
  for (int32_t j = 0; j < count; j++) weights[indices[j]] = SILENT;
  auto end = weights.begin();  // panels that nobody speaks in are left out
  for (int64_t i = 0; i < summaries.panels; i++) {
    const auto first = weights.begin() + i * panel;
    if (std::none_of(first, first + panel, [](float weight) { return weight > SILENT; })) continue;
    end = std::copy(first, first + panel, end);
    visited.push_back(static_cast<int32_t>(call.panel_total + head * summaries.panels + i - first_panel));
  }
}

// Tiles of one head stay together, for the caches, with the longest first; the last to start are short ones.
std::vector<Tile> plan_tiles(const Call& call) {
  std::vector<Tile> tiles;
  const int64_t blocks = call.q_offsets.size(2) - 1;
  for (int64_t b = 0; b < call.batches; b++) {
    for (int64_t h = 0; h < call.heads; h++) {
      const int32_t* offsets = integers<int32_t>(call.q_offsets, b, h);
      const int32_t* counts = integers<int32_t>(call.counts, b, h);
      const int32_t* indices = integers<int32_t>(call.indices, b, h);
      const int32_t* key_offsets = integers<int32_t>(call.kv_offsets, b, h);
      const size_t first_tile = tiles.size();
      for (int64_t i = 0; i < blocks; i++) {
        const int32_t rows = offsets[i + 1] - offsets[i];
        if (rows == 0) continue;
        const int64_t count = count_panels(key_offsets, indices + i * call.indices.stride(2), counts[i],
                                           call.kernel.panel, call.blocks_share_panels);
        const int32_t most = call.kernel.tile_rows, parts = (rows + most - 1) / most, step = (rows + parts - 1) / parts;
        for (int32_t row = 0; row < rows; row += step) {
          const int32_t height = std::min(step, rows - row);
          const int64_t cost = height * (count + call.summaries.panels);
          tiles.push_back({b, h, i, offsets[i] + row, cost, height});
        }
      }
      std::sort(tiles.begin() + static_cast<int64_t>(first_tile), tiles.end(), [](const Tile& a, const Tile& b) {
        return a.cost != b.cost ? a.cost > b.cost : a.first_row < b.first_row;
      });
    }
  }
  return tiles;
}

// A thread's tiles, set up while it lives: they are let go also where memory for the lists of a tile runs out.
struct ThreadTiles {
  const Kernel& kernel;
  explicit ThreadTiles(const Kernel& whose) : kernel(whose) { kernel.begin_thread(); }
  ~ThreadTiles() { kernel.end_thread(); }
};

void attend_tiles(const Call& call, const char* keys, const char* values, float scale, Tensor& out, Tensor& lse) {
  const std::vector<Tile> tiles = plan_tiles(call);
  const int32_t head_dim = static_cast<int32_t>(call.head_dim);
  const int64_t bytes = static_cast<int64_t>(call.kernel.panel_bytes(head_dim));
  const Element element = element_of(call.q);
  std::atomic<size_t> next{0};
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    const TinyIsZero tiny_is_zero;
    std::vector<char> buffer(call.kernel.scratch_bytes(head_dim) + 64);
    char* scratch = buffer.data() + (64 - reinterpret_cast<uintptr_t>(buffer.data()) % 64);
    Visits visits;
    std::vector<float> weights;
    const ThreadTiles thread_tiles(call.kernel);
    for (size_t t = next++; t < tiles.size(); t = next++) {
      const Tile& tile = tiles[t];
      const Panels& panels = call.panels_of(tile.batch, tile.head);
      const int32_t* indices =
          integers<int32_t>(call.indices, tile.batch, tile.head) + tile.block * call.indices.stride(2);
      const int32_t count = integers<int32_t>(call.counts, tile.batch, tile.head)[tile.block];
      visits.panels.clear();
      visits.visible.clear();
      if (call.blocks_share_panels)
        visit_keys(panels, integers<int32_t>(call.kv_offsets, tile.batch, tile.head), indices, count, call.kernel.panel, visits);
      else
        visit_blocks(panels, indices, count, visits);
      const int32_t key_panels = static_cast<int32_t>(visits.panels.size());
      const int64_t head = tile.batch * call.heads + tile.head, q_blocks = call.q_offsets.size(2) - 1;
      const int64_t first_panel = call.pack_start[call.pack_of[head]], start = first_panel * bytes;
      const bool quantised = !call.query_largest.empty();
      if (call.summaries.weights) hear_summaries(call, tile, indices, count, first_panel, visits.panels, weights);
      const int32_t panel_count = static_cast<int32_t>(visits.panels.size());
      call.kernel.attend({head_rows(call.q, call.q_order, tile.batch, tile.head, tile.head), tile.first_row, tile.rows,
                          head_dim, scale, visits.panels.data(), panel_count, panel_count - key_panels, visits.visible.data(),
                          weights.data(), call.lse_of_visited, keys + start, values + start, const_cast<char*>(head_data(out, tile.batch, tile.head, element_bytes(element))),
                          out.stride(2), reinterpret_cast<float*>(const_cast<char*>(head_data(lse, tile.batch, tile.head, 4))),
                          scratch, quantised ? call.query_largest[head * q_blocks + tile.block] : 0,
                          quantised ? call.key_largest.data() + first_panel : nullptr,
                          call.mean_of(tile.batch, tile.head)});
    }
  });
}

void check_offsets(const Tensor& offsets, int64_t length, const char* name) {
  for (int64_t b = 0; b < offsets.size(0); b++) {
    for (int64_t h = 0; h < offsets.size(1); h++) {
      const int32_t* row = integers<int32_t>(offsets, b, h);
      bool rising = row[0] == 0 && row[offsets.size(2) - 1] == length;
      for (int64_t i = 1; i < offsets.size(2); i++) rising &= row[i - 1] <= row[i];
      check(rising, name, " must rise from 0 to the sequence length ", length);
    }
  }
}

void check_order(const std::optional<Tensor>& order, int64_t length, const char* name) {
  for (int64_t b = 0; order && b < order->size(0); b++) {
    for (int64_t h = 0; h < order->size(1); h++) {
      std::vector<bool> seen(static_cast<size_t>(length));
      const int64_t* row = integers<int64_t>(*order, b, h);
      for (int64_t i = 0; i < length; i++) {
        const bool fresh = row[i] >= 0 && row[i] < length && !seen[static_cast<size_t>(row[i])];
        check(fresh, name, " must hold every row 0 to ", length - 1, " once");
        seen[static_cast<size_t>(row[i])] = true;
      }
    }
  }
}

// The lists of key blocks of one head of the map.
void check_lists(const int32_t* counts, const int32_t* indices, int64_t q_blocks, int64_t kv_blocks, int64_t room) {
  std::vector<int64_t> seen(static_cast<size_t>(kv_blocks), -1);  // the last query block that named each key block
  for (int64_t i = 0; i < q_blocks; i++) {
    check(counts[i] >= 0 && counts[i] <= room, "counts must lie between 0 and indices.shape[-1] = ", room, ", got ", counts[i]);
    for (int32_t j = 0; j < counts[i]; j++) {
      const int32_t block = indices[i * room + j];
      check(block >= 0 && block < kv_blocks, "indices must name key blocks 0 to ", kv_blocks - 1, ", got ", block);
      check(seen[block] != i, "indices must name a key block once for each query block, got ", block, " twice");
      seen[block] = i;
    }
  }
}

// Index tensors are trusted after this: one pass over the map is nothing beside the attention.
void check_map(const Call& call) {
  check_offsets(call.q_offsets, call.q.size(2), "q_offsets");
  check_offsets(call.kv_offsets, call.k.size(2), "kv_offsets");
  check_order(call.q_order, call.q.size(2), "q_order");
  check_order(call.kv_order, call.k.size(2), "kv_order");
  const int64_t q_blocks = call.q_offsets.size(2) - 1, kv_blocks = call.kv_offsets.size(2) - 1;
  for (int64_t b = 0; b < std::max(call.counts.size(0), call.indices.size(0)); b++)
    for (int64_t h = 0; h < std::max(call.counts.size(1), call.indices.size(1)); h++)
      check_lists(integers<int32_t>(call.counts, b, h), integers<int32_t>(call.indices, b, h), q_blocks, kv_blocks,
                  call.indices.size(3));
}

Summaries check_summaries(Summaries summaries, const Tensor& q, const Kernel& kernel) {
  const auto& [keys, values, weights, blocks, panels] = summaries;
  if (!weights) return summaries;
  check(!kernel.largest, "summaries are not for an int8 kernel");
  bool fits = keys && values && weights->dim() == 3 && (weights->size(0) == 1 || weights->size(0) == q.size(0)) &&
              (weights->size(1) == 1 || weights->size(1) == q.size(1)) && weights->size(2) == blocks &&
              weights->is_contiguous() && weights->scalar_type() == ScalarType::Float;
  for (const std::optional<Tensor>& x : {keys, values})
    fits = fits && x->dim() == 4 && x->size(0) == weights->size(0) && x->size(1) == weights->size(1) &&
           x->size(2) == blocks && x->size(3) == q.size(3) && x->is_contiguous() && x->scalar_type() == ScalarType::Float;
  check(fits, "summaries must be contiguous float32 keys and values (b h ", blocks, " d) and weights (b h ", blocks, ")");
  summaries.panels = (blocks + kernel.panel - 1) / kernel.panel;
  return summaries;
}

std::tuple<Tensor, Tensor> block_sparse_attention(
    Tensor q, Tensor k, Tensor v, Tensor counts, Tensor indices, Tensor q_offsets, Tensor kv_offsets,
    std::optional<Tensor> q_order, std::optional<Tensor> kv_order, double scale, std::string instructions,
    std::optional<Tensor> key_mean, std::optional<Tensor> summary_keys, std::optional<Tensor> summary_values,
    std::optional<Tensor> summary_weights, bool lse_of_visited) {
  const Kernel& kernel = choose_kernel(instructions, element_of(q));
  if (key_mean)
    check(key_mean->scalar_type() == ScalarType::Float && key_mean->dim() == 3 && key_mean->stride(2) == 1 &&
                        key_mean->size(0) == k.size(0) && key_mean->size(1) == k.size(1) &&
                        key_mean->size(2) == k.size(3) && kernel.largest,
                    "key_mean must be float32 (b h d) as k has them, for an int8 kernel");
  const int64_t blocks = kv_offsets.size(2) - 1;
  const Summaries summaries = check_summaries({summary_keys, summary_values, summary_weights, blocks}, q, kernel);
  Call call{q, k, v, counts, indices, q_offsets, kv_offsets, q_order, kv_order, key_mean, kernel,
            summaries, lse_of_visited, q.size(0), q.size(1), k.size(1), q.size(3),
            std::max(kv_offsets.size(1), kv_order ? kv_order->size(1) : 1), std::max(kv_offsets.size(0), kv_order ? kv_order->size(0) : 1),
            {}, {}, {}, {}, 0, false, {}, {}};
  check_map(call);
  call.blocks_share_panels = fewer_if_shared(call);
  plan_panels(call);
  find_largest(call);
  Tensor out = torch::stable::empty_like(q);
  if (out.stride(3) != 1)  // where rows of q overlap
    out = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2), q.size(3)});
  Tensor lse = torch::stable::new_empty(q, {q.size(0), q.size(1), q.size(2)}, ScalarType::Float);
  const int64_t bytes = static_cast<int64_t>(kernel.panel_bytes(static_cast<int32_t>(call.head_dim)));
  const int64_t panel_total = call.panel_total + summaries.panel_total();
  // 64 spare bytes: the packed panels start on a cache line.
  Tensor packed = torch::stable::new_empty(q, {2 * panel_total * bytes + 64}, ScalarType::Byte);
  char* keys = static_cast<char*>(packed.data_ptr());
  keys += 64 - reinterpret_cast<uintptr_t>(keys) % 64;
  char* values = keys + panel_total * bytes;
  pack_panels(call, keys, values);
  pack_summaries(call, keys + call.panel_total * bytes, values + call.panel_total * bytes);
  attend_tiles(call, keys, values, static_cast<float>(scale * LOG2E), out, lse);
  return {out, lse};
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparse_kernels, m) {
  m.def(
      "block_sparse_attention_cpu(Tensor q, Tensor k, Tensor v, Tensor counts, Tensor indices, Tensor q_offsets, "
      "Tensor kv_offsets, Tensor? q_order, Tensor? kv_order, float scale, str instructions, "
      "Tensor? key_mean=None, Tensor? summary_keys=None, Tensor? summary_values=None, Tensor? summary_weights=None, "
      "bool lse_of_visited=False) -> (Tensor, Tensor)");
  m.def("instruction_set(str element) -> str");
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("block_sparse_attention_cpu", OPERATOR(block_sparse_attention));
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", OPERATOR(instruction_set));
}

}  // namespace
