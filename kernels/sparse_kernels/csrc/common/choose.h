// The choice among the kernels of several instruction sets.
#pragma once
#include <string>

#include "common/errors.h"

namespace {

// The kernel called `wanted`, or where that is empty the first of those for `unasked` that this processor can run.
template <class K, size_t N, class F>
const K& choose(const K* const (&kernels)[N], const std::string& wanted, const F& unasked) {
  std::string names;
  for (const K* kernel : kernels) {
    if (wanted.empty() ? unasked(*kernel) && kernel->can_run() : kernel->name == wanted) {
      check(kernel->can_run(), "instruction set ", wanted, " is not available on this processor");
      return *kernel;
    }
    names += (names.empty() ? "" : ", ") + std::string(kernel->name);
  }
  check(false, "unknown instruction set ", wanted, "; accepted: ", names);
  return *kernels[0];
}

}  // namespace
