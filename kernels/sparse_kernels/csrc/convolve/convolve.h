// What the scheduler (sparse_conv.cpp) and the convolving kernels, one object file for each instruction set, tell each
// other. A kernel map holds, for each slot of the kernel and each output row, an input row or -1.
#pragma once
#include "common/rows.h"

// One panel of output channels of one slot, as the kernel packs it; missing channels are zeros.
struct WeightJob {
  const void* weight;  // of input channel i and output channel j at weight + i * stride_in + j * stride_out elements
  Element element;
  int64_t stride_in, stride_out;
  int32_t depth;
  int32_t valid;  // output channels
  float* packed;
  float* column;  // room for `depth` numbers
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
  int64_t out_stride;  // elements from row to row
  char* scratch;
};

// The gradient of one slot's weights, for a range of input channels: inputs transposed times output gradients.
struct GradientJob {
  Rows inputs, gradients;
  int64_t input_rows;
  int32_t channels_out, panels;
  int32_t channels;  // at most the kernel's gradient_channels
  const int32_t* map;
  int64_t rows;
  float* out;  // channels times channels_out
  int64_t out_stride;
  char* scratch;
};

// Where every group has one input channel and `multiplier` output channels. The convolution takes a tile of rows, the
// gradient one slot and all rows; weights are floats, slot by slot in rows of `width`, a multiple of the vector.
struct DepthwiseJob {
  Rows inputs, gradients;  // the latter for the gradient only
  int64_t input_rows;
  int32_t channels_out, multiplier, width;
  const float* packed;
  int32_t slots;
  const int32_t* map;
  int64_t map_stride, rows;
  void* out;
  char* scratch;
};

constexpr int32_t CONVOLVE_ROWS = 256;  // so many that a slot of few neighbours still fills register tiles
constexpr int32_t GRADIENT_ROWS = 512;  // of the map, searched for pairs at once
constexpr int32_t DEPTHWISE_ROWS = 64;  // a tile of the depthwise convolution

struct Convolver {
  const char* name;
  int32_t panel;
  int32_t gradient_channels;  // of the inputs, at most in one job
  int32_t gradient_step;      // of which their number is best a multiple
  bool (*can_run)();
  size_t (*packed_floats)(int32_t channels_in);                   // of a panel
  size_t (*convolve_bytes)(int32_t channels_in, int32_t panels);  // scratch
  size_t (*gradient_bytes)(int32_t panels);                       // scratch
  void (*pack)(const WeightJob&);
  bool (*convolve)(const ConvolveJob&);  // these return false where the map names a row that is not there
  bool (*gradient)(const GradientJob&);
  bool (*depthwise)(const DepthwiseJob&);  // null where the kernel has bf16 products only, as has the next
  bool (*depthwise_gradient)(const DepthwiseJob&);
};

extern "C" {
extern const Convolver convolver_portable;
extern const Convolver convolver_avx512;
extern const Convolver convolver_avx2;
extern const Convolver convolver_avx512_bf16;  // these take inputs and weights in bfloat16 only
extern const Convolver convolver_amx;
extern const Convolver convolver_amx_emulated;
}
