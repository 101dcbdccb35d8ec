// The gradient of a table: one loop over the pairs, which no instruction set makes faster.
#include <vector>

#include "loops.h"

namespace {

template <class T>
void add_rows(const icr_cpu::Scaling& scaling, const icr_cpu::Rows& table) {
  const T* gradient = static_cast<const T*>(scaling.gradient.data);
  std::vector<T> sums(4 * table.row_count);
  for (int64_t i = 0; i < scaling.pairs; ++i) {
    const int64_t row = icr::row_of(table, i);
    if (row < 0) continue;
    const T factor = icr::factor_of<T>(scaling, i);
    for (int c = 0; c < 4; ++c) sums[4 * row + c] += icr::scaled(gradient[4 * i + c], factor);
  }
  icr::round_to(scaling.out, 0, table.row_count, sums.data());
}

}  // namespace

void icr_cpu::add_to_table(const Scaling& scaling, const Rows& table) {
  scaling.in_double ? add_rows<double>(scaling, table) : add_rows<float>(scaling, table);
}
