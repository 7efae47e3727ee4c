// What the scheduler (sparse_conv.cpp) and the convolving kernels, one object file for each instruction set, tell each
// other. A kernel map holds, for each slot of the kernel and each output row, an input row or -1.
#pragma once
#include "common/rows.h"

// One panel of output channels of one slot: depth times panel floats; missing channels are zeros.
struct WeightJob {
  const float* weight;  // of input channel i and output channel j at weight + i * stride_in + j * stride_out
  int64_t stride_in, stride_out;
  int32_t depth;
  int32_t valid;  // output channels
  float* packed;
};

// All slots over a tile of output rows, which nobody else writes.
struct ConvolveJob {
  Rows inputs;
  int64_t input_rows;
  int32_t channels_in, channels_out;
  const float* packed;  // slot by slot, panel by panel
  int32_t slots, panels;
  const int32_t* map;  // of the tile's first row
  int64_t map_stride;  // from slot to slot
  int32_t rows;        // at most CONVOLVE_ROWS
  void* out;           // of the tile's first row, of the inputs' element
  char* scratch;
};

// The gradient of one slot's weights, for a range of input channels: inputs transposed times output gradients.
struct GradientJob {
  Rows inputs, gradients;
  int64_t input_rows;
  int32_t channels_out, panels;
  int32_t first_channel, channels;  // at most GRADIENT_CHANNELS
  const int32_t* map;
  int64_t rows;
  float* out;  // channels times channels_out
  char* scratch;
};

constexpr int32_t CONVOLVE_ROWS = 256;  // so many that a slot of few neighbours still fills register tiles
constexpr int32_t GRADIENT_CHANNELS = 48;
constexpr int32_t GRADIENT_ROWS = 512;   // of the map, searched for pairs at once
constexpr int32_t GRADIENT_PAIRS = 128;  // multiplied at once: they stay in the first cache levels

struct Convolver {
  const char* name;
  int32_t panel;
  bool (*can_run)();
  size_t (*convolve_bytes)(int32_t channels_in, int32_t panels);  // scratch
  size_t (*gradient_bytes)(int32_t panels);                       // scratch
  void (*pack)(const WeightJob&);
  bool (*convolve)(const ConvolveJob&);  // these return false where the map names a row that is not there
  bool (*gradient)(const GradientJob&);
};

extern "C" {
extern const Convolver convolver_portable;
extern const Convolver convolver_avx2;
extern const Convolver convolver_avx512;
extern const Convolver convolver_avx512_bf16;  // inputs and weights in bfloat16 only
}
