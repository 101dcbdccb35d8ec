// The instruction sets that this processor has.
#include "../../../csrc/cpu/instruction_sets.h"
#include "../../../csrc/memory.h"
#include "processor.h"

using namespace icr_cpu;

namespace {

const std::vector<int64_t> kSizes = {0, 1, 7, 8, 15, 16, 17, 33, 2049};
const std::vector<int64_t> kSetSizes = {0, 1, 7, 16, 67, 17, 530};

template <const InstructionSet& set>
Processor processor() {
  const auto run = [](const Task& task) {
    const int64_t chunks = (task.pairs + kChunk - 1) / kChunk;
    std::vector<double> sums(chunks);
    set.run(task, task.terms ? nullptr : sums.data(), 0, chunks);
  };
  const auto scale = [](const Scaling& scaling) { set.scale(scaling, 0, scaling.pairs); };
  const auto pairwise = [](const PairwiseTask& task) { set.pairwise(task, 0, icr::parts_of(task)); };
  const auto pairwise_backward = [](const PairwiseTask& task) {
    if (task.grad_first.data != nullptr) set.first_gradient(task, 0, task.batches * task.first.count);
    if (task.grad_second.data != nullptr) set.second_gradient(task, 0, task.batches * task.second.count);
  };
  const auto select = [](const SelectionTask& task) {
    const int64_t candidates = task.candidates.count, tiles = icr::divided(candidates, kTile);
    std::vector<GroupRange> ranges(icr::tiles_of(task));
    for (int64_t i = 0; i < task.batches * candidates; ++i) {
      icr::add_group(ranges[i / candidates * tiles + i % candidates / kTile], icr::group_of(task.candidate_group, i));
    }
    set.select(task, task.candidate_group.data != nullptr ? ranges.data() : nullptr, 0, icr::blocks_of(task));
  };
  const auto matching_cost = [](const CostTask& task) { set.cost(task, 0, task.targets); };
  // The loops alone: what is around them is PyTorch's.
  const auto assign = [](const AssignmentTask& task) {
    const int64_t places = task.points + 64;
    std::vector<float> columns[6], positions(2 * task.points);
    for (auto& column : columns) column.resize(places);
    const Predictions predictions{columns[0].data(), columns[1].data(), columns[2].data(),
                                  columns[3].data(), columns[4].data(), columns[5].data()};
    for (int64_t point = 0; point < task.points; ++point) positions[point] = positions[task.points + point] = float(point);
    std::vector<Overlap> overlaps(task.points + 1);
    for (int64_t image = 0; image < task.images; ++image) {
      set.measure(icr::rows_of(task.boxes, image), task.rule.box_format, task.points, predictions);
      const Grid grid{positions.data(), positions.data() + task.points, 0, task.points, task.points > 0 ? 1 : 0};
      const TruthBox truth{{0, 0, 9, 9}, 81, 0.78f, {-1, -1, float(task.points), 9}};
      set.overlaps(predictions, &grid, 1, truth, task.rule.eps, overlaps.data());
    }
  };
  const auto decode = [](const DecodingTask& head) { set.decode(head, 0, icr::parts_of(head)); };
  const auto detect = [](const DetectionTask& task) {
    std::vector<DetectionSums> sums(icr::parts_of(task.head));
    set.detect(task, 0, int64_t(sums.size()), sums.data());
  };
  const auto gradient = [](const DetectionTask& task) { set.detection_gradient(task, 0, icr::parts_of(task.head)); };
  return {set.name, 1,        kSizes,            kSetSizes, run,           scale,  add_to_table, pairwise,
          pairwise_backward, select, matching_cost, assign,    decode, detect, gradient};
}

}  // namespace

std::vector<Processor> processors() {
  std::vector<Processor> found = {processor<generic>()};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(processor<avx2>());
#endif
#if defined(WITH_AVX512)
  found.push_back(processor<avx512>());
#endif
  return found;
}
