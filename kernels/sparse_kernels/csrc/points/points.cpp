// torch.ops.sparse_kernels.farthest_point_sampling_cpu, k_nearest_neighbors_cpu and ball_query_cpu: searches in clouds of
// points, packed one behind the other. Results do not depend on the number of threads, the instruction set or the trees,
// which only tell what need not be looked at. Arguments are checked by points/api.py, the numbers in them here as well:
// in a graph of torch.compile nobody else sees them.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <tuple>
#include <vector>

#include "common/choose.h"
#include "common/tensors.h"
#include "common/work.h"
#include "points/points.h"

namespace {

constexpr int64_t QUERIES = 64;  // searched by a thread at once

const Searcher& choose_searcher(const std::string& wanted) {
#ifdef X86
  const Searcher* const searchers[] = {&searcher_avx512, &searcher_avx2, &searcher_portable};
#else
  const Searcher* const searchers[] = {&searcher_portable};
#endif
  return choose(searchers, wanted, [](const Searcher&) { return true; });
}

struct Place {
  float at[MOST_AXES];
  int32_t row;
};

// The tree of one cloud, which halves points along the widest axis of their box until a block holds them.
struct Planted {
  std::vector<float> coordinates;
  std::vector<int32_t> rows;
  std::vector<Box> boxes;
  int32_t points = 0, blocks = 0;

  Tree tree() const { return {points, blocks, coordinates.data(), rows.data(), boxes.data()}; }
};

Box box_around(const Place* places, int32_t count, int32_t axes) {
  Box box;
  for (int32_t axis = 0; axis < axes; axis++) box.low[axis] = box.high[axis] = places[0].at[axis];
  for (int32_t i = 1; i < count; i++) {
    for (int32_t axis = 0; axis < axes; axis++) {
      box.low[axis] = std::min(box.low[axis], places[i].at[axis]);
      box.high[axis] = std::max(box.high[axis], places[i].at[axis]);
    }
  }
  return box;
}

void write_block(Planted& planted, Place* places, int32_t count, int32_t block, int32_t axes) {
  std::sort(places, places + count, [](const Place& a, const Place& b) { return a.row < b.row; });
  float* coordinates = planted.coordinates.data() + static_cast<int64_t>(block) * axes * BLOCK;
  for (int32_t i = 0; i < count; i++) {
    planted.rows[block * BLOCK + i] = places[i].row;
    for (int32_t axis = 0; axis < axes; axis++) coordinates[axis * BLOCK + i] = places[i].at[axis];
  }
}

void halve(Planted& planted, std::vector<Place>& places, int32_t node, int32_t first, int32_t last, int32_t axes) {
  Place* begin = places.data() + static_cast<int64_t>(first) * BLOCK;
  const int32_t count = std::min(last * BLOCK, planted.points) - first * BLOCK;
  const Box box = planted.boxes[node] = box_around(begin, count, axes);
  if (last - first == 1) return write_block(planted, begin, count, first, axes);
  int32_t widest = 0;
  for (int32_t axis = 1; axis < axes; axis++)
    if (box.high[axis] - box.low[axis] > box.high[widest] - box.low[widest]) widest = axis;
  const int32_t middle = middle_of(first, last);
  std::nth_element(begin, begin + (middle - first) * BLOCK, begin + count,
                   [widest](const Place& a, const Place& b) { return a.at[widest] < b.at[widest]; });
  halve(planted, places, node + 1, first, middle, axes);
  halve(planted, places, right_of(node, first, middle), middle, last, axes);
}

Planted plant(const float* points, int64_t count, int32_t axes) {
  Planted planted;
  if (count == 0) return planted;
  planted.points = static_cast<int32_t>(count);
  planted.blocks = (planted.points + BLOCK - 1) / BLOCK;
  planted.coordinates.resize(static_cast<size_t>(planted.blocks) * BLOCK * axes);
  planted.rows.resize(static_cast<size_t>(planted.blocks) * BLOCK);
  planted.boxes.resize(2 * static_cast<size_t>(planted.blocks) - 1);
  std::vector<Place> places(count);
  for (int32_t row = 0; row < planted.points; row++) {
    for (int32_t axis = 0; axis < axes; axis++) places[row].at[axis] = points[static_cast<int64_t>(row) * axes + axis];
    places[row].row = row;
  }
  halve(planted, places, 0, 0, planted.blocks, axes);
  return planted;
}

// Whether all numbers are finite: the largest of their bits without the sign.
bool all_finite(const float* numbers, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; i++) {
    uint32_t bits;
    std::memcpy(&bits, numbers + i, sizeof bits);
    largest = std::max(largest, bits & 0x7fffffffu);
  }
  return largest < 0x7f800000u;
}

