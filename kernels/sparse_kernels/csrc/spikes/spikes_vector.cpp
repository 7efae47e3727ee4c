// Event-driven sparse convolution: for each pair of rows the weights of the channels that fired are added, and no others.
// Slot by slot over a tile of outputs, so that a slot's weights stay in the first cache while the tile needs them.
// Compiled once for each instruction set with -DKERNEL, -DNAME, -DCAN_RUN and -DLANES.
#include "common/vector.h"
#include "spikes/spikes.h"

static constexpr int32_t MOST = 4;  // vectors of sums in registers
static constexpr int32_t PANEL = MOST * LANES;

static int32_t padded(int32_t channels) { return (channels + LANES - 1) / LANES * LANES; }

// A pair of rows: what fired in the input, and the place of the output in its tile.
struct Pair {
  Fired input;
  int32_t place;
};

static size_t scratch_bytes(int32_t rows, int32_t channels_out) {
  return rows * (padded(channels_out) * sizeof(float) + sizeof(Pair)) + 2 * (rows + SLACK) * sizeof(int32_t);
}

// Bit i tells whether x[i] is not y[i]; NaN is not.
static inline uint32_t differs(vf x, vf y) {
#if LANES == 16 && defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)y, _CMP_NEQ_UQ);
#elif LANES == 8 && defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)x, (__m256)y, _CMP_NEQ_UQ)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < LANES; i++) bits |= static_cast<uint32_t>(x[i] != y[i]) << i;
  return bits;
#endif
}

static inline vf load_channels(const char* row, int32_t first, int32_t count, Element element) {
  if (element == FLOAT32 && count >= LANES) return load(reinterpret_cast<const float*>(row) + first);
#if LANES == 16 && defined(__AVX512F__)
  const __mmask16 there = count < LANES ? static_cast<__mmask16>((1u << count) - 1) : 0xffff;
  if (element == FLOAT32) return (vf)_mm512_maskz_loadu_ps(there, reinterpret_cast<const float*>(row) + first);
  if (element == BYTE) return (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(there, row + first)));
#endif
  if (element == BYTE) {
    typedef uint8_t bytes __attribute__((vector_size(LANES)));
    bytes some{};
    memcpy(&some, row + first, count < LANES ? count : LANES);
    return __builtin_convertvector(some, vf);
  }
  float some[LANES] = {};
  for (int32_t i = 0; i < count && i < LANES; i++) some[i] = read_element(row, first + i, element);
  return load(some);
}

// Writes first + i for every bit i, and counts[i] where they are asked for; returns how many.
static inline int32_t append(uint32_t bits, int32_t first, vf counts, uint16_t* fired, float* to) {
#if LANES == 16 && defined(__AVX512F__)
  const __m512i places = _mm512_add_epi32(
      _mm512_set1_epi32(first), _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0));
  const __mmask16 mask = static_cast<__mmask16>(bits);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(fired), _mm512_cvtepi32_epi16(_mm512_maskz_compress_epi32(mask, places)));
  if (to) _mm512_storeu_ps(to, _mm512_maskz_compress_ps(mask, (__m512)counts));
  return __builtin_popcount(bits);
#else
  float some[LANES];
  store(some, counts);
  int32_t number = 0;
  for (; bits; bits &= bits - 1) {
    const int32_t i = __builtin_ctz(bits);
    fired[number] = static_cast<uint16_t>(first + i);
    if (to) to[number] = some[i];
    number++;
  }
  return number;
#endif
}

static Listed list(const ListJob& job) {
  Listed listed{0, true};
  uint32_t wrong = 0;
  for (int32_t first = 0; first < job.channels; first += LANES) {
    vf counts{};
    uint32_t any = 0;
    for (int32_t step = 0; step < job.steps; step++) {
      const vf x = load_channels(job.row + step * job.step_bytes, first, job.channels - first, job.element);
      const uint32_t fired = differs(x, broadcast(0.0f));
      wrong |= fired & differs(x, broadcast(1.0f));
      any |= fired;
      if (job.counts) counts += x;
    }
    float* to = job.counts ? job.counts + listed.number : nullptr;
    listed.number += append(any, first, counts, job.fired + listed.number, to);
  }
  listed.binary = wrong == 0;
  for (; listed.number % UNROLL; listed.number++) {
    job.fired[listed.number] = static_cast<uint16_t>(job.channels);
    if (job.counts) job.counts[listed.number] = 0;
  }
  return listed;
}

