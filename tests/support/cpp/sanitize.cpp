// Runs loops and kernels over exactly sized heap blocks: odd numbers of pairs, rows at every offset from a vector
// boundary, strided rows, tables with indices far outside, masks, every dtype; and over the pairs of sets of boxes, in
// batches, with groups, labels and images far outside. Built with sanitizers by test_sanitizers.py; it holds against
// nothing but them, and prints its runs.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "processor.h"

using namespace icr_kernels;

namespace {

size_t size_of(Type type) {
  switch (type) {
    case Type::kDouble:
    case Type::kInt64: return 8;
    case Type::kHalf:
    case Type::kBFloat16: return 2;
    case Type::kBool: return 1;
    default: return 4;
  }
}

// A heap block whose first element lies `skip` elements after its start and whose last byte is its end.
struct Block {
  std::unique_ptr<char[]> bytes;
  char* data;

  Block(size_t count, size_t skip, Type type) : bytes(new char[(count + skip) * size_of(type)]) {
    data = bytes.get() + skip * size_of(type);
    std::memset(bytes.get(), 0, (count + skip) * size_of(type));
  }
};

void fill_boxes(Block& block, int64_t rows, int64_t row_stride, Type type) {
  for (int64_t i = 0; i < rows; ++i) {
    const float box[4] = {float(i % 17), float(i % 13), float(i % 17 + 5), float(i % 13 + 4)};
    for (int64_t c = 0; c < 4; ++c) {
      const int64_t at = i * row_stride + c;
      if (type == Type::kFloat) reinterpret_cast<float*>(block.data)[at] = box[c];
      if (type == Type::kDouble) reinterpret_cast<double*>(block.data)[at] = box[c];
      // The upper half of a float is a bfloat16; read as float16 it is another finite number.
      uint32_t bits;
      std::memcpy(&bits, &box[c], sizeof(bits));
      if (size_of(type) == 2) reinterpret_cast<uint16_t*>(block.data)[at] = uint16_t(bits >> 16);
    }
  }
}

int runs = 0;

void run(const Processor& processor, int64_t pairs, size_t skip, Type type, int64_t row_stride, int options) {
  const bool indexed = options & 1, masked = options & 2, weighted = options & 4, terms = options & 8;
  const bool targets_indexed = indexed && weighted;
  const bool in_double = type == Type::kDouble;
  const Type compute = in_double ? Type::kDouble : Type::kFloat;
  const int64_t span = pairs == 0 ? 0 : (pairs - 1) * row_stride + 4;
  Block pred(span, skip, type), target(targets_indexed ? 12 : span, skip, type);
  Block anchor_objects(indexed ? 12 : span, skip, type);
  fill_boxes(pred, pairs, row_stride, type);
  fill_boxes(target, targets_indexed ? 3 : pairs, targets_indexed ? 4 : row_stride, type);
  fill_boxes(anchor_objects, indexed ? 3 : pairs, indexed ? 4 : row_stride, type);
  Block index(pairs, skip, Type::kInt64), mask(pairs, skip, Type::kBool), weight(pairs, skip, compute);
  Block mean(1, skip, compute);
  const int64_t rows[] = {0, 2, -1, 3, 1, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()};
  for (int64_t i = 0; i < pairs; ++i) {
    reinterpret_cast<int64_t*>(index.data)[i] = rows[i % 7];
    mask.data[i] = i % 3 != 0 && i % 32 < 16;
  }
  Block losses(pairs, skip, compute), iou(pairs, skip, compute), inside(pairs, skip, compute),
      penalty(pairs, skip, compute);
  Block grad_pred(4 * pairs, 0, type), grad_target(4 * pairs, 0, type), grad_anchor_objects(4 * pairs, 0, compute);

  Task task;
  task.pairs = pairs;
  task.in_double = in_double;
  const bool aligned = skip == 0 && row_stride == 4;
  const auto rows_of = [&](const Block& block, bool from_table) {
    Rows rows{block.data, type, skip == 0 && (from_table || aligned), from_table ? 4 : row_stride};
    if (from_table) {
      rows.index = index.data;
      rows.index_stride = 1;
      rows.row_count = 3;
    }
    return rows;
  };
  task.pred = rows_of(pred, false);
  task.target = rows_of(target, targets_indexed);
  task.anchor_objects = rows_of(anchor_objects, indexed);
  if (masked) task.mask = {mask.data, Type::kBool, 1};
  if (weighted) task.weight = {weight.data, compute, 1};
  const int64_t normalizer = 3;
  if (!masked) task.normalizer = {&normalizer, Type::kInt64, 0};
  task.formula = {{runs % 6, runs % 5, runs % 2 == 1, {1, 1e-7, 0.1}, runs % 3}, runs % 4 < 2 ? 0 : kInner | kWise2,
                  {640, 640, 0, 0, 0.7, 0, 1, 0.5}};
  if (runs % 8 < 4) {
    task.pixels = {weight.data, compute, 1};
    task.wise_mean = {mean.data, compute, 0};
  }
  task.terms = terms;
  task.loss_out = losses.data;
  if (terms) {
    task.iou_out = iou.data;
    task.containment_out = inside.data;
    task.penalty_out = penalty.data;
    task.grad_loss = task.grad_iou = task.grad_containment = task.grad_penalty = {weight.data, compute, 1};
  }
  task.grad_pred = {grad_pred.data, type};
  if (runs % 4) task.grad_target = {grad_target.data, type};
  if (runs % 3) task.grad_anchor_objects = {grad_anchor_objects.data, compute};
  processor.run(task);

  if (type == Type::kFloat && aligned && !indexed) {  // What a GPU has kernels of its own for.
    Task packed;
    packed.pairs = pairs;
    packed.pred = task.pred;
    packed.target = task.target;
    packed.anchor_objects = task.anchor_objects;
    packed.formula = {{0, weighted ? 0 : -1, false, {1, 1e-7}, 0}};
    packed.grad_pred = task.grad_pred;
    processor.run(packed);
    packed.formula.loss = 1;  // of the further ones
    processor.run(packed);
  }

  Block scaled(4 * pairs, 0, type), of_table(4 * 3, 0, type), rows_of_gradient(4 * pairs, 0, compute);
  Scaling scaling;
  scaling.pairs = pairs;
  scaling.in_double = in_double;
  scaling.gradient = {rows_of_gradient.data, compute, true, 4};
  scaling.factor = {weight.data, compute, weighted ? 1 : 0};
  scaling.out = {scaled.data, type};
  if (masked) scaling.pending = {weight.data, compute, 0};
  if (pairs > 0) processor.scale(scaling);
  if (indexed) {
    scaling.out = {of_table.data, type};
    processor.add_to_table(scaling, task.anchor_objects);
  }
  ++runs;
}

constexpr Type kTypes[] = {Type::kFloat, Type::kDouble, Type::kHalf, Type::kBFloat16};
constexpr int64_t kFarOutside[] = {-1, std::numeric_limits<int64_t>::min(), std::numeric_limits<int64_t>::max()};

// Numbers from 0 to `most` - 1, ascending or not, and every ninth far outside.
void fill_numbers(Block& block, int64_t count, int64_t most, bool ascending) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t number = ascending ? i * most / count : i * 7 % most;
    reinterpret_cast<int64_t*>(block.data)[i] = i % 9 == 8 ? kFarOutside[i / 9 % 3] : number;
  }
}

