// What the scheduler (spikes.cpp) and the accumulating kernels, one object file for each instruction set, tell each other.
#pragma once
#include "common/rows.h"

// One input row in all its steps, channels next to each other.
struct ListJob {
  const char* row;  // of the first step
  int64_t step_bytes;
  int32_t steps, channels;
  Element element;
  uint16_t* fired;  // room for channels + SLACK
  float* counts;    // the same, or null where no channel can have sent more than one spike
};

struct Listed {
  int32_t number;  // of channels that fired, filled up to a multiple of UNROLL with the channel whose weights are zeros
  bool binary;  // no value but 0 and 1
};

// The channels of an input row that fired, and how often where that may be more than once.
struct Fired {
  const uint16_t* channels;
  const float* counts;
  int32_t number;
};

// All slots over a tile of output rows, which nobody else writes.
struct AccumulateJob {
  const Fired* inputs;
  int64_t input_rows;
  bool counted;  // inputs have counts
  int32_t channels_in, channels_out;
  const float* packed;  // slot by slot, panel by panel: channels_in rows and one of zeros
  int32_t slots;
  const int32_t* map;  // of the tile's first row
  int64_t map_stride;  // from slot to slot
  int32_t rows;
  void* out;           // of the tile's first row
  Element element;
  char* scratch;
};

constexpr int32_t UNROLL = 4;  // lists of other lengths would end their loops at another place each time
constexpr int32_t SLACK = 16;  // entries that are written past the end, to be written over

struct Accumulator {
  const char* name;
  int32_t panel;  // output channels, the last panel of a row as many as are left, in whole vectors
  int32_t lanes;
  bool (*can_run)();
  size_t (*scratch_bytes)(int32_t rows, int32_t channels_out);
  Listed (*list)(const ListJob&);
  bool (*accumulate)(const AccumulateJob&);  // false where the map names a row that is not there
};

extern "C" {
extern const Accumulator accumulator_portable;
extern const Accumulator accumulator_avx2;
extern const Accumulator accumulator_avx512;
}
