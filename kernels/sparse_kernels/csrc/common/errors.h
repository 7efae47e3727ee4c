// Errors as Python should see them: std::invalid_argument is its ValueError, std::bad_alloc its MemoryError.
#pragma once
#include <torch/csrc/stable/library.h>

#include <new>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>

namespace {

// `parts` are a sentence: what was given, what is accepted.
template <class... Parts>
void check(bool right, const Parts&... parts) {
  if (right) return;
  std::ostringstream sentence;
  ((sentence << parts), ...);
  throw std::invalid_argument(sentence.str());
}

struct OutOfMemory : std::bad_alloc {
  const char* what() const noexcept override {
    return "there is not enough memory for this call of sparse_kernels; give it fewer heads or rows at a time";
  }
};

// An operator whose failed allocations say so: torch's stable interface loses the words and tells which call failed.
template <auto F>
struct Worded;

template <class R, class... A, R (*F)(A...)>
struct Worded<F> {
  static R call(A... arguments) {
    try {
      return F(std::move(arguments)...);
    } catch (const std::bad_alloc&) {
      throw OutOfMemory();
    } catch (const std::runtime_error& error) {
      const std::string text = error.what();
      for (const char* allocation : {"aten::new_empty", "aten::new_zeros", "aten::empty_like", "aten::clone",
                                     "aten::contiguous", "torch_parallel_for"})  // nothing else is thrown in a loop
        if (text.find(allocation) != std::string::npos) throw OutOfMemory();
      throw;
    }
  }
};

}  // namespace

#define OPERATOR(function) TORCH_BOX((&Worded<&function>::call))
