// torch.ops.sparse_kernels.sparse_conv_cpu and sparse_conv_depthwise_cpu, and their _weight_ gradients: convolution over a
// kernel map. Every output has one author and a fixed order of summation, so that the bits do not depend on the number of
// threads. Arguments are checked by sparse_conv/api.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <string>
#include <vector>

#include "common/choose.h"
#include "convolve/convolve.h"
#include "common/tensors.h"
#include "common/work.h"

namespace {

const Convolver& choose_convolver(const std::string& wanted, bool narrow) {
#ifdef X86
  const Convolver* const all[] = {&convolver_amx,  &convolver_avx512_bf16, &convolver_avx512,
                                  &convolver_avx2, &convolver_portable,    &convolver_amx_emulated};
#else
  const Convolver* const all[] = {&convolver_portable, &convolver_amx_emulated};
#endif
  bool slow_rows = false;
#ifdef X86
  // Measured on a Xeon: a product of bf16 in registers takes more than twice as long there as one of float32. Zen halves it.
  slow_rows = wanted.empty() && __builtin_cpu_is("intel");
#endif
  auto fits = [&](const Convolver& one) {
    const std::string name = one.name;
    if (name == "avx512_bf16" && slow_rows) return false;
    return narrow || (name != "amx" && name != "avx512_bf16" && name != "amx_emulated");
  };
  const Convolver& convolver = choose(all, wanted, fits);
  check(fits(convolver), "instruction set ", wanted, " is not available for these inputs, which must be bfloat16");
  return convolver;
}

bool are_narrow(const Tensor& a, const Tensor& b) {
  return a.scalar_type() == ScalarType::BFloat16 && b.scalar_type() == ScalarType::BFloat16;
}

// The rows' channels from `first` on.
Rows rows_of(const Tensor& x, int64_t first) {
  const Element element = element_of(x);
  const char* data = static_cast<const char*>(x.data_ptr()) + first * static_cast<int64_t>(element_bytes(element));
  return {data, x.stride(0), nullptr, element};
}

int32_t panels_of(const Convolver& convolver, int64_t width) {
  return static_cast<int32_t>((width + convolver.panel - 1) / convolver.panel);
}

void check_named(bool named, int64_t rows) {
  check(named, "the kernel map must name input rows 0 to ", rows - 1, ", or -1 for none; it names others");
}

// The weights of every group, slot by slot, panel by panel.
struct PackedWeights {
  int64_t group_floats;
  std::vector<float> memory;
  float* data;  // where a line of the cache begins

  PackedWeights(const Convolver& convolver, const Tensor& weight, int64_t groups) {
    const int64_t slots = weight.size(0), width = weight.size(2) / groups, panels = panels_of(convolver, width);
    const int32_t depth = static_cast<int32_t>(weight.size(1));
    const int64_t floats = static_cast<int64_t>(convolver.packed_floats(depth));
    group_floats = slots * panels * floats;
    memory.resize(groups * group_floats + 16);
    data = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) / sizeof(float);
    const Element element = element_of(weight);
    share_out(groups * slots * panels, depth * sizeof(float), [&](int64_t item, char* scratch) {
      const int64_t group = item / (slots * panels), slot = item / panels % slots, first = item % panels * convolver.panel;
      const int64_t offset = slot * weight.stride(0) + (group * width + first) * weight.stride(2);
      convolver.pack({static_cast<const char*>(weight.data_ptr()) + offset * static_cast<int64_t>(element_bytes(element)),
                      element, weight.stride(1), weight.stride(2), depth,
                      static_cast<int32_t>(std::min<int64_t>(convolver.panel, width - first)), data + item * floats,
                      reinterpret_cast<float*>(scratch)});
    });
  }
};

// Output rows to a job: as many as a kernel takes, or fewer where some threads would get more jobs than others. Of few rows
// every job would read all weights for little.
int64_t rows_of_job(int64_t rows) {
  constexpr int64_t fewest = 64;
  const int64_t threads = std::max<int64_t>(1, torch::stable::get_num_threads());
  const int64_t full = (rows + CONVOLVE_ROWS - 1) / CONVOLVE_ROWS, even = (full + threads - 1) / threads * threads;
  const int64_t jobs = std::max<int64_t>(1, std::max(full, std::min(even, rows / fewest)));
  return (rows + jobs - 1) / jobs;
}

