// What the operators hand to the loops: plain pointers, strides and numbers, the same for every instruction set.
#pragma once

#include <stdint.h>

namespace icr_cpu {

enum class Type : int8_t { kFloat, kDouble, kHalf, kBFloat16, kInt32, kInt64, kBool };

// Rows of four coordinates, in elements of their own type. An index chooses the row of each pair; one outside
// [0, row_count) chooses none.
struct Rows {
  const void* data = nullptr;
  Type type = Type::kFloat;
  int64_t row_stride = 0;
  int64_t column_stride = 1;
  const void* index = nullptr;
  Type index_type = Type::kInt64;
  int64_t index_stride = 0;
  int64_t row_count = 0;
};

// One value a pair; stride 0 is the same value for all.
struct Column {
  const void* data = nullptr;
  Type type = Type::kFloat;
  int64_t stride = 0;
};

// Contiguous rows to write.
struct RowsOut {
  void* data = nullptr;
  Type type = Type::kFloat;
};

// The pairs of a chunk are summed together, whichever thread takes it: sums do not depend on the number of threads.
constexpr int64_t kChunk = 2048;

struct Task {
  int64_t pairs = 0;
  bool in_double = false;

  Rows pred, target, anchors;  // anchors.data == nullptr: no anchor objects
  Column weight, mask;         // data == nullptr: none

  int loss = 0;
  int penalty = -1;
  bool relative = false;
  double penalty_weight = 1;
  double eps = 1e-7;
  int box_format = 0;

  double scale = 1;  // of every gradient, and of losses written one a pair

  // Which results: the loss, or all terms with gradients of each.
  bool terms = false;
  // Upstream gradients; data == nullptr: 1 for the loss, 0 for the other terms.
  Column grad_loss, grad_iou, grad_containment, grad_penalty;

  // Outputs, in float or double as in_double says; nullptr: not wanted.
  void* loss_out = nullptr;
  void* iou_out = nullptr;
  void* containment_out = nullptr;
  void* penalty_out = nullptr;
  RowsOut grad_pred, grad_target, grad_anchors;  // anchors: one row a pair, whether or not they come from a table
  double* chunk_sums = nullptr;                  // of the weighted losses of each chunk
};

// Gradient rows times an upstream factor, rounded to the type of the boxes.
struct Scaling {
  bool in_double = false;
  const void* gradient = nullptr;  // contiguous, float or double as in_double says
  Column factor;
  RowsOut out;
};

// The loops of one instruction set: the chunks [begin, end) of a task; the rows [begin, end) of a scaling.
struct InstructionSet {
  const char* name;
  void (*run)(const Task&, int64_t begin, int64_t end);
  void (*scale)(const Scaling&, int64_t begin, int64_t end);
};
extern const InstructionSet generic;
#if defined(__x86_64__)
extern const InstructionSet avx2, avx512;
#endif

}  // namespace icr_cpu
