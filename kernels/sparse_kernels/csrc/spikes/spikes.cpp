// torch.ops.sparse_kernels.spike_conv_cpu: event-driven convolution over a kernel map. Every output has one author and a
// fixed order of summation, so that the bits do not depend on the number of threads. Arguments are checked by
// spike_conv/api.py; that spikes are 0 or 1 is seen here, while they are listed. A byte is a number of spikes.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <memory>
#include <string>
#include <vector>

#include "common/choose.h"
#include "common/tensors.h"
#include "common/work.h"
#include "spikes/spikes.h"

namespace {

constexpr int64_t CHUNK = 512;  // rows that a thread lists at once
// A tile's sums stay in the second cache level; the more rows it has, the more often a slot's weights are used there.
constexpr int64_t TILE_BYTES = 512 << 10;
constexpr int64_t LEAST_ROWS = 128, MOST_ROWS = 1024;

const Accumulator& choose_accumulator(const std::string& wanted) {
#ifdef X86
  const Accumulator* const all[] = {&accumulator_avx512, &accumulator_avx2, &accumulator_portable};
#else
  const Accumulator* const all[] = {&accumulator_portable};
#endif
  return choose(all, wanted, [](const Accumulator&) { return true; });
}

// The spikes of all steps; torch is asked once for each of these, since it takes longer to answer than a row to read.
struct Spikes {
  const char* data;
  int64_t rows, row_bytes, step_bytes;
  int32_t steps, channels;
  Element element;
  bool numbers, counted;  // bytes are numbers of spikes; a channel may have sent more than one

  explicit Spikes(const Tensor& x)
      : data(static_cast<const char*>(x.data_ptr())), rows(x.size(1)), steps(static_cast<int32_t>(x.size(0))),
        channels(static_cast<int32_t>(x.size(2))), numbers(x.scalar_type() == ScalarType::Byte),
        counted(steps > 1 || numbers) {
    element = numbers || x.scalar_type() == ScalarType::Bool ? BYTE : element_of(x);
    const int64_t bytes = element == BYTE ? 1 : static_cast<int64_t>(element_bytes(element));
    row_bytes = x.stride(1) * bytes;
    step_bytes = x.stride(0) * bytes;
  }

  ListJob row(int64_t row, uint16_t* fired = nullptr, float* counts = nullptr) const {
    return {data + row * row_bytes, step_bytes, steps, channels, element, fired, counts};
  }
};

void check_binary(bool binary) {
  check(binary, "spikes must be 0 or 1, and these hold other values: give what a spiking neuron sends");
}

// The lists of all input rows; chunks of them own the memory.
struct Lists {
  struct Chunk {
    std::unique_ptr<uint16_t[]> channels;
    std::unique_ptr<float[]> counts;
  };
  std::vector<Chunk> chunks;
  std::vector<Fired> rows;

