// How schedulers hand out work to the threads.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <vector>

#ifdef __SSE2__
#include <xmmintrin.h>
#endif

namespace {

// Treats numbers below 1e-38 as zero while it lives, on its thread. Softmax weights of far keys are so small, and Intel's
// processors take a hundred times as long for each of them: the answers of centroids took 277 ms in place of 18.
struct TinyIsZero {
#ifdef __SSE2__
  const unsigned int before = _mm_getcsr();
  TinyIsZero() { _mm_setcsr(before | 0x8040); }  // results and operands
  ~TinyIsZero() { _mm_setcsr(before); }
#else
  TinyIsZero() {}
#endif
};

// Leaves the smallest numbers as they are.
struct TinyStays {};

// Call f(item, scratch) for every item, the threads taking the next one as they get free; scratch is a thread's own.
template <class Tiny = TinyIsZero, class F>
void share_out(int64_t items, size_t scratch_bytes, const F& f) {
  if (items == 0) return;
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(items, std::max<int64_t>(1, torch::stable::get_num_threads()));
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    [[maybe_unused]] const Tiny tiny;
    std::vector<char> buffer(scratch_bytes + 64);
    char* scratch = buffer.data() + (64 - reinterpret_cast<uintptr_t>(buffer.data()) % 64);
    for (int64_t item = next++; item < items; item = next++) f(item, scratch);
  });
}

}  // namespace
