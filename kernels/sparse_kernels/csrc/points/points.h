// What the scheduler (points.cpp) and the searchers, one object file for each instruction set, tell each other. A cloud is
// a tree of boxes around blocks of near points; who searches leaves out boxes that are too far away to matter.
#pragma once
#include <cstddef>
#include <cstdint>

constexpr int32_t BLOCK = 32;  // points of one block
constexpr int32_t MOST_AXES = 4;
constexpr int32_t KEPT_EXTRA = 9;  // one before, and what fills up a vector of eight

struct Box {
  float low[MOST_AXES], high[MOST_AXES];
};

// Node 0 holds all blocks. A node over the blocks first to last halves them: the left child comes next, behind its whole
// part the right one.
struct Tree {
  int32_t points, blocks;
  const float* coordinates;  // block by block, axis by axis, BLOCK floats each
  const int32_t* rows;       // BLOCK of each block: rows in the cloud, rising
  const Box* boxes;          // 2 blocks - 1
};

static inline int32_t middle_of(int32_t first, int32_t last) { return first + (last - first) / 2; }
static inline int32_t right_of(int32_t node, int32_t first, int32_t middle) { return node + 2 * (middle - first); }

// A point that is farthest from those picked so far; of equally far ones that of the lowest row.
struct Farthest {
  float distance;  // -1 where all points are picked
  int32_t row, place;
};

struct SampleJob {
  Tree tree;
  int32_t axes, start, samples;  // start: a row; samples: at most the points
  int64_t first_row;             // of the cloud, added to all rows
  int64_t* picks;
  float* nearest;      // BLOCK of each block, for the kernel
  Farthest* farthest;  // one a node, for the kernel
};

struct SearchJob {
  Tree tree;
  int32_t axes;
  const float* queries;  // count times axes
  int32_t count;
  int32_t wanted;       // neighbours of a query
  bool nearest;         // the nearest ones, else the first by row of those nearer than squared_radius
  float squared_radius;
  int64_t first_row;    // of the cloud, added to all rows
  int64_t* rows;        // count times wanted; -1 where there are no more
  float* distances;     // squared; infinite where there are no more
  int64_t* kept;        // `wanted` and KEPT_EXTRA, for the kernel
};

struct Searcher {
  const char* name;
  bool (*can_run)();
  void (*sample)(const SampleJob&);
  void (*search)(const SearchJob&);
};

extern "C" {
extern const Searcher searcher_portable;
extern const Searcher searcher_avx2;
extern const Searcher searcher_avx512;
}