// x (n c_in), weight (slots c_in/groups c_out), map (slots m) -> (m c_out)
Tensor convolve(Tensor x, Tensor weight, Tensor map, int64_t groups, std::string instructions) {
  const Convolver& convolver = choose_convolver(instructions, are_narrow(x, weight));
  const int64_t rows = map.size(1), channels = weight.size(2), width = channels / groups, depth = weight.size(1);
  const int32_t panels = panels_of(convolver, width);
  Tensor out = torch::stable::new_empty(x, {rows, channels});
  const PackedWeights packed(convolver, weight, groups);
  const int64_t most = rows_of_job(rows), tiles = rows ? (rows + most - 1) / most : 0;
  std::atomic<bool> named{true};
  const size_t bytes = convolver.convolve_bytes(static_cast<int32_t>(depth), panels);
  share_out(tiles * groups, bytes, [&](int64_t item, char* scratch) {
    const int64_t first = item / groups * most, group = item % groups;
    const Rows inputs = rows_of(x, group * depth);
    const int64_t offset = (first * channels + group * width) * static_cast<int64_t>(element_bytes(inputs.element));
    if (!convolver.convolve({inputs, x.size(0), static_cast<int32_t>(depth), static_cast<int32_t>(width),
                             packed.data + group * packed.group_floats, static_cast<int32_t>(map.size(0)), panels,
                             static_cast<const int32_t*>(map.data_ptr()) + first, map.stride(0),
                             static_cast<int32_t>(std::min<int64_t>(most, rows - first)),
                             static_cast<char*>(out.data_ptr()) + offset, channels, scratch}))
      named = false;
  });
  check_named(named, x.size(0));
  return out;
}

// Input channels to a job: as many as the kernel takes, since every job reads all gradients, but on many threads fewer, or
// they would wait for the middle slot, which often has a fifth of all pairs.
int64_t channels_of_job(const Convolver& convolver, int64_t depth) {
  constexpr int64_t threads_per_slot = 4;
  const int64_t fewest = (depth + convolver.gradient_channels - 1) / convolver.gradient_channels;
  const int64_t parts = std::max<int64_t>(fewest, torch::stable::get_num_threads() / threads_per_slot);
  const int64_t channels = (depth + parts - 1) / parts, step = convolver.gradient_step;
  return std::min<int64_t>((channels + step - 1) / step * step, convolver.gradient_channels);
}

// x (n c_in), gradient (m c_out), map (slots m) -> (slots c_in/groups c_out) in float32
Tensor weight_gradient(Tensor x, Tensor gradient, Tensor map, int64_t groups, std::string instructions) {
  const Convolver& convolver = choose_convolver(instructions, are_narrow(x, gradient));
  const int64_t slots = map.size(0), depth = x.size(1) / groups, channels = gradient.size(1), width = channels / groups;
  const int32_t panels = panels_of(convolver, width);
  Tensor out = torch::stable::new_empty(x, {slots, depth, channels}, ScalarType::Float);
  const int64_t most = channels_of_job(convolver, depth), parts = (depth + most - 1) / most;
  std::atomic<bool> named{true};
  share_out(slots * groups * parts, convolver.gradient_bytes(panels), [&](int64_t item, char* scratch) {
    const int64_t slot = item / (groups * parts), group = item / parts % groups, first = item % parts * most;
    if (!convolver.gradient({rows_of(x, group * depth + first), rows_of(gradient, group * width), x.size(0),
                             static_cast<int32_t>(width), panels, static_cast<int32_t>(std::min(most, depth - first)),
                             static_cast<const int32_t*>(map.data_ptr()) + slot * map.stride(0), map.size(1),
                             static_cast<float*>(out.data_ptr()) + (slot * depth + first) * channels + group * width,
                             channels, scratch}))
      named = false;
  });
  check_named(named, x.size(0));
  return out;
}

