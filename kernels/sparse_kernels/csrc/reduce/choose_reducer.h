// How the schedulers choose a reducing kernel.
#pragma once
#include <string>

#include "common/choose.h"
#include "reduce/reduce.h"

namespace {

inline const Reducer& choose_reducer(const std::string& wanted) {
#ifdef X86
  // What rounds stands behind the portable one: it is taken by name only.
  const Reducer* const reducers[] = {&reducer_avx512,      &reducer_avx2, &reducer_portable,
                                     &reducer_avx512_bf16, &reducer_amx,  &reducer_amx_emulated};
#else
  const Reducer* const reducers[] = {&reducer_portable, &reducer_amx_emulated};
#endif
  return choose(reducers, wanted, [](const Reducer&) { return true; });
}

}  // namespace