// Of a set in each of two batches; or of one that both share.
BoxSet box_set(const Block& block, int64_t count, int64_t row_stride, size_t skip, Type type, bool is_shared) {
  BoxSet set;
  set.rows = {block.data, type, skip == 0 && row_stride == 4, row_stride};
  set.rows.row_count = set.count = count;
  set.batch_stride = is_shared ? 0 : count * row_stride;
  return set;
}

// Matrices of two batches, contiguous or with their rows side by side.
Matrices matrices_of(const Block& block, Type type, int64_t rows, int64_t columns, bool transposed) {
  return {block.data, type, rows * columns, transposed ? 1 : columns, transposed ? rows : 1};
}
MatricesOut matrices_out(const Block& block, Type type, int64_t rows, int64_t columns, bool transposed) {
  return {block.data, type, rows * columns, transposed ? 1 : columns, transposed ? rows : 1};
}

// The head whose points are assigned; some to rows of the truth that are far outside.
void run_head(const Processor& processor, const AssignmentTask& assignment, Type type, Type compute, size_t skip,
              bool transposed) {
  const int64_t n = assignment.points, points = assignment.images * n, classes = assignment.classes;
  const int bins = 1 + runs % 4;
  Block box_logits(points * 4 * bins, skip, type), class_logits(points * classes, skip, type);
  Block boxes(4 * points, 0, compute), of_boxes(points * 4 * bins, 0, type), of_classes(points * classes, 0, type);
  Block index(points, skip, Type::kInt64), anchor_index(assignment.rows, skip, Type::kInt64);
  Block strides(n, skip, compute), weight(classes, skip, compute), upstream(1, skip, compute);
  Block terms(kTermCount, 0, compute), divisors(2, 0, compute);
  fill_numbers(index, points, assignment.rows + 1, false);
  fill_numbers(anchor_index, assignment.rows, assignment.rows + 1, false);
  DetectionTask task;
  task.head.in_double = compute == Type::kDouble;
  task.head.images = assignment.images;
  task.head.points = n;
  task.head.bins = bins;
  task.head.logits = matrices_of(box_logits, type, n, 4 * bins, transposed);
  task.head.positions = assignment.positions;
  task.head.strides = {strides.data, compute, 1};
  task.head.boxes = boxes.data;
  processor.decode(task.head);
  task.head.boxes = nullptr;
  task.head.grad_boxes = {boxes.data, compute, true, 4};
  task.head.grad_logits = matrices_out(of_boxes, type, n, 4 * bins, transposed);
  processor.decode(task.head);

  task.formula = {{{runs % 6, runs % 7 - 1, runs % 2 != 0, {0.5, 1e-7}, runs % 3}, runs % 4 < 2 ? 0 : kInner,
                   {640, 640, 0, 0, 0.7}},
                  64, 48, runs % 2 != 0};
  for (double& gain : task.gains) gain = 1.5;
  task.is_uniform = runs % 3 == 0;
  task.classes = classes;
  task.rows = assignment.rows;
  task.class_logits = matrices_of(class_logits, type, n, classes, transposed);
  task.truth = assignment.truth;
  task.labels = assignment.labels;
  if (runs % 2 == 0) task.anchor_index = {anchor_index.data, Type::kInt64, 1};
  task.index = {index.data, Type::kInt64, 1};
  task.score = {assignment.score, Type::kFloat, 1};
  if (runs % 4 > 1) task.class_weight = {weight.data, compute, 1};
  const int64_t size = compute == Type::kDouble ? 8 : 4;
  for (int term = 0; term < kTermCount; ++term) task.terms[term] = static_cast<char*>(terms.data) + term * size;
  task.divisors = divisors.data;
  task.head.grad_logits = {};
  processor.detect(task);
  task.normalizer = {divisors.data, compute, 1};
  for (Column& each : task.upstream) each = {upstream.data, compute, 0};
  if (runs % 5) task.head.grad_logits = matrices_out(of_boxes, type, n, 4 * bins, transposed);
  if (runs % 7) task.grad_class_logits = matrices_out(of_classes, type, n, classes, transposed);
  processor.detection_gradient(task);
}

