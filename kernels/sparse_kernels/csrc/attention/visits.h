// The panels of keys that a query block visits, and which of their keys: blocks may share a panel.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/tensors.h"

namespace {

struct Visits {
  std::vector<int32_t> panels;
  std::vector<uint32_t> visible;  // of each of them: bit n is set where its key n is visited
  std::vector<int32_t> place;     // of each panel of the head in these lists, -1 while it is in none
};

// The bits of keys `begin` to `end` of a panel, at most 32.
inline uint32_t key_bits(int32_t begin, int32_t end) {
  return (end < 32 ? (1u << end) - 1 : ~0u) & ~((1u << begin) - 1);
}

// How many panels a list of rising blocks takes, if blocks share panels or if each begins one of its own.
inline int64_t count_panels(const int32_t* offsets, const int32_t* indices, int32_t count, int32_t panel, bool shared) {
  int64_t total = 0, last = -1;
  for (int32_t j = 0; j < count; j++) {
    const int32_t begin = offsets[indices[j]], end = offsets[indices[j] + 1];
    if (begin == end) continue;
    const int64_t first = shared ? std::max<int64_t>(begin / panel, last + 1) : 0;
    last = (shared ? end - 1 : end - begin - 1) / panel;
    total += std::max<int64_t>(0, last + 1 - first);
  }
  return total;
}

// Appends the panels of the listed blocks, which each begin a panel of their own.
inline void visit_blocks(const Panels& panels, const int32_t* indices, int32_t count, Visits& to) {
  for (int32_t j = 0; j < count; j++) {
    for (int32_t panel = panels.first[indices[j]]; panel < panels.first[indices[j] + 1]; panel++) {
      to.panels.push_back(panel);
      to.visible.push_back(key_bits(0, panels.valid[panel]));
    }
  }
}

// Appends the panels of the listed blocks, which lie one behind another in them.
inline void visit_keys(
    const Panels& panels, const int32_t* offsets, const int32_t* indices, int32_t count, int32_t panel, Visits& to) {
  to.place.resize(panels.row.size(), -1);
  for (int32_t j = 0; j < count; j++) {
    const int32_t begin = offsets[indices[j]], end = offsets[indices[j] + 1];
    for (int32_t key = begin; key < end;) {
      const int32_t i = key / panel, stop = std::min(end, (i + 1) * panel);
      if (to.place[i] < 0) {
        to.place[i] = static_cast<int32_t>(to.panels.size());
        to.panels.push_back(i);
        to.visible.push_back(0);
      }
      to.visible[to.place[i]] |= key_bits(key - i * panel, stop - i * panel);
      key = stop;
    }
  }
  for (const int32_t i : to.panels) to.place[i] = -1;
}

}  // namespace
