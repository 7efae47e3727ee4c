// Floats that start on a cache line: a tile or a vector of packed columns that crosses one is loaded twice.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace {

class Floats {
 public:
  explicit Floats(size_t count = 0) { resize(count); }
  void resize(size_t count) { storage.resize(count + LINE); }
  float* data() { return storage.data() + gap(); }
  const float* data() const { return storage.data() + gap(); }

 private:
  static constexpr size_t LINE = 64 / sizeof(float);
  size_t gap() const { return (LINE - reinterpret_cast<uintptr_t>(storage.data()) / sizeof(float) % LINE) % LINE; }
  std::vector<float> storage;
};

}  // namespace