void run_sets(const Processor& processor, int64_t n, int64_t m, size_t skip, Type type, int64_t row_stride,
              int options) {
  const bool is_shared = options & 1, grouped = options & 2, by_area = options & 4, transposed = options & 8;
  const Type other_type = kTypes[(runs / 4 + runs) % 4];
  const bool in_double = type == Type::kDouble || other_type == Type::kDouble;
  const Type compute = in_double ? Type::kDouble : Type::kFloat;
  const int64_t batches = 2, rows = batches * n, other_rows = is_shared ? m : batches * m;
  Block first(rows == 0 ? 0 : (rows - 1) * row_stride + 4, skip, type), second(4 * other_rows, skip, other_type);
  fill_boxes(first, rows, row_stride, type);
  fill_boxes(second, other_rows, 4, other_type);
  const PairFunction<double> function{runs % 3, runs % 3, 1e-7, {640, 640}};

  Block matrix(rows * m, skip, compute), gradient(rows * m, skip, compute);
  Block grad_first(4 * rows, 0, type), grad_second(4 * batches * m, 0, other_type);
  PairwiseTask task;
  task.in_double = in_double;
  task.batches = batches;
  task.function = function;
  task.first = box_set(first, n, row_stride, skip, type, false);
  task.second = box_set(second, m, 4, skip, other_type, is_shared);
  task.out = matrix.data;
  processor.pairwise(task);
  task.out = nullptr;
  task.gradient = {gradient.data, compute, n * m, transposed ? 1 : m, transposed ? n : 1};
  if (runs % 5 == 0 && rows * m > 0) task.gradient = {gradient.data, compute, 0, 0, 0};
  if (runs % 4) task.grad_first = {grad_first.data, type};
  if (runs % 3) task.grad_second = {grad_second.data, other_type};
  processor.pairwise_backward(task);

  const int k = runs % 3 == 2 ? kMostSelected : runs % 3;
  const int64_t chosen = rows * (k > 1 ? k : 1);
  Block values(chosen, skip, compute), indices(chosen, skip, Type::kInt64);
  Block query_group(rows, skip, Type::kInt64), candidate_group(batches * m, skip, Type::kInt64);
  Block offset(batches * m, skip, compute), at_least(rows, skip, compute);
  fill_numbers(query_group, rows, 5, !transposed);
  fill_numbers(candidate_group, batches * m, 5, !transposed);
  SelectionTask selection;
  selection.in_double = in_double;
  selection.batches = batches;
  selection.function = function;
  selection.queries = task.first;
  selection.candidates = task.second;
  if (grouped) {
    selection.query_group = {query_group.data, Type::kInt64, 1};
    selection.candidate_group = {candidate_group.data, Type::kInt64, 1};
  }
  if (by_area) {
    selection.at_least = {at_least.data, compute, 1};
  } else if (grouped) {
    selection.offset = {offset.data, compute, 1};
  }
  selection.candidate_first = runs % 2;
  selection.larger = runs % 5 == 1;
  selection.k = k;
  selection.values = values.data;
  selection.indices = reinterpret_cast<int64_t*>(indices.data);
  processor.select(selection);

  const int64_t classes = 3, targets = m < 9 ? m : 9;
  Block logits(rows * classes, skip, type), log_normalizer(rows, skip, compute), cost(targets * n, skip, compute);
  Block labels(targets, skip, Type::kInt64), images(targets, skip, Type::kInt64);
  fill_numbers(labels, targets, classes, false);
  fill_numbers(images, targets, batches + 1, true);
  CostTask costs;
  costs.in_double = in_double;
  costs.targets = targets;
  costs.classes = classes;
  costs.boxes = task.first;
  costs.images = batches;
  costs.logits = {logits.data, type, n * classes, transposed ? 1 : classes, transposed ? n : 1};
  if (grouped) costs.log_normalizer = {log_normalizer.data, compute, 1};
  costs.target_boxes = task.second.rows;
  costs.labels = {labels.data, Type::kInt64, 1};
  costs.image = {images.data, Type::kInt64, 1};
  costs.cost = {function.box_format, !grouped, by_area, 1, 5, 2, 0.25, by_area ? 2 : 1.5, 1e-8, 1e-16};
  costs.out = cost.data;
  processor.matching_cost(costs);

  // The points are the first boxes; the truth is the second, its images and labels far outside now and then.
  Block positions(2 * n, skip, compute), index(rows, skip, Type::kInt64), score(rows, skip, Type::kFloat);
  const int64_t truths = m < 12 ? m : 12;
  Block truth_labels(truths, skip, Type::kInt64), truth_images(truths, skip, Type::kInt64);
  fill_numbers(truth_labels, truths, classes, false);
  fill_numbers(truth_images, truths, batches, true);
  for (int64_t i = 0; i < 2 * n; ++i) {
    if (in_double) reinterpret_cast<double*>(positions.data)[i] = double(i / 2 % 17) + 0.5;
    if (!in_double) reinterpret_cast<float*>(positions.data)[i] = float(i / 2 % 17) + 0.5f;
  }
  AssignmentTask assignment;
  assignment.rule = {function.box_format, (runs + 1) % 3, grouped ? 10 : kMostAssigned, by_area ? 1 + runs % 9 : 0,
                     transposed, by_area ? 1.0f : 0.5f, grouped ? 6.0f : float(1 + runs % 3),
                     is_shared ? -1.0f : 3.0f, 1e-9f};
  assignment.images = batches;
  assignment.points = n;
  assignment.classes = classes;
  assignment.rows = truths;
  assignment.scores = costs.logits;
  assignment.boxes = task.first;
  assignment.positions = {positions.data, compute, 0, 2, 1};
  assignment.truth = task.second.rows;
  assignment.labels = {truth_labels.data, Type::kInt64, 1};
  assignment.image = {truth_images.data, Type::kInt64, 1};
  assignment.index = reinterpret_cast<int64_t*>(index.data);
  assignment.score = reinterpret_cast<float*>(score.data);
  processor.assign(assignment);
  run_head(processor, assignment, type, compute, skip, transposed);
  ++runs;
}

}  // namespace

int main() {
  for (const auto& processor : processors()) {
    runs = 0;
    int combination = 0;
    for (const int64_t pairs : processor.sizes) {
      for (const size_t skip : {0, 1}) {
        for (const Type type : kTypes) {
          for (const int64_t row_stride : {4, 7}) {
            for (int options = 0; options < 16; ++options) {
              if (combination++ % processor.every == 0) run(processor, pairs, skip, type, row_stride, options);
            }
          }
        }
      }
    }
    std::printf("%s: %d runs\n", processor.name, runs);
    runs = combination = 0;
    const size_t sizes = processor.set_sizes.size();
    for (size_t size = 0; size < sizes; ++size) {
      for (const size_t skip : {0, 1}) {
        for (const Type type : kTypes) {
          for (const int64_t row_stride : {4, 7}) {
            for (int options = 0; options < 16; ++options) {
              const int64_t n = processor.set_sizes[size];
              const int64_t m = processor.set_sizes[(size + 1 + runs % (sizes - 1)) % sizes];
              if (combination++ % processor.every == 0) run_sets(processor, n, m, skip, type, row_stride, options);
            }
          }
        }
      }
    }
    std::printf("%s: %d runs over sets\n", processor.name, runs);
  }
}
