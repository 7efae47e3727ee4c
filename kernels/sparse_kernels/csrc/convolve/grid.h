// Keys of a range, one bit each.
#pragma once
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <vector>

namespace {

// Which keys from `first` on there are, and how many come before every 64 of them: the rank of a key takes two reads.
struct Grid {
  int64_t first, span;
  std::vector<uint64_t> words;
  std::vector<int32_t> before;

  // Whether `count` keys of so wide a range are found sooner here than in a hash table.
  static bool pays(int64_t span, int64_t count) { return span <= std::min((1 << 20) + SPAN_PER_KEY * count, WIDEST); }

  Grid(int64_t first, int64_t span) : first(first), span(span), words((span + 63) / 64) {}

  // False where it was there already. Threads may add at the same time.
  bool add(int64_t key) {
    const uint64_t at = key - first, bit = uint64_t{1} << (at & 63);
    std::atomic_ref<uint64_t> word(words[at >> 6]);
    if (word.load(std::memory_order_relaxed) & bit) return false;
    return !(word.fetch_or(bit, std::memory_order_relaxed) & bit);
  }

  // Called once all keys are there. Returns how many there are.
  int64_t count_before() {
    before.resize(words.size());
    int32_t count = 0;
    for (size_t i = 0; i < words.size(); i++) {
      before[i] = count;
      if (words[i]) count += __builtin_popcountll(words[i]);
    }
    return count;
  }

  // How many keys are smaller; -1 where there is no such key.
  int32_t rank(int64_t key) const {
    const uint64_t at = key - first, bit = uint64_t{1} << (at & 63);
    if (at >= static_cast<uint64_t>(span) || !(words[at >> 6] & bit)) return -1;
    return before[at >> 6] + __builtin_popcountll(words[at >> 6] & (bit - 1));
  }

  // f(key) for every key, ascending
  template <class F>
  void for_keys(const F& f) const {
    for (size_t i = 0; i < words.size(); i++)
      for (uint64_t left = words[i]; left != 0; left &= left - 1)
        f(first + static_cast<int64_t>(i) * 64 + __builtin_ctzll(left));
  }

 private:
  static constexpr int64_t SPAN_PER_KEY = 4096, WIDEST = 1 << 28;  // bits of memory, and half as much again
};

}  // namespace
