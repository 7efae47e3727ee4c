// Farthest point sampling, nearest neighbours and balls over a tree of boxes.
// Compiled once for each instruction set with -DKERNEL, -DNAME, -DCAN_RUN and -DLANES, and without fused multiply-add:
// a squared distance is the sum of squares axis by axis, each operation rounded, so that every backend has its bits.
// The distance to a box is computed in the same order. Rounding never turns an order around, so no point of the box is
// nearer than that in these bits either, and what is left out changes nothing.
#include <algorithm>

#include "common/vector.h"
#include "points/points.h"

// Without a name: else members of the templates below would be one for all instruction sets.
namespace {

static constexpr int32_t VECTORS = BLOCK / LANES;

// Bit i tells whether x[i] <= y[i], < or ==.
static inline uint32_t at_most(vf x, vf y) {
#if LANES == 16 && defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)y, _CMP_LE_OQ);
#elif LANES == 8 && defined(__AVX2__)
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)x, (__m256)y, _CMP_LE_OQ)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < LANES; i++) bits |= static_cast<uint32_t>(x[i] <= y[i]) << i;
  return bits;
#endif
}

template <int AXES>
static inline vf squared_distances(const float* block, int32_t vector, const float* point) {
  vf sum{};
  for (int axis = 0; axis < AXES; axis++) {
    const vf away = load(block + axis * BLOCK + vector * LANES) - broadcast(point[axis]);
    sum = axis ? sum + away * away : away * away;
  }
  return sum;
}

template <int AXES>
static inline float squared_distance(const Box& box, const float* point) {
  float sum = 0;
  for (int axis = 0; axis < AXES; axis++) {
    const float below = box.low[axis] - point[axis], above = point[axis] - box.high[axis];
    const float away = std::max(std::max(below, above), 0.0f);
    sum = axis ? sum + away * away : away * away;
  }
  return sum;
}

static inline bool farther(const Farthest& one, const Farthest& other) {
  return one.distance > other.distance || (one.distance == other.distance && one.row < other.row);
}

template <int AXES>
struct Sampler {
  const SampleJob& job;
  float pick[AXES];
  int32_t place;  // of the pick

  // The first of the largest: rows rise inside a block.
  void update_block(int32_t node, int32_t block) {
    float* nearest = job.nearest + block * BLOCK;
    const float* coordinates = job.tree.coordinates + static_cast<int64_t>(block) * AXES * BLOCK;
    for (int32_t v = 0; v < VECTORS; v++) {
      const vf before = load(nearest + v * LANES), now = squared_distances<AXES>(coordinates, v, pick);
      store(nearest + v * LANES, now < before ? now : before);
    }
    if (place / BLOCK == block) nearest[place % BLOCK] = -1;
    vf largest = load(nearest);
    for (int32_t v = 1; v < VECTORS; v++) {
      const vf other = load(nearest + v * LANES);
      largest = other > largest ? other : largest;
    }
    const float top = horizontal_max(largest);
    uint32_t where = 0;
    for (int32_t v = 0; v < VECTORS; v++) where |= at_most(broadcast(top), load(nearest + v * LANES)) << (v * LANES);
    const int32_t found = block * BLOCK + __builtin_ctz(where);
    job.farthest[node] = {top, job.tree.rows[found], found};
  }

  void update(int32_t node, int32_t first, int32_t last) {
    const bool holds_pick = place >= first * BLOCK && place < last * BLOCK;
    if (!holds_pick && squared_distance<AXES>(job.tree.boxes[node], pick) >= job.farthest[node].distance) return;
    if (last - first == 1) return update_block(node, first);
    const int32_t middle = middle_of(first, last), left = node + 1, right = right_of(node, first, middle);
    update(left, first, middle);
    update(right, middle, last);
    job.farthest[node] = job.farthest[farther(job.farthest[right], job.farthest[left]) ? right : left];
  }

  // Nothing is picked: all are infinitely far.
  void clear(int32_t node, int32_t first, int32_t last) {
    if (last - first == 1) {
      job.farthest[node] = {__builtin_inff(), job.tree.rows[first * BLOCK], first * BLOCK};
      return;
    }
    const int32_t middle = middle_of(first, last), left = node + 1, right = right_of(node, first, middle);
    clear(left, first, middle);
    clear(right, middle, last);
    job.farthest[node] = job.farthest[farther(job.farthest[right], job.farthest[left]) ? right : left];
  }
};

template <int AXES>
static void sample_points(const SampleJob& job) {
  const Tree& tree = job.tree;
  Sampler<AXES> sampler{job, {}, 0};
  std::fill_n(job.nearest, tree.blocks * BLOCK, __builtin_inff());
  for (int32_t i = tree.points; i < tree.blocks * BLOCK; i++) job.nearest[i] = -1;
  sampler.clear(0, 0, tree.blocks);
  sampler.place = static_cast<int32_t>(std::find(tree.rows, tree.rows + tree.points, job.start) - tree.rows);
  for (int32_t i = 0; i < job.samples; i++) {
    job.picks[i] = job.first_row + tree.rows[sampler.place];
    const float* block = tree.coordinates + static_cast<int64_t>(sampler.place / BLOCK) * AXES * BLOCK;
    for (int axis = 0; axis < AXES; axis++) sampler.pick[axis] = block[axis * BLOCK + sampler.place % BLOCK];
    sampler.update(0, 0, tree.blocks);
    sampler.place = job.farthest[0].place;
  }
}

