// torch.ops.sparse_kernels.rank_entries_cpu and .fill_budget_cpu: the order of every row's numbers, and the first of it
// that fit into a budget. Arguments are checked by selection/api.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include "common/tensors.h"
#include "common/work.h"

namespace {

constexpr int64_t MANY = 4096;  // entries in a row that are sooner put into bins than halved from the first on

// Rises as an entry stands later in its row's order: by falling score (NaN first, as torch sorts), then by index.
uint64_t order_key(float score, int64_t index) {
  uint32_t bits;
  score += 0.0f;  // -0 is 0
  std::memcpy(&bits, &score, sizeof bits);
  if (score != score) bits = 0x7fc00000u;  // NaN of either sign
  const uint32_t rising = bits >> 31 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~rising) << 32 | static_cast<uint64_t>(index);
}

int64_t index_of(uint64_t key) { return static_cast<int64_t>(key & 0xffffffffu); }

uint64_t* order_keys(const float* scores, int64_t count, char* scratch) {
  uint64_t* keys = reinterpret_cast<uint64_t*>(scratch);
  for (int64_t i = 0; i < count; i++) keys[i] = order_key(scores[i], i);
  return keys;
}

std::tuple<Tensor, Tensor> rank_entries(Tensor scores) {
  const int64_t rows = scores.size(0), n = scores.size(1);
  Tensor ranks = torch::stable::new_empty(scores, {rows, n}, ScalarType::Int);
  Tensor before = torch::stable::empty_like(scores);
  share_out<TinyStays>(rows, n * sizeof(uint64_t), [&](int64_t row, char* scratch) {
    const float* score = static_cast<const float*>(scores.data_ptr()) + row * n;
    uint64_t* keys = order_keys(score, n, scratch);
    std::sort(keys, keys + n);
    double sum = 0;
    for (int64_t i = 0; i < n; i++) {
      const int64_t at = index_of(keys[i]);
      static_cast<int32_t*>(ranks.data_ptr())[row * n + at] = static_cast<int32_t>(i);
      static_cast<float*>(before.data_ptr())[row * n + at] = static_cast<float>(sum);
      sum += score[at];
    }
  });
  return {ranks, before};
}

// Keeps the entries of those bins that fit whole, a bin for each of the keys' first bits, and puts the entries of the next
// one, in which the budget ends, first. Returns how many these are; adds to `spent`.
int64_t fill_bins(uint64_t* keys, int64_t count, const int64_t* areas, int64_t budget, bool crossing, bool* kept, int64_t& spent) {
  constexpr int shift = 64 - 13;  // sign, exponent and four bits more
  std::vector<int64_t> sums(int64_t{1} << (64 - shift), 0);
  for (int64_t i = 0; i < count; i++) sums[keys[i] >> shift] += areas[index_of(keys[i])];
  uint64_t last = 0;
  for (; last < sums.size() && spent + sums[last] + crossing <= budget; last++) spent += sums[last];
  int64_t undecided = 0;
  for (int64_t i = 0; i < count; i++) {
    const uint64_t key = keys[i];
    kept[index_of(key)] = key >> shift < last;
    if (key >> shift == last) keys[undecided++] = key;
  }
  return undecided;
}

// Since areas are not negative, what fits is the beginning of the order: half of what is left is decided at a time.
void fill_row(uint64_t* keys, int64_t count, const int64_t* areas, int64_t budget, bool crossing, bool* kept) {
  const auto fits = [&](int64_t spent, uint64_t key) {
    const int64_t left = budget - spent, area = areas[index_of(key)];
    return crossing ? left > 0 : area - left <= left;
  };
  int64_t first = 0, end = count, spent = 0;
  std::fill_n(kept, count, false);
  if (count >= MANY) end = fill_bins(keys, count, areas, budget, crossing, kept, spent);
  while (first < end) {
    const int64_t middle = first + (end - first) / 2;
    std::nth_element(keys + first, keys + middle, keys + end);
    int64_t sum = 0;
    for (int64_t i = first; i < middle; i++) sum += areas[index_of(keys[i])];
    if (!fits(spent + sum, keys[middle])) {
      end = middle;
      continue;
    }
    for (int64_t i = first; i <= middle; i++) kept[index_of(keys[i])] = true;
    spent += sum + areas[index_of(keys[middle])];
    first = middle + 1;
  }
}

Tensor fill_budget(Tensor scores, Tensor areas, Tensor budgets, bool crossing) {
  const int64_t rows = scores.size(0), n = scores.size(1);
  Tensor kept = torch::stable::new_empty(scores, {rows, n}, ScalarType::Bool);
  share_out<TinyStays>(rows, n * sizeof(uint64_t), [&](int64_t row, char* scratch) {
    uint64_t* keys = order_keys(static_cast<const float*>(scores.data_ptr()) + row * n, n, scratch);
    fill_row(keys, n, static_cast<const int64_t*>(areas.data_ptr()) + row * n,
             static_cast<const int64_t*>(budgets.data_ptr())[row], crossing, static_cast<bool*>(kept.data_ptr()) + row * n);
  });
  return kept;
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparse_kernels, m) {
  m.def("rank_entries_cpu(Tensor scores) -> (Tensor, Tensor)");
  m.def("fill_budget_cpu(Tensor scores, Tensor areas, Tensor budgets, bool crossing) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("rank_entries_cpu", OPERATOR(rank_entries));
  m.impl("fill_budget_cpu", OPERATOR(fill_budget));
}

}  // namespace
