// What the operators hand to the loops and kernels: plain pointers, strides and numbers, the same for every processor.
#pragma once

#include <stdint.h>

namespace icr_kernels {

// Which gradients are wanted: bit n is of the n-th boxes of a call.
enum Want : unsigned { kPred = 1, kTarget = 2, kAnchorObject = 4, kFirst = 1, kSecond = 2 };

enum class Type : int8_t { kFloat, kDouble, kHalf, kBFloat16, kInt32, kInt64, kBool };

// Rows of four coordinates, in elements of their own type. An index chooses the row of each pair; one outside
// [0, row_count) chooses none.
struct Rows {
  const void* data = nullptr;
  Type type = Type::kFloat;
  bool aligned = false;  // every row lies side by side, at a multiple of the bytes that a GPU loads at once
  int64_t row_stride = 0;
  int64_t column_stride = 1;
  const void* index = nullptr;
  Type index_type = Type::kInt64;
  int64_t index_stride = 0;
  int64_t row_count = 0;
};

// One value per pair; stride 0 is the same value for all.
struct Column {
  const void* data = nullptr;
  Type type = Type::kFloat;
  int64_t stride = 0;
};

// Contiguous rows to write, aligned.
struct RowsOut {
  void* data = nullptr;
  Type type = Type::kFloat;
};

// The most parameters of a loss or penalty.
constexpr int kMostParameters = 4;

// The numbers of a formula, in the order in which icr_kernels/calls.py packs them.
enum Number { kPenaltyWeight, kEps, kClamp, kNumberCount };

// What is computed of each pair, in numbers of S. Loss, penalty and format are places in the lists of
// icr_kernels/variants.py.
template <class S>
struct Formula {
  int loss;
  int penalty;  // -1: none
  bool relative;
  S numbers[kNumberCount];
  int box_format;
};

// Bits of what modifies a loss, and the numbers of losses that have parameters or are modified.
enum Modifier { kInner = 1, kFocaler = 2, kWise2 = 4, kWise3 = 8 };
enum LossNumber {
  kInnerRatio = kMostParameters,  // after the parameters
  kFocalerLow,
  kFocalerHigh,
  kWiseA,
  kWiseB,
  kLossNumberCount
};

// The formula with such a loss.
template <class S>
struct FullFormula : Formula<S> {
  int modifiers;
  S of_loss[kLossNumberCount];
  S per_pixel;  // how much of the boxes' unit a pixel is
  S wise_mean;
};

// Which function of a pair of boxes (pair_functions.h).
template <class S>
struct PairFunction {
  int kind;
  int box_format;
  S eps;
  S parameters[kMostParameters];
};

// What a matching cost is made of (matching_cost.h).
template <class S>
struct Cost {
  int box_format;
  bool is_focal;
  bool is_square;  // gamma is 2
  S class_weight, l1_weight, giou_weight, alpha, gamma, focal_eps, eps;
};

struct Task {
  int64_t pairs = 0;
  bool in_double = false;

  Rows pred, target, anchor_objects;  // anchor_objects.data == nullptr: no anchor objects; only pred has no index
  Column weight, mask;                // data == nullptr: none

  FullFormula<double> formula;
  Column pixels, wise_mean;  // a unit of the boxes has so many; data == nullptr: 1

  // Of every gradient, and of losses written one per pair. Where there is a normalizer, a 0-dim value that only a
  // kernel can read, it also divides by max(normalizer, eps).
  double scale = 1;
  Column normalizer;

  // Which results: the loss, or all terms with gradients of each.
  bool terms = false;
  // Upstream gradients; data == nullptr: 1 for the loss, 0 for the other terms.
  Column grad_loss, grad_iou, grad_containment, grad_penalty;

  // Outputs, in float or double as in_double says; nullptr: not wanted.
  void* loss_out = nullptr;
  void* iou_out = nullptr;
  void* containment_out = nullptr;
  void* penalty_out = nullptr;
  // One row per pair, those of anchor objects too, whether or not they come from a table.
  RowsOut grad_pred, grad_target, grad_anchor_objects;
};

// The gradient rows of the pairs times one or two upstream factors, rounded to the type of the boxes.
struct Scaling {
  int64_t pairs = 0;
  bool in_double = false;
  Rows gradient;  // contiguous, in float or double as in_double says
  Column factor;   // data == nullptr: none
  Column pending;  // one more factor, the same for all (stride 0); likewise
  RowsOut out;
};

// All pairs

// One set of boxes per batch.
struct BoxSet {
  Rows rows;                 // of the first batch, without an index
  int64_t count = 0;         // in each
  int64_t batch_stride = 0;  // in elements
};

// One matrix per batch; strides in elements.
struct Matrices {
  const void* data = nullptr;
  Type type = Type::kFloat;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 1;
};

// Such matrices to write.
struct MatricesOut {
  void* data = nullptr;
  Type type = Type::kFloat;
  int64_t batch_stride = 0;
  int64_t row_stride = 0;
  int64_t column_stride = 1;
};

// The matrices of all pairs of two sets, or what a gradient of them is for their boxes.
struct PairwiseTask {
  PairFunction<double> function;
  bool in_double = false;
  int64_t batches = 1;
  BoxSet first, second;
  void* out = nullptr;  // contiguous, in float or double as in_double says; nullptr: not wanted
  Matrices gradient;
  RowsOut grad_first, grad_second;  // data == nullptr: not wanted
};

// The best candidates of each query; icr_kernels/operators.py says what is best.
struct SelectionTask {
  PairFunction<double> function;
  bool in_double = false;
  int64_t batches = 1;
  BoxSet queries, candidates;
  Column query_group, candidate_group;  // batch after batch; data == nullptr: all pairs count
  Column offset;                        // of the candidates; data == nullptr: none
  Column at_least;                      // of the queries; data == nullptr: the largest value is best
  bool candidate_first = false;         // the function is of (candidate, query)
  bool larger = false;
  int k = 0;  // 0: one, without a dimension of its own

