// The instruction sets that this processor has.
#include "../../csrc/cpu/instruction_sets.h"
#include "processor.h"

using namespace icr_cpu;

namespace {

const std::vector<int64_t> kSizes = {0, 1, 7, 8, 15, 16, 17, 33, 2049};

template <const InstructionSet& set>
Processor processor() {
  const auto run = [](const Task& task) {
    const int64_t chunks = (task.pairs + kChunk - 1) / kChunk;
    std::vector<double> sums(chunks);
    set.run(task, task.terms ? nullptr : sums.data(), 0, chunks);
  };
  const auto scale = [](const Scaling& scaling) { set.scale(scaling, 0, scaling.pairs); };
  return {set.name, 1, kSizes, run, scale, add_to_table};
}

}  // namespace

std::vector<Processor> processors() {
  std::vector<Processor> found = {processor<generic>()};
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(processor<avx2>());
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    found.push_back(processor<avx512>());
  }
#endif
  return found;
}