  Lists(const Accumulator& kernel, const Spikes& x) : chunks((x.rows + CHUNK - 1) / CHUNK), rows(x.rows) {
    const int64_t count = x.rows, room = x.channels + UNROLL;
    std::atomic<bool> binary{true};
    // Tiny numbers stay: they are no spikes, and are to be refused as other numbers are.
    share_out<TinyStays>(static_cast<int64_t>(chunks.size()), 0, [&](int64_t item, char*) {
      const int64_t first = item * CHUNK, last = std::min(count, first + CHUNK);
      uint16_t* channels = (chunks[item].channels = std::make_unique_for_overwrite<uint16_t[]>((last - first) * room + SLACK)).get();
      float* counts = nullptr;
      if (x.counted)
        counts = (chunks[item].counts = std::make_unique_for_overwrite<float[]>((last - first) * room + SLACK)).get();
      for (int64_t row = first; row < last; row++) {
        const Listed listed = kernel.list(x.row(row, channels, counts));
        if (!listed.binary && !x.numbers) binary = false;
        rows[row] = {channels, counts, listed.number};
        channels += listed.number;
        if (counts) counts += listed.number;
      }
    });
    check_binary(binary);
  }
};

int64_t tile_rows(int64_t rows, int64_t width) {
  const int64_t fair = (rows + 2 * torch::stable::get_num_threads() - 1) / (2 * torch::stable::get_num_threads());
  const int64_t most = std::min({fair, TILE_BYTES / (width * static_cast<int64_t>(sizeof(float))), MOST_ROWS});
  return std::max(most / LEAST_ROWS * LEAST_ROWS, LEAST_ROWS);
}

// Each panel of each slot as depth + 1 rows of whole vectors, the last row zeros.
std::vector<float> pack_weights(const Accumulator& kernel, const Tensor& weight) {
  const int64_t slots = weight.size(0), depth = weight.size(1), width = weight.size(2);
  const int64_t whole = (width + kernel.lanes - 1) / kernel.lanes * kernel.lanes;
  std::vector<float> packed(slots * (depth + 1) * whole);
  const float* data = static_cast<const float*>(weight.data_ptr());
  const int64_t in = weight.stride(1), out = weight.stride(2);
  share_out(slots, 0, [&](int64_t slot, char*) {
    float* to = packed.data() + slot * (depth + 1) * whole;
    for (int64_t first = 0; first < whole; first += kernel.panel) {
      const int64_t panel = std::min<int64_t>(kernel.panel, whole - first), valid = std::min(panel, width - first);
      const float* from = data + slot * weight.stride(0) + first * out;
      if (in == 1) {  // as modules keep them: read along the channels
        for (int64_t begin = 0; begin < depth; begin += 16)
          for (int64_t j = 0; j < valid; j++)
            for (int64_t i = begin; i < std::min(depth, begin + 16); i++) to[i * panel + j] = from[i + j * out];
      } else {
        for (int64_t i = 0; i < depth; i++)
          for (int64_t j = 0; j < valid; j++) to[i * panel + j] = from[i * in + j * out];
      }
      to += (depth + 1) * panel;
    }
  });
  return packed;
}

// x (steps n c_in), weight (slots c_in c_out) in float32, map (slots m) -> (m c_out) in the type of x, float32 for bool and bytes
Tensor spike_conv(Tensor x, Tensor weight, Tensor map, std::string instructions) {
  const Accumulator& kernel = choose_accumulator(instructions);
  const Spikes spikes(x);
  const Lists lists(kernel, spikes);
  const int64_t rows = map.size(1), width = weight.size(2);
  const std::vector<float> packed = pack_weights(kernel, weight);
  const Element element = spikes.element == BYTE ? FLOAT32 : spikes.element;
  Tensor out = torch::stable::new_empty(element == FLOAT32 ? weight : x, {rows, width});
  const int64_t row_bytes = width * static_cast<int64_t>(element_bytes(element));
  const int64_t map_stride = map.stride(0);
  const int32_t* named_rows = static_cast<const int32_t*>(map.data_ptr());
  char* results = static_cast<char*>(out.data_ptr());
  const int32_t depth = static_cast<int32_t>(weight.size(1)), slots = static_cast<int32_t>(map.size(0));
  std::atomic<bool> named{true};
  const int64_t tall = tile_rows(rows, width);
  const size_t bytes = kernel.scratch_bytes(static_cast<int32_t>(tall), static_cast<int32_t>(width));
  share_out((rows + tall - 1) / tall, bytes, [&](int64_t tile, char* scratch) {
    const int64_t first = tile * tall;
    if (!kernel.accumulate({lists.rows.data(), spikes.rows, spikes.counted, depth, static_cast<int32_t>(width),
                            packed.data(), slots, named_rows + first, map_stride,
                            static_cast<int32_t>(std::min(tall, rows - first)),
                            results + first * row_bytes, element, scratch}))
      named = false;
  });
  check(named, "the kernel map must name input rows 0 to ", spikes.rows - 1, ", or -1 for none; it names others");
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparse_kernels, m) {
  m.def("spike_conv_cpu(Tensor x, Tensor weight, Tensor map, str instructions) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) { m.impl("spike_conv_cpu", OPERATOR(spike_conv)); }

}  // namespace