// Not inlined: the compiler has registers for all sums only in a function of their own.
template <int V, bool COUNTED>
static __attribute__((noinline)) void add_rows(
    const Pair* pairs, int32_t count, const float* packed, float* sums, int32_t width) {
  for (int32_t i = 0; i < count; i++) {
    const Fired input = pairs[i].input;
    float* to = sums + static_cast<int64_t>(pairs[i].place) * width;
    vf acc[V];
    for (int v = 0; v < V; v++) acc[v] = load(to + v * LANES);
    for (int32_t k = 0; k < input.number; k += UNROLL) {
#pragma GCC unroll 4
      for (int32_t j = 0; j < UNROLL; j++) {
        const float* row = packed + static_cast<int64_t>(input.channels[k + j]) * (V * LANES);
        const vf times = broadcast(COUNTED ? input.counts[k + j] : 1.0f);
        for (int v = 0; v < V; v++) acc[v] += COUNTED ? times * load(row + v * LANES) : load(row + v * LANES);
      }
    }
    for (int v = 0; v < V; v++) store(to + v * LANES, acc[v]);
  }
}

template <bool COUNTED>
static void add_panel(
    int32_t vectors, const Pair* pairs, int32_t count, const float* packed, float* sums, int32_t width) {
  switch (vectors) {
    case 1: return add_rows<1, COUNTED>(pairs, count, packed, sums, width);
    case 2: return add_rows<2, COUNTED>(pairs, count, packed, sums, width);
    case 3: return add_rows<3, COUNTED>(pairs, count, packed, sums, width);
    default: return add_rows<4, COUNTED>(pairs, count, packed, sums, width);
  }
}

// Where the map names a row, and which; without a branch, since which do is as good as random. Returns how many, or -1
// where a row is named that is not there.
static int32_t scan(const int32_t* map, int32_t rows, int64_t input_rows, int32_t* places, int32_t* named) {
  int32_t count = 0, most = -1;
#if LANES == 16 && defined(__AVX512F__)
  __m512i place = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0), largest = _mm512_set1_epi32(-1);
  for (int32_t r = 0; r < rows; r += 16, place = _mm512_add_epi32(place, _mm512_set1_epi32(16))) {
    const __mmask16 valid = rows - r < 16 ? static_cast<__mmask16>((1u << (rows - r)) - 1) : 0xffff;
    const __m512i row = _mm512_mask_loadu_epi32(_mm512_set1_epi32(-1), valid, map + r);
    const __mmask16 there = _mm512_cmpge_epi32_mask(row, _mm512_setzero_si512());
    largest = _mm512_max_epi32(largest, row);
    _mm512_storeu_si512(places + count, _mm512_maskz_compress_epi32(there, place));
    _mm512_storeu_si512(named + count, _mm512_maskz_compress_epi32(there, row));
    count += __builtin_popcount(there);
  }
  most = _mm512_reduce_max_epi32(largest);
#else
  for (int32_t r = 0; r < rows; r++) {
    places[count] = r;
    named[count] = map[r];
    most = map[r] > most ? map[r] : most;
    count += map[r] >= 0;
  }
#endif
  return most < input_rows ? count : -1;
}

static bool accumulate(const AccumulateJob& job) {
  const int32_t width = padded(job.channels_out);
  float* sums = reinterpret_cast<float*>(job.scratch);
  Pair* pairs = reinterpret_cast<Pair*>(sums + static_cast<int64_t>(job.rows) * width);
  int32_t* places = reinterpret_cast<int32_t*>(pairs + job.rows);
  int32_t* named = places + job.rows + SLACK;
  memset(sums, 0, static_cast<size_t>(job.rows) * width * sizeof(float));
  const float* packed = job.packed;
  for (int32_t slot = 0; slot < job.slots; slot++) {
    const int32_t found = scan(job.map + slot * job.map_stride, job.rows, job.input_rows, places, named);
    if (found < 0) return false;
    int32_t count = 0;
    for (int32_t i = 0; i < found; i++) {
      pairs[count] = {job.inputs[named[i]], places[i]};
      count += pairs[count].input.number > 0;
    }
    for (int32_t first = 0; first < width; first += PANEL) {
      const int32_t vectors = (width - first < PANEL ? width - first : PANEL) / LANES;
      (job.counted ? add_panel<true> : add_panel<false>)(vectors, pairs, count, packed, sums + first, width);
      packed += static_cast<int64_t>(job.channels_in + 1) * vectors * LANES;
    }
  }
  for (int32_t r = 0; r < job.rows; r++) {
    const float* from = sums + static_cast<int64_t>(r) * width;
    write_row(job.out, static_cast<int64_t>(r) * job.channels_out, job.element, job.channels_out,
              [&](int32_t x) { return from[x]; });
  }
  return true;
}

static bool can_run() { return CAN_RUN; }

extern "C" const Accumulator KERNEL = {NAME, PANEL, LANES, can_run, scratch_bytes, list, accumulate};
