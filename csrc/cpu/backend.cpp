// The CPU: instruction sets, threads, sums.
#include "backend.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <stdexcept>

#include "../detection.h"

namespace icr_cpu {
namespace {

// Below this many chunks a thread has less to do than it costs to wake it.
constexpr int64_t kChunksPerThread = 2;

std::vector<InstructionSet> compiled() {
#if defined(__x86_64__)
  return {generic, avx2, avx512};
#else
  return {generic};
#endif
}

bool usable(const std::string& name) {
#if defined(__x86_64__)
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name == "avx2") return has_avx2;
  if (name == "avx512") {
    return has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return name == "generic";
}

InstructionSet best() {
  InstructionSet chosen = generic;
  for (const auto& set : compiled()) {
    if (usable(set.name)) chosen = set;
  }
  return chosen;
}

InstructionSet& current() {
  static InstructionSet set = best();
  return set;
}

// The number of pairs that count.
int64_t count_of(const Task& task) {
  if (!icr::is_masked(task)) return task.pairs;
  int64_t count = 0;
  if (task.target.index != nullptr) {
    for (int64_t i = 0; i < task.pairs; ++i) count += icr::counts(task, i);
  } else {
    const auto* values = static_cast<const uint8_t*>(task.mask.data);
    for (int64_t i = 0; i < task.pairs; ++i) count += values[i * task.mask.stride] != 0;
  }
  return count;
}

int64_t chunks(int64_t pairs) { return (pairs + kChunk - 1) / kChunk; }

void run_chunks(const Task& task, double* chunk_sums) {
  const auto loops = current().run;
  const int64_t count = chunks(task.pairs);
  if (count <= kChunksPerThread) return loops(task, chunk_sums, 0, count);
  torch::stable::parallel_for(0, count, kChunksPerThread,
                              [&](int64_t begin, int64_t end) { loops(task, chunk_sums, begin, end); });
}

}  // namespace

void Cpu::run(const Task& task) const { run_chunks(task, nullptr); }

std::tuple<Tensor, OptionalTensor> Cpu::sum(Task& task, bool over_count, bool) const {
  if (over_count) task.scale /= double(std::max<int64_t>(count_of(task), 1));
  if (task.normalizer.data != nullptr) {
    const double normalizer = icr::element<double>(task.normalizer.data, task.normalizer.type, 0);
    task.scale /= std::max(normalizer, task.formula.numbers[icr_kernels::kEps]);
  }
  std::vector<double> sums(chunks(task.pairs));
  run_chunks(task, sums.data());
  double total = 0;
  for (const double sum : sums) total += sum;
  const ScalarType dtype = task.in_double ? ScalarType::Double : ScalarType::Float;
  Tensor result = icr_kernels::empty(like_, {}, dtype);
  if (task.in_double) {
    *static_cast<double*>(result.data_ptr()) = total * task.scale;
  } else {
    *static_cast<float*>(result.data_ptr()) = float(total * task.scale);
  }
  return {result, std::nullopt};
}

void Cpu::scale(const Scaling& scaling) const {
  if (scaling.pairs == 0) return;
  const bool by_one = scaling.in_double ? icr::is_by_one<double>(scaling) : icr::is_by_one<float>(scaling);
  if (by_one && scaling.out.data == scaling.gradient.data) return;
  const auto loops = current().scale;
  torch::stable::parallel_for(0, scaling.pairs, kChunksPerThread * kChunk,
                              [&](int64_t begin, int64_t end) { loops(scaling, begin, end); });
}

void Cpu::add_to_table(const Scaling& scaling, const Rows& table) const { icr_cpu::add_to_table(scaling, table); }

namespace {

// A thread is worth waking for so many pairs.
constexpr int64_t kPairsPerThread = 1 << 15;

template <class F>
void over(int64_t count, int64_t pairs_of_each, F f) {
  if (count == 0) return;
  const int64_t grain = icr::divided(kPairsPerThread, std::max<int64_t>(pairs_of_each, 1));
  torch::stable::parallel_for(0, count, grain, f);
}

}  // namespace

void Cpu::pairwise(const PairwiseTask& task) const {
  const auto loops = current().pairwise;
  over(icr::parts_of(task), int64_t(kRows) * kColumns,
       [&](int64_t begin, int64_t end) { loops(task, begin, end); });
}

void Cpu::pairwise_backward(const PairwiseTask& task) const {
  const auto first = current().first_gradient, second = current().second_gradient;
  if (task.grad_first.data != nullptr) {
    over(task.batches * task.first.count, task.second.count,
         [&](int64_t begin, int64_t end) { first(task, begin, end); });
  }
  if (task.grad_second.data != nullptr) {
    over(task.batches * task.second.count, task.first.count,
         [&](int64_t begin, int64_t end) { second(task, begin, end); });
  }
}

void Cpu::select(const SelectionTask& task) const {
  const auto loops = current().select;
  std::vector<GroupRange> ranges;
  if (task.candidate_group.data != nullptr) {
    ranges.resize(icr::tiles_of(task));
    for (int64_t i = 0; i < task.batches * task.candidates.count; ++i) {
      const int64_t tile = i / task.candidates.count * icr::divided(task.candidates.count, kTile) +
                           i % task.candidates.count / kTile;
      icr::add_group(ranges[tile], icr::group_of(task.candidate_group, i));
    }
  }
  over(icr::blocks_of(task), kQueries * task.candidates.count, [&](int64_t begin, int64_t end) {
    loops(task, task.candidate_group.data != nullptr ? ranges.data() : nullptr, begin, end);
  });
}

void Cpu::matching_cost(const CostTask& task) const {
  const auto loops = current().cost;
  over(task.targets, task.boxes.count, [&](int64_t begin, int64_t end) { loops(task, begin, end); });
}

namespace {

// Gradients are new memory, and most of what a head needs. In pages of the usual size it takes longer to get than to
// fill.
void ask_for_large_pages(const icr_kernels::MatricesOut& out, int64_t images) {
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t(1) << 21;
  const uintptr_t first = reinterpret_cast<uintptr_t>(out.data);
  const uintptr_t last = first + images * out.batch_stride * icr::bytes_of(out.type);
  const uintptr_t begin = (first + page - 1) / page * page, end = last / page * page;
  // Nothing is lost where the system has none.
  if (out.data != nullptr && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

}  // namespace

// A part is worth waking a thread for.
void Cpu::decode(const DecodingTask& head) const {
  ask_for_large_pages(head.grad_logits, head.images);
  torch::stable::parallel_for(0, icr::parts_of(head), 1, [&, loops = current().decode](int64_t begin, int64_t end) {
    loops(head, begin, end);
  });
}

void Cpu::detect(const DetectionTask& task) const {
  std::vector<DetectionSums> sums(icr::parts_of(task.head));
  torch::stable::parallel_for(0, int64_t(sums.size()), 1, [&, loops = current().detect](int64_t begin, int64_t end) {
    loops(task, begin, end, sums.data());
  });
  DetectionSums total{};
  for (const DetectionSums& sum : sums) {
    for (int term = 0; term < icr_kernels::kTermCount; ++term) total.terms[term] += sum.terms[term];
    total.scores += sum.scores;
    total.pairs += sum.pairs;
  }
  task.head.in_double ? icr::store_terms<double>(task, total) : icr::store_terms<float>(task, total);
}

void Cpu::detection_gradient(const DetectionTask& task) const {
  ask_for_large_pages(task.head.grad_logits, task.head.images);
  ask_for_large_pages(task.grad_class_logits, task.head.images);
  torch::stable::parallel_for(
      0, icr::parts_of(task.head), 1,
      [&, loops = current().detection_gradient](int64_t begin, int64_t end) { loops(task, begin, end); });
}

std::vector<std::string> compiled_instruction_sets() {
  std::vector<std::string> names;
  for (const auto& set : compiled()) names.push_back(set.name);
  return names;
}

std::vector<std::string> usable_instruction_sets() {
  std::vector<std::string> names;
  for (const auto& set : compiled()) {
    if (usable(set.name)) names.push_back(set.name);
  }
  return names;
}

const InstructionSet& instructions() { return current(); }

std::string instruction_set() { return current().name; }

void set_instruction_set(const std::string& name) {
  for (const auto& set : compiled()) {
    if (set.name == name && usable(name)) {
      current() = set;
      return;
    }
  }
  throw std::invalid_argument("set_instruction_set: expected one that this build has and this processor can run, got '" +
                              name + "'");
}

}  // namespace icr_cpu