void check_clouds(const Tensor& points, const Tensor& offsets, const char* name) {
  const int64_t rows = points.size(0), last = offsets.size(0) - 1;
  const int64_t* ends = static_cast<const int64_t*>(offsets.data_ptr());
  bool rising = last > 0 && ends[0] == 0 && ends[last] == rows;
  for (int64_t i = 0; i < last; i++) rising &= ends[i] <= ends[i + 1];
  check(rising, "the offsets of ", name, " must rise from 0 to its ", rows, " rows");
  check(all_finite(static_cast<const float*>(points.data_ptr()), rows * points.size(1)), name, " must be finite");
}

void check_starts(const Tensor& starts, const Tensor& offsets) {
  const int64_t clouds = offsets.size(0) - 1;
  check(starts.size(0) == clouds, "starts must be one place for each of the ", clouds, " clouds, got ", starts.size(0));
  const int64_t* ends = static_cast<const int64_t*>(offsets.data_ptr());
  const int64_t* start = static_cast<const int64_t*>(starts.data_ptr());
  for (int64_t cloud = 0; cloud < clouds; cloud++) {
    const int64_t size = ends[cloud + 1] - ends[cloud];
    check(start[cloud] >= 0 && start[cloud] < std::max<int64_t>(size, 1),
          "starts must be places in their clouds, from 0 on; that of cloud ", cloud, " with ", size, " points is ",
          start[cloud]);
  }
}

// points (n axes), offsets and starts (clouds + 1) and (clouds) in int64 -> picks (clouds count) in int64
Tensor farthest_point_sampling(Tensor points, Tensor offsets, Tensor starts, int64_t count, std::string instructions) {
  const Searcher& searcher = choose_searcher(instructions);
  check_clouds(points, offsets, "points");
  check_starts(starts, offsets);
  const int64_t clouds = starts.size(0), axes = points.size(1);
  const int64_t* ends = static_cast<const int64_t*>(offsets.data_ptr());
  const int64_t* start = static_cast<const int64_t*>(starts.data_ptr());
  Tensor picks = torch::stable::new_empty(offsets, {clouds, count});
  int64_t* data = static_cast<int64_t*>(picks.data_ptr());
  share_out<TinyStays>(clouds, 0, [&](int64_t cloud, char*) {
    const int64_t first = ends[cloud], size = ends[cloud + 1] - first, samples = std::min(size, count);
    std::fill_n(data + cloud * count + samples, count - samples, -1);
    if (samples == 0) return;
    const Planted planted =
        plant(static_cast<const float*>(points.data_ptr()) + first * axes, size, static_cast<int32_t>(axes));
    std::vector<float> nearest(planted.rows.size());
    std::vector<Farthest> farthest(planted.boxes.size());
    searcher.sample({planted.tree(), static_cast<int32_t>(axes), static_cast<int32_t>(start[cloud]),
                     static_cast<int32_t>(samples), first, data + cloud * count, nearest.data(), farthest.data()});
  });
  return picks;
}

struct Part {
  int64_t cloud, first, count;  // of the queries
};

std::vector<Part> cut_queries(const int64_t* ends, int64_t clouds) {
  std::vector<Part> parts;
  for (int64_t cloud = 0; cloud < clouds; cloud++)
    for (int64_t first = ends[cloud]; first < ends[cloud + 1]; first += QUERIES)
      parts.push_back({cloud, first, std::min(QUERIES, ends[cloud + 1] - first)});
  return parts;
}

