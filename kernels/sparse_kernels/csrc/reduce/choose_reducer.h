// How the schedulers choose a reducing kernel.
#pragma once
#include <string>

#include "common/choose.h"
#include "reduce/reduce.h"

namespace {

inline const Reducer& choose_reducer(const std::string& wanted) {
#ifdef X86
  // The last one rounds: it is taken by name only, since others run wherever it does.
  const Reducer* const reducers[] = {&reducer_avx512, &reducer_avx2, &reducer_portable, &reducer_avx512_bf16};
#else
  const Reducer* const reducers[] = {&reducer_portable};
#endif
  return choose(reducers, wanted, [](const Reducer&) { return true; });
}

}  // namespace
