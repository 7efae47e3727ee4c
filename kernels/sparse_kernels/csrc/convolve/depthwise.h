// Depthwise convolution: every channel by itself, so that there is nothing to multiply in panels.
#pragma once
#include "common/vector.h"
#include "convolve/convolve.h"
#include "convolve/places.h"

// One row as floats, each channel `multiplier` times, filled with zeros up to the width.
static inline void read_repeated(const DepthwiseJob& job, int64_t row, float* narrow, float* to) {
  if (job.multiplier == 1) return read_row(job.inputs, row, job.channels_out, job.width, 1.0f, to);
  const int32_t channels = job.channels_out / job.multiplier;
  read_row(job.inputs, row, channels, channels, 1.0f, narrow);
  for (int32_t i = 0; i < channels; i++)
    for (int32_t j = 0; j < job.multiplier; j++) to[i * job.multiplier + j] = narrow[i];
  for (int32_t x = job.channels_out; x < job.width; x++) to[x] = 0;
}

static inline void add_product(const float* a, const float* b, int32_t width, float* sums) {
  for (int32_t x = 0; x < width; x += LANES) store(sums + x, load(sums + x) + load(a + x) * load(b + x));
}

static bool depthwise(const DepthwiseJob& job) {
  float* sums = reinterpret_cast<float*>(job.scratch);
  float* row = sums + job.width;
  float* narrow = row + job.width;
  int32_t* found = reinterpret_cast<int32_t*>(narrow + job.width);
  const int32_t count = static_cast<int32_t>(job.rows);
  for (int32_t slot = 0; slot < job.slots; slot++)
    if (!names_only(job.input_rows, job.map + slot * job.map_stride, count)) return false;
  for (int32_t r = 0; r < count; r++) {
    memset(sums, 0, job.width * sizeof(float));
    int32_t pairs = 0;
    for (int32_t slot = 0; slot < job.slots; slot++) {  // without a branch, as in find_places
      found[pairs] = slot;
      pairs += job.map[slot * job.map_stride + r] >= 0;
    }
    for (int32_t i = 0; i < pairs; i++) {
      read_repeated(job, job.map[found[i] * job.map_stride + r], narrow, row);
      add_product(row, job.packed + static_cast<int64_t>(found[i]) * job.width, job.width, sums);
    }
    write_row(job.out, static_cast<int64_t>(r) * job.channels_out, job.inputs.element, job.channels_out,
              [&](int32_t x) { return sums[x]; });
  }
  return true;
}

static bool depthwise_gradient(const DepthwiseJob& job) {
  float* sums = reinterpret_cast<float*>(job.scratch);
  float* row = sums + job.width;
  float* narrow = row + job.width;
  float* gradient = narrow + job.width;
  float* totals = gradient + job.width;
  memset(sums, 0, job.width * sizeof(float));
  memset(totals, 0, job.width * sizeof(float));
  for (int64_t first = 0; first < job.rows; first += GRADIENT_ROWS) {
    const int64_t left = job.rows - first;
    const int32_t count = static_cast<int32_t>(left < GRADIENT_ROWS ? left : GRADIENT_ROWS);
    if (!names_only(job.input_rows, job.map + first, count)) return false;
    for (int64_t r = first; r < first + count; r++) {
      if (job.map[r] < 0) continue;
      read_repeated(job, job.map[r], narrow, row);
      read_row(job.gradients, r, job.channels_out, job.width, 1.0f, gradient);
      add_product(row, gradient, job.width, sums);
    }
    put_aside(sums, totals, job.width);
  }
  memcpy(job.out, totals, job.channels_out * sizeof(float));
  return true;
}