  // For each query max(k, 1) of each, contiguous; values in float or double as in_double says.
  void* values = nullptr;
  int64_t* indices = nullptr;
};

// The cost of each target with the queries of its own image.
struct CostTask {
  Cost<double> cost;
  bool in_double = false;
  int64_t targets = 0;
  int64_t classes = 0;
  BoxSet boxes;  // a batch is an image
  int64_t images = 0;
  Matrices logits;
  Column log_normalizer;  // of the queries, image after image; data == nullptr: the focal cost
  Rows target_boxes;
  Column labels, image;  // of the targets
  void* out = nullptr;  // (targets, queries), contiguous, in float or double as in_double says
};

// How points are assigned to ground truth, as icr_kernels/calls.py packs it.
struct AssignmentRule {
  int box_format, truth_format;
  int topk, topk2;  // topk2 of 0: no such step
  bool from_logits;
  float alpha, beta;
  float smallest_side;  // negative: boxes as they are
  float eps;
};

// Task-aligned assignment of the points of each image, in single floats.
struct AssignmentTask {
  AssignmentRule rule;
  int64_t images = 0, points = 0, classes = 0, rows = 0;
  Matrices scores;     // a batch is an image, a row a point
  BoxSet boxes;        // a batch is an image
  Matrices positions;  // one matrix: x and y of each point
  Rows truth;
  Column labels, image;  // of the truth

  // One per image and point, contiguous: the row of the truth, -1 for none; its score.
  int64_t* index = nullptr;
  float* score = nullptr;
};

// What the loss of a dense head is made of (detection.h), in numbers of S; F is the formula of its boxes.
template <class S, class F>
struct DetectionFormula {
  F pair;
  S height, width;  // of the image, which distances without bins are divided by
  bool has_size;    // or else by their stride
};

// What a dense head leaves: a batch is an image, a row a point, 4 times as many columns as bins.
struct DecodingTask {
  bool in_double = false;
  int64_t images = 0, points = 0;
  int bins = 1;
  Matrices logits;
  Matrices positions;  // one matrix: x and y of each point
  Column strides;      // of the points

  // Either: the corners, contiguous, in float or double as in_double says. Or the gradient of the logits, given that of
  // the corners.
  void* boxes = nullptr;
  Rows grad_boxes;
  MatricesOut grad_logits;
};

enum DetectionTerm { kBox, kClassification, kDistribution, kPenalty, kTermCount };

// The loss of a dense head whose points are assigned to the truth.
struct DetectionTask {
  DecodingTask head;
  DetectionFormula<double, FullFormula<double>> formula;
  Column wise_mean;
  double gains[kTermCount];
  double given_normalizer = 0;  // 0: the sum of the scores, at least 1; or the tensor
  bool is_uniform = false;      // every penalty alike, and not by the score of its point
  int64_t classes = 0, rows = 0;
  Matrices class_logits;
  Rows truth;
  Column labels;        // of the truth
  Column anchor_index;  // likewise, a row of the truth each; data == nullptr: none
  Column index, score;  // of the points
  Column class_weight;  // data == nullptr: none
  Column normalizer;    // data == nullptr: none

  // Either: a number each, in float or double as head.in_double says, and the two that they were divided by: the
  // normalizer, and the number of points that have an anchor object.
  void* terms[kTermCount] = {};
  void* divisors = nullptr;

  // Or, of the terms with these upstream gradients (data == nullptr: 0), those of the logits; the divisors are in
  // `normalizer`.
  Column upstream[kTermCount];
  MatricesOut grad_class_logits;
};

// Sums over points: of the terms, without gains and divisors, of the scores, and of those that have an anchor object.
struct DetectionSums {
  double terms[kTermCount];
  double scores, pairs;
};

// The most points that a row of the truth takes.
constexpr int kMostAssigned = 32;

// The most partners of a query that a selection keeps.
constexpr int kMostSelected = 16;

}  // namespace icr_kernels
