// The loops, compiled once per instruction set.
#pragma once

#include <stdint.h>

#include "../task.h"

namespace icr_cpu {

using icr_kernels::AssignmentTask;
using icr_kernels::CostTask;
using icr_kernels::DecodingTask;
using icr_kernels::DetectionSums;
using icr_kernels::DetectionTask;
using icr_kernels::PairwiseTask;
using icr_kernels::Rows;
using icr_kernels::Scaling;
using icr_kernels::SelectionTask;
using icr_kernels::Task;

// The pairs of a chunk are summed together, whichever thread takes it: sums do not depend on the number of threads.
constexpr int64_t kChunk = 2048;

// All pairs: how much of a matrix is made at a time, how many queries look for their best together, and at how many
// candidates at a time.
constexpr int kRows = 64, kColumns = 512;
constexpr int kQueries = 64, kTile = 256;

// The groups of some boxes.
struct GroupRange {
  int32_t first = 0x7fffffff, last = -1;
  bool has_others = false;  // boxes that are of no group
};

// Points of an assignment, row by row: the x of the first row are those of all, the y of the first column too, and both
// ascend.
struct Grid {
  const float *x, *y;  // of its first point, and of those that follow
  int64_t first, width, height;
};

// The predicted boxes of an image, a column each, which a vector may be read from at any of them.
struct Predictions {
  float *x1, *y1, *x2, *y2, *area, *angle;
};

// A box of the ground truth, measured, and how far it reaches for points: x1, y1, x2, y2 of each.
struct TruthBox {
  float corners[4], area, angle, reach[4];
};

// A prediction that overlaps a box.
struct Overlap {
  int32_t point;
  float similarity;
};

struct InstructionSet {
  const char* name;
  // The chunks [begin, end) of a task. Where chunk_sums is not null, the sums of their weighted losses.
  void (*run)(const Task&, double* chunk_sums, int64_t begin, int64_t end);
  // The rows [begin, end) of a scaling.
  void (*scale)(const Scaling&, int64_t begin, int64_t end);
  // Of the matrices of all pairs the parts [begin, end); the gradients of the first or second boxes [begin, end) of all
  // batches.
  void (*pairwise)(const PairwiseTask&, int64_t begin, int64_t end);
  void (*first_gradient)(const PairwiseTask&, int64_t begin, int64_t end);
  void (*second_gradient)(const PairwiseTask&, int64_t begin, int64_t end);
  // The blocks of queries [begin, end), given the groups in each tile of candidates (null: no groups).
  void (*select)(const SelectionTask&, const GroupRange*, int64_t begin, int64_t end);
  // The targets [begin, end).
  void (*cost)(const CostTask&, int64_t begin, int64_t end);
  // The boxes of an image, with the ratio of its sides for the angle of each.
  void (*measure)(const Rows&, int format, int64_t count, const Predictions&);
  // Those that overlap a box of the truth, of the points within its reach; how many there are.
  int64_t (*overlaps)(const Predictions&, const Grid*, int64_t grids, const TruthBox&, float eps, Overlap*);
  // Of a dense head the parts [begin, end): its boxes, or the gradient of its logits; the sums of its loss, one for each
  // part; the gradients of that.
  void (*decode)(const DecodingTask&, int64_t begin, int64_t end);
  void (*detect)(const DetectionTask&, int64_t begin, int64_t end, DetectionSums*);
  void (*detection_gradient)(const DetectionTask&, int64_t begin, int64_t end);
};
extern const InstructionSet generic;
#if defined(__x86_64__)
extern const InstructionSet avx2, avx512;
#endif

// The gradient of a table: to each row, the scaled gradients of its pairs, added up in their order.
void add_to_table(const Scaling& scaling, const Rows& table);

}  // namespace icr_cpu

// Every instruction set has its own copy.
namespace {
namespace icr {

inline int64_t divided(int64_t count, int64_t by) { return (count + by - 1) / by; }
inline int64_t parts_of(const icr_cpu::PairwiseTask& task) {
  return task.batches * divided(task.first.count, icr_cpu::kRows) * divided(task.second.count, icr_cpu::kColumns);
}
inline int64_t parts_of(const icr_cpu::DecodingTask& head) {
  return head.images * divided(head.points, icr_cpu::kChunk);
}
inline int64_t blocks_of(const icr_cpu::SelectionTask& task) {
  return task.batches * divided(task.queries.count, icr_cpu::kQueries);
}
inline int64_t tiles_of(const icr_cpu::SelectionTask& task) {
  return task.batches * divided(task.candidates.count, icr_cpu::kTile);
}

inline void add_group(icr_cpu::GroupRange& range, int32_t group) {
  if (group < 0) {
    range.has_others = true;
  } else {
    range.first = group < range.first ? group : range.first;
    range.last = group > range.last ? group : range.last;
  }
}
inline bool meet(const icr_cpu::GroupRange& a, const icr_cpu::GroupRange& b) {
  return a.first <= b.last && b.first <= a.last;
}
inline bool is_one(const icr_cpu::GroupRange& range) { return range.first == range.last && !range.has_others; }

}  // namespace icr
}  // namespace
