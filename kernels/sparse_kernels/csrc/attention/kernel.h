// What the scheduler (attention.cpp) and the kernels, one object file for each instruction set, tell each other.
#pragma once
#include "common/rows.h"

// Keys and values are packed once per head in panels of `panel` keys. Every block starts a panel, unless fewer are
// visited where blocks lie one behind another in them.
struct PanelJob {
  Rows keys, values;
  int64_t first_row;  // position (after the order) of the panel's first key
  int32_t valid;      // keys in the panel; the rest is filled with zeros
  int32_t head_dim;
  void* packed_keys;
  void* packed_values;
  float key_largest;  // kernels that quantise: the largest |key - mean| of the panel's block
  const float* key_mean;  // head_dim floats, or null
};

struct TileJob {
  Rows queries;  // `order` is also that of the outputs
  int64_t first_row;
  int32_t rows;  // at most the kernel's tile_rows
  int32_t head_dim;
  float scale;  // already times log2(e)
  const int32_t* panels;  // the panels to visit, in order: those of keys, then those of summaries
  int32_t panel_count;
  int32_t summary_count;  // how many of them, the last ones, hold summaries
  const uint32_t* visible;  // of each visited panel of keys: bit n is set where its key n is visited
  // For each of those summaries, in the panels' order, what is added to its scores (in units of log2), SILENT for none.
  const float* weights;
  bool lse_of_visited;  // leave summaries out of the LSE
  const char* packed_keys;
  const char* packed_values;
  void* out;  // row i goes to out + order[i] * out_stride
  int64_t out_stride;
  float* lse;  // at lse[order[i]]
  char* scratch;
  float query_largest;  // kernels that quantise: the largest |query| of the tile's block
  const float* key_largest;  // of each panel of the head
  const float* key_mean;
};

constexpr float SILENT = -3e38f;  // the score of a key that gets no weight

struct Kernel {
  const char* name;
  int32_t panel;                               // keys in a panel, at most 32
  int32_t tile_rows;                           // queries in a tile, at most
  bool (*can_run)();                           // does this processor have the instructions?
  size_t (*panel_bytes)(int32_t head_dim);     // of the keys, and again of the values
  size_t (*scratch_bytes)(int32_t head_dim);
  void (*begin_thread)();                      // before the first tile of a thread
  void (*end_thread)();
  void (*pack)(const PanelJob&);
  void (*attend)(const TileJob&);
  // The largest |x - mean| of some rows (mean may be null); a null pointer where the kernel does not quantise.
  float (*largest)(const Rows&, int64_t first_row, int64_t count, int32_t head_dim, const float* mean);
};

extern "C" {
extern const Kernel kernel_portable;
extern const Kernel kernel_avx2;
extern const Kernel kernel_avx512;
extern const Kernel kernel_avx512_bf16;
extern const Kernel kernel_avx512_int8;
extern const Kernel kernel_amx;
extern const Kernel kernel_amx_emulated;
extern const Kernel kernel_amx_int8;
extern const Kernel kernel_amx_int8_emulated;
}