std::tuple<Tensor, Tensor> search(const Tensor& points, const Tensor& offsets, const Tensor& queries,
                                  const Tensor& query_offsets, int64_t wanted, bool nearest, double squared_radius,
                                  const std::string& instructions) {
  const Searcher& searcher = choose_searcher(instructions);
  check_clouds(points, offsets, "points");
  check_clouds(queries, query_offsets, "queries");
  check(query_offsets.size(0) == offsets.size(0), "queries must have the points' clouds, got ",
        query_offsets.size(0) - 1, " for ", offsets.size(0) - 1);
  const int64_t clouds = offsets.size(0) - 1, axes = points.size(1), rows = queries.size(0);
  const int64_t* ends = static_cast<const int64_t*>(offsets.data_ptr());
  const float* data = static_cast<const float*>(points.data_ptr());
  Tensor found = torch::stable::new_empty(offsets, {rows, wanted});
  Tensor distances = torch::stable::new_empty(points, {rows, wanted});
  int64_t* all_found = static_cast<int64_t*>(found.data_ptr());
  float* all_distances = static_cast<float*>(distances.data_ptr());
  const std::vector<Part> parts = cut_queries(static_cast<const int64_t*>(query_offsets.data_ptr()), clouds);
  std::vector<Planted> planted(clouds);
  share_out<TinyStays>(clouds, 0, [&](int64_t cloud, char*) {
    planted[cloud] = plant(data + ends[cloud] * axes, ends[cloud + 1] - ends[cloud], static_cast<int32_t>(axes));
  });
  const size_t bytes = static_cast<size_t>(wanted + KEPT_EXTRA) * sizeof(int64_t);
  share_out<TinyStays>(static_cast<int64_t>(parts.size()), bytes, [&](int64_t item, char* scratch) {
    const Part& part = parts[item];
    const int64_t at = part.first * wanted;
    if (planted[part.cloud].points == 0) {
      std::fill_n(all_found + at, part.count * wanted, -1);
      std::fill_n(all_distances + at, part.count * wanted, __builtin_inff());
      return;
    }
    searcher.search({planted[part.cloud].tree(), static_cast<int32_t>(axes),
                     static_cast<const float*>(queries.data_ptr()) + part.first * axes,
                     static_cast<int32_t>(part.count), static_cast<int32_t>(wanted), nearest,
                     static_cast<float>(squared_radius), ends[part.cloud], all_found + at, all_distances + at,
                     reinterpret_cast<int64_t*>(scratch)});
  });
  return {found, distances};
}

// points (n axes), queries (m axes), offsets of both (clouds + 1) in int64 -> rows (m count) in int64, squared distances
std::tuple<Tensor, Tensor> k_nearest_neighbors(
    Tensor points, Tensor offsets, Tensor queries, Tensor query_offsets, int64_t count, std::string instructions) {
  return search(points, offsets, queries, query_offsets, count, true, 0, instructions);
}

std::tuple<Tensor, Tensor> ball_query(Tensor points, Tensor offsets, Tensor queries, Tensor query_offsets,
                                      double squared_radius, int64_t count, std::string instructions) {
  return search(points, offsets, queries, query_offsets, count, false, squared_radius, instructions);
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparse_kernels, m) {
  m.def(
      "farthest_point_sampling_cpu(Tensor points, Tensor offsets, Tensor starts, int count, str instructions) -> Tensor");
  m.def(
      "k_nearest_neighbors_cpu(Tensor points, Tensor offsets, Tensor queries, Tensor query_offsets, int count, "
      "str instructions) -> (Tensor, Tensor)");
  m.def(
      "ball_query_cpu(Tensor points, Tensor offsets, Tensor queries, Tensor query_offsets, float squared_radius, "
      "int count, str instructions) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(sparse_kernels, CPU, m) {
  m.impl("farthest_point_sampling_cpu", OPERATOR(farthest_point_sampling));
  m.impl("k_nearest_neighbors_cpu", OPERATOR(k_nearest_neighbors));
  m.impl("ball_query_cpu", OPERATOR(ball_query));
}

}  // namespace