typedef int64_t vk __attribute__((vector_size(LANES * 4)));
static constexpr int32_t KEYS = LANES / 2;  // of one vector
static constexpr int64_t NOTHING = INT64_MAX;

// Neighbours of one query. A key holds the bits of the squared distance, which rise with it, and the row; which of them
// is the higher half decides what comes first. The smallest keys stand in `kept`, rising, filled up with NOTHING.
template <int AXES, bool NEAREST>
struct Search {
  const SearchJob& job;
  const float* query;
  int64_t* kept;  // a multiple of KEYS, behind a key that is below all others
  float limit;    // what is farther away (or, in a ball, as far) does not count

  bool out_of_reach(float distance) const { return NEAREST ? distance > limit : distance >= limit; }

  void add(float distance, int32_t row) {
    uint32_t bits;
    memcpy(&bits, &distance, sizeof bits);
    const int64_t key = NEAREST ? static_cast<int64_t>(bits) << 32 | row : static_cast<int64_t>(row) << 32 | bits;
    if (key >= kept[job.wanted - 1]) return;
    // Each place takes the smaller of what it has and the larger of the key and what stands before it.
    for (int32_t i = (job.wanted - 1) / KEYS * KEYS; i >= 0; i -= KEYS) {
      vk own, before;
      memcpy(&own, kept + i, sizeof own);
      memcpy(&before, kept + i - 1, sizeof before);
      const vk larger = before > key ? before : key - vk{};
      own = own < larger ? own : larger;
      memcpy(kept + i, &own, sizeof own);
    }
    if (NEAREST && kept[job.wanted - 1] != NOTHING) {
      const uint32_t worst = static_cast<uint32_t>(kept[job.wanted - 1] >> 32);
      memcpy(&limit, &worst, sizeof limit);
    }
  }

  void scan(int32_t block) {
    const float* coordinates = job.tree.coordinates + static_cast<int64_t>(block) * AXES * BLOCK;
    const int32_t valid = std::min(BLOCK, job.tree.points - block * BLOCK);
    for (int32_t v = 0; v * LANES < valid; v++) {
      const vf distances = squared_distances<AXES>(coordinates, v, query);
      uint32_t hits = at_most(distances, broadcast(limit));
      if (valid - v * LANES < LANES) hits &= (1u << (valid - v * LANES)) - 1;
      for (; hits; hits &= hits - 1) {
        const int32_t lane = __builtin_ctz(hits);
        if (!out_of_reach(distances[lane])) add(distances[lane], job.tree.rows[block * BLOCK + v * LANES + lane]);
      }
    }
  }

  void visit(int32_t node, int32_t first, int32_t last, float distance) {
    if (out_of_reach(distance)) return;
    if (last - first == 1) return scan(first);
    const int32_t middle = middle_of(first, last), left = node + 1, right = right_of(node, first, middle);
    const float to_left = squared_distance<AXES>(job.tree.boxes[left], query);
    const float to_right = squared_distance<AXES>(job.tree.boxes[right], query);
    if (to_right < to_left) {
      visit(right, middle, last, to_right);
      visit(left, first, middle, to_left);
    } else {
      visit(left, first, middle, to_left);
      visit(right, middle, last, to_right);
    }
  }
};

template <int AXES, bool NEAREST>
static void search_points(const SearchJob& job) {
  int64_t* kept = job.kept + 1;
  job.kept[0] = -1;
  for (int32_t i = 0; i < job.count; i++) {
    std::fill_n(kept, (job.wanted + KEYS - 1) / KEYS * KEYS, NOTHING);
    Search<AXES, NEAREST> search{job, job.queries + static_cast<int64_t>(i) * AXES, kept,
                                 NEAREST ? __builtin_inff() : job.squared_radius};
    search.visit(0, 0, job.tree.blocks, squared_distance<AXES>(job.tree.boxes[0], search.query));
    int64_t* rows = job.rows + static_cast<int64_t>(i) * job.wanted;
    float* distances = job.distances + static_cast<int64_t>(i) * job.wanted;
    for (int32_t j = 0; j < job.wanted; j++) {
      const uint32_t high = static_cast<uint32_t>(kept[j] >> 32), low = static_cast<uint32_t>(kept[j]);
      rows[j] = kept[j] == NOTHING ? -1 : job.first_row + (NEAREST ? low : high);
      memcpy(distances + j, NEAREST ? &high : &low, sizeof(float));
      if (kept[j] == NOTHING) distances[j] = __builtin_inff();
    }
  }
}

static void sample(const SampleJob& job) {
  if (job.axes == 2) return sample_points<2>(job);
  if (job.axes == 3) return sample_points<3>(job);
  sample_points<4>(job);
}

template <bool NEAREST>
static void search_axes(const SearchJob& job) {
  if (job.axes == 2) return search_points<2, NEAREST>(job);
  if (job.axes == 3) return search_points<3, NEAREST>(job);
  search_points<4, NEAREST>(job);
}

static void search(const SearchJob& job) { job.nearest ? search_axes<true>(job) : search_axes<false>(job); }

static bool can_run() { return CAN_RUN; }

}  // namespace

extern "C" const Searcher KERNEL = {NAME, can_run, sample, search};