constexpr int64_t WIDEST_VECTOR = 16;

// x (n c), weight (slots c_out) in float32, map (slots m) -> (m c_out), where c_out is a multiple of c
Tensor depthwise(Tensor x, Tensor weight, Tensor map, std::string instructions) {
  const Convolver& convolver = choose_convolver(instructions, false);
  const int64_t slots = map.size(0), rows = map.size(1), channels = weight.size(1);
  const int64_t width = (channels + WIDEST_VECTOR - 1) / WIDEST_VECTOR * WIDEST_VECTOR;
  Tensor out = torch::stable::new_empty(x, {rows, channels});
  std::vector<float> packed(slots * width);
  for (int64_t slot = 0; slot < slots; slot++)
    std::copy_n(static_cast<const float*>(weight.data_ptr()) + slot * weight.stride(0), channels, &packed[slot * width]);
  const Rows inputs = rows_of(x, 0);
  const int64_t row_bytes = channels * static_cast<int64_t>(element_bytes(inputs.element));
  std::atomic<bool> named{true};
  const size_t bytes = 3 * width * sizeof(float) + slots * sizeof(int32_t);
  share_out((rows + DEPTHWISE_ROWS - 1) / DEPTHWISE_ROWS, bytes, [&](int64_t tile, char* scratch) {
    const int64_t first = tile * DEPTHWISE_ROWS;
    if (!convolver.depthwise({inputs, {}, x.size(0), static_cast<int32_t>(channels),
                              static_cast<int32_t>(channels / x.size(1)), static_cast<int32_t>(width), packed.data(),
                              static_cast<int32_t>(slots), static_cast<const int32_t*>(map.data_ptr()) + first,
                              map.stride(0), std::min<int64_t>(DEPTHWISE_ROWS, rows - first),
                              static_cast<char*>(out.data_ptr()) + first * row_bytes, scratch}))
      named = false;
  });
  check_named(named, x.size(0));
  return out;
}

// x (n c), gradient (m c_out), map (slots m) -> (slots c_out) in float32
Tensor depthwise_weight_gradient(Tensor x, Tensor gradient, Tensor map, std::string instructions) {
  const Convolver& convolver = choose_convolver(instructions, false);
  const int64_t slots = map.size(0), channels = gradient.size(1);
  const int64_t width = (channels + WIDEST_VECTOR - 1) / WIDEST_VECTOR * WIDEST_VECTOR;
  Tensor out = torch::stable::new_empty(x, {slots, channels}, ScalarType::Float);
  std::atomic<bool> named{true};
  share_out(slots, 5 * width * sizeof(float), [&](int64_t slot, char* scratch) {
    if (!convolver.depthwise_gradient({rows_of(x, 0), rows_of(gradient, 0), x.size(0), static_cast<int32_t>(channels),
                                       static_cast<int32_t>(channels / x.size(1)), static_cast<int32_t>(width), nullptr,
                                       1, static_cast<const int32_t*>(map.data_ptr()) + slot * map.stride(0), 0,
                                       map.size(1), static_cast<float*>(out.data_ptr()) + slot * channels, scratch}))
      named = false;
  });
  check_named(named, x.size(0));
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparse_kernels, m) {
  m.def("sparse_conv_cpu(Tensor x, Tensor weight, Tensor map, int groups, str instructions) -> Tensor");
  m.def("sparse_conv_weight_cpu(Tensor x, Tensor gradient, Tensor map, int groups, str instructions) -> Tensor");
  m.def("sparse_conv_depthwise_cpu(Tensor x, Tensor weight, Tensor map, str instructions) -> Tensor");
  m.def("sparse_conv_depthwise_weight_cpu(Tensor x, Tensor gradient, Tensor map, str instructions) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("sparse_conv_cpu", OPERATOR(convolve));
  m.impl("sparse_conv_weight_cpu", OPERATOR(weight_gradient));
  m.impl("sparse_conv_depthwise_cpu", OPERATOR(depthwise));
  m.impl("sparse_conv_depthwise_weight_cpu", OPERATOR(depthwise_weight_gradient));
}

}  // namespace
