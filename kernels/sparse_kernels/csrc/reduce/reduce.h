// What the schedulers (kmeans.cpp, block_scores.cpp, centroids.cpp) and the reducing kernels, one object file for each
// instruction set, tell each other. All of them score rows against packed panels of columns and reduce the scores.
#pragma once
#include "common/rows.h"

// `panel` rows become the columns of one packed panel; missing ones are zeros.
struct ColumnJob {
  Rows rows;
  int64_t first_row;
  int32_t valid;
  int32_t head_dim;
  float scale;
  float* packed;  // panel times column_floats(head_dim) floats
  float* norms;   // squared length of each row before scaling, infinite for missing ones; may be null
  float* scratch;  // head_dim floats
};

// The column with the smallest norm + row * column for each row, the first of them where several are.
struct NearestJob {
  Rows rows;
  int64_t first_row;
  int32_t count;  // at most NEAREST_ROWS
  int32_t head_dim;
  const float* packed;
  const float* norms;
  int32_t panels;
  int32_t* labels;
  char* scratch;
};

// The mean of rows, written over the centroid.
struct MeanJob {
  Rows rows;
  int64_t begin, end;
  int32_t head_dim;
  float* centroid;
  double* scratch;  // head_dim doubles and as many floats
};

// The sum of 2^(scale * row * key - log2(e) * lse) over `count` rows and each block of keys.
struct MassJob {
  Rows queries;
  int64_t first_row;
  int32_t count;  // at most MASS_ROWS
  int32_t head_dim;
  float scale;                 // already times log2(e)
  const float* lse;            // natural, of row order[i]
  const float* packed;
  const int32_t* first_panel;  // of each key block, and one past the last
  const uint8_t* valid;        // keys in each panel
  int32_t begin, end;          // key blocks
  float* mass;                 // of every key block; grows
  char* scratch;
};

// For every query centroid, the logarithm of the sum over the `count` keys of a cluster of |g v + v - mean|^2, where
// g = 2^(query (k - centroid)) - 1: the squared error of the centroid's answer, over its squared weight.
struct ErrorJob {
  Rows keys, values;
  int64_t first_row;
  int32_t count;
  int32_t head_dim;
  const float* centroid;  // of the keys, and the mean of the values
  const float* mean;
  const float* packed;  // query centroids, times scale and log2(e)
  int32_t panels;
  int32_t columns;  // how many queries are in them
  float* error;  // panels * panel floats, written: natural logarithms
  float* held;   // as many, for the kernel
  char* scratch;
};

// Attention over some centroids merged into that over computed keys, for `count` rows of one query cluster.
struct MergeJob {
  Rows queries;  // `order` is also that of lse and of the outputs
  int64_t first_row;
  int32_t count;  // at most MERGE_ROWS
  int32_t head_dim;
  float scale;  // already times log2(e)
  const float* lse;
  const float* packed;  // the key centroids
  const float* weights;  // of each centroid, in units of log2; panels * panel floats, -infinity for the missing ones
  int32_t panels;
  const float* values;  // of each centroid, panels * panel rows of `width` floats
  int32_t width;        // head_dim filled up to whole panels
  const void* out;      // in the queries' type
  int64_t out_stride;
  void* merged;  // may be `out`
  int64_t merged_stride;
  char* scratch;
};

constexpr int32_t NEAREST_ROWS = 48;  // with the best scores so far, these rows stay in the first-level cache
constexpr int32_t MASS_ROWS = 96;
constexpr int32_t ERROR_ROWS = 96;
constexpr int32_t MERGE_ROWS = 48;

struct Reducer {
  const char* name;
  int32_t panel;
  bool (*can_run)();
  int32_t (*column_floats)(int32_t head_dim);  // of a packed column
  size_t (*nearest_bytes)(int32_t head_dim);   // scratch
  size_t (*mass_bytes)(int32_t head_dim);      // scratch
  void (*pack)(const ColumnJob&);
  void (*nearest)(const NearestJob&);
  double (*mean)(const MeanJob&);  // returns how far the centroid moved, squared; null in tiles
  void (*mass)(const MassJob&);
  size_t (*error_bytes)(int32_t head_dim, int32_t panels);  // null, as all that follows, in the kernel of bfloat16
  void (*error)(const ErrorJob&);
  size_t (*merge_bytes)(int32_t head_dim, int32_t panels);  // null in tiles, as what follows
  void (*merge)(const MergeJob&);
};

extern "C" {
extern const Reducer reducer_portable;
extern const Reducer reducer_avx2;
extern const Reducer reducer_avx512;
extern const Reducer reducer_avx512_bf16;
extern const Reducer reducer_amx;
extern const Reducer reducer_amx_emulated;
}
