// How kmeans.cpp and block_scores.cpp choose a reducing kernel and hand out work to the threads.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

#include "reduce/reduce.h"

namespace {

inline const Reducer& choose_reducer(const std::string& wanted) {
#ifdef X86
  // The last one rounds and is taken by name only.
  const Reducer* reducers[] = {&reducer_avx512, &reducer_avx2, &reducer_portable, &reducer_avx512_bf16};
#else
  const Reducer* reducers[] = {&reducer_portable};
#endif
  for (const Reducer* reducer : reducers) {
    if (wanted.empty() ? reducer->can_run() : reducer->name == wanted) {
      STD_TORCH_CHECK(reducer->can_run(), "instruction set ", wanted, " is not available on this processor");
      return *reducer;
    }
  }
  STD_TORCH_CHECK(false, "unknown instruction set ", wanted, "; accepted: avx512_bf16, avx512, avx2, portable");
  return reducer_portable;
}

// Call f(item, scratch) for every item, the threads taking the next one as they get free; scratch is a thread's own.
template <class F>
void share_out(int64_t items, size_t scratch_bytes, const F& f) {
  if (items == 0) return;
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(items, std::max<int64_t>(1, torch::stable::get_num_threads()));
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    std::vector<char> buffer(scratch_bytes + 64);
    char* scratch = buffer.data() + (64 - reinterpret_cast<uintptr_t>(buffer.data()) % 64);
    for (int64_t item = next++; item < items; item = next++) f(item, scratch);
  });
}

}  // namespace
