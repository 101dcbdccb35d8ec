// An assignment on the CPU, image by image. Points are found by the grids that they lie in; of the pairs of a box and a
// point only those that overlap are kept, and those of a few boxes at a time.
#include "../assignment.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include "backend.h"

namespace icr_cpu {
namespace {

using icr::Box;

// PyTorch's functions, so that results have its bits. They compute whole vectors, and what is left over differently: so
// there is never anything left over.
constexpr int64_t kWhole = 64;
int64_t whole(int64_t count) { return icr::divided(count, kWhole) * kWhole; }

Tensor applied(const char* function, const Tensor& x) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(x)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(function, "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor power(const Tensor& x, double exponent) {
  AtenTensorHandle result = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_cpu_pow_Tensor_Scalar(x.get(), exponent, &result));
  return Tensor(result);
}

float* floats(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

// The points as grids: every row as wide as can be, and as many of them as have the same x. Points in no order are
// grids of one.
std::vector<Grid> grids_of(const float* x, const float* y, int64_t count) {
  std::vector<Grid> grids;
  for (int64_t first = 0; first < count;) {
    int64_t width = 1, height = 1;
    while (first + width < count && y[first + width] == y[first] && x[first + width] > x[first + width - 1]) ++width;
    const auto continues = [&](int64_t row) {
      if (row + width > count || !(y[row] > y[row - 1])) return false;
      for (int64_t i = 0; i < width; ++i) {
        if (x[row + i] != x[first + i] || y[row + i] != y[row]) return false;
      }
      return true;
    };
    while (continues(first + height * width)) ++height;
    grids.push_back({x + first, y + first, first, width, height});
    first += width * height;
  }
  return grids;
}

// Boxes, measured: x1, y1, x2, y2, area, angle.
using Columns = std::array<Tensor, 6>;

Predictions pointers(const Columns& columns) {
  return {floats(columns[0]), floats(columns[1]), floats(columns[2]),
          floats(columns[3]), floats(columns[4]), floats(columns[5])};
}

// What all images share.
struct Scene {
  const AssignmentTask& task;
  const Tensor& like;
  Tensor x, y;  // of the points
  std::vector<Grid> grids;
  std::vector<int32_t> rows;   // of the truth that count, image by image
  std::vector<int64_t> first;  // of them, of each image, and one more
  Columns truth;

  Tensor column(int64_t count) const { return icr_kernels::empty(like, {whole(count + kWhole)}, ScalarType::Float); }
  TruthBox box(int32_t row) const {
    const auto at = [&](int c) { return floats(truth[c])[row]; };
    const Box<float> reach = icr::enlarged(Box<float>{at(0), at(1), at(2), at(3)}, task.rule.smallest_side);
    return {{at(0), at(1), at(2), at(3)}, at(4), at(5), {reach.x1, reach.y1, reach.x2, reach.y2}};
  }
  int64_t label(int32_t row) const { return icr::value_or(int64_t(-1), task.labels, row); }
  bool is_candidate(const TruthBox& box, int64_t point) const {
    return icr::contains(icr::box_of(box.reach), floats(x)[point], floats(y)[point], task.rule.eps);
  }

  Columns measured(const Rows& boxes, int format, int64_t count) const {
    Columns columns;
    for (Tensor& each : columns) each = column(count);
    instructions().measure(boxes, format, count, pointers(columns));
    columns[5] = applied("aten::atan", columns[5]);
    return columns;
  }

  Scene(const AssignmentTask& task, const Tensor& like) : task(task), like(like), first(task.images + 1) {
    x = column(task.points), y = column(task.points);
    float *const xs = floats(x), *const ys = floats(y);
    for (int64_t point = 0; point < task.points; ++point) {
      const Column row = icr::row_of(task.positions, 0, point);
      xs[point] = icr::element<float>(row.data, row.type, 0);
      ys[point] = icr::element<float>(row.data, row.type, row.stride);
    }
    grids = grids_of(xs, ys, task.points);
    truth = measured(task.truth, task.rule.truth_format, task.rows);
    for (int64_t row = 0; row < task.rows; ++row) {
      const int64_t image = icr::image_of(task, row);
      if (image >= 0) ++first[image + 1];
    }
    for (int64_t image = 0; image < task.images; ++image) first[image + 1] += first[image];
    rows.resize(first[task.images]);
    std::vector<int64_t> next(first.begin(), first.end() - 1);
    for (int64_t row = 0; row < task.rows; ++row) {
      const int64_t image = icr::image_of(task, row);
      if (image >= 0) rows[next[image]++] = int32_t(row);
    }
  }
};

struct Pair {
  int32_t row, point;
  float similarity, metric;

  uint32_t rank() const { return icr::rank_of(metric); }
};

// One image.
class Assigner {
 public:
  Assigner(const Scene& scene, int64_t image) : scene_(scene), task_(scene.task), image_(image) {}

  void run() {
    std::fill_n(index(), task_.points, int64_t(-1));
    std::fill_n(score(), task_.points, 0.0f);
    const int32_t* const rows = scene_.rows.data();
    const int32_t *begin = rows + scene_.first[image_], *end = rows + scene_.first[image_ + 1];
    if (begin == end || task_.points == 0) return;
    claims_.assign(task_.points, {kNobody, 0});
    owners_.assign(task_.points, {*begin, 0});
    find_pairs(begin, end);
    settle();
  }

 private:
  // The row that a point goes to, and its similarity.
  struct Claim {
    int32_t row;
    float similarity;
  };
  static constexpr int32_t kNobody = -1, kSeveral = -2;
  static constexpr size_t kEnough = 4096;

  int64_t* index() const { return task_.index + image_ * task_.points; }
  float* score() const { return task_.score + image_ * task_.points; }

  // Those of all rows, in their order; a few rows at a time take their points.
  void find_pairs(const int32_t* begin, const int32_t* end) {
    const Columns columns = scene_.measured(icr::rows_of(task_.boxes, image_), task_.rule.box_format, task_.points);
    const Predictions predictions = pointers(columns);
    std::vector<Overlap> overlaps(task_.points + 1);
    for (const int32_t *taking = begin, *row = begin; row < end; ++row) {
      const int64_t count = instructions().overlaps(predictions, scene_.grids.data(), int64_t(scene_.grids.size()),
                                                    scene_.box(*row), task_.rule.eps, overlaps.data());
      for (const Overlap* each = overlaps.data(); each < overlaps.data() + count; ++each) {
        pairs_.push_back({*row, each->point, each->similarity, 0});
        Claim& owner = owners_[each->point];
        if (icr::rank_of(each->similarity) > icr::rank_of(owner.similarity)) owner = {*row, each->similarity};
      }
      if (pairs_.size() < kEnough && row + 1 < end) continue;
      add_metrics();
      const Pair* pair = pairs_.data();
      const Pair* const last = pair + pairs_.size();
      for (; taking <= row; ++taking) {
        const Pair* const first = pair;
        while (pair < last && pair->row == *taking) ++pair;
        take_points(*taking, first, pair);
      }
      pairs_.clear();
    }
  }

  // score^alpha similarity^beta.
  void add_metrics() {
    const int64_t count = int64_t(pairs_.size());
    if (count == 0) return;
    Tensor scores = icr_kernels::empty(scene_.like, {whole(count)}, ScalarType::Float);
    const Tensor similarities = icr_kernels::empty(scene_.like, {whole(count)}, ScalarType::Float);
    float *score = floats(scores), *const similarity = floats(similarities);
    std::fill(score + count, score + whole(count), 1.0f);
    std::fill(similarity + count, similarity + whole(count), 1.0f);
    for (int64_t i = 0; i < count; ++i) {
      const Column element = icr::row_of(task_.scores, image_, pairs_[i].point, scene_.label(pairs_[i].row));
      score[i] = icr::element<float>(element.data, element.type, 0);
      similarity[i] = pairs_[i].similarity;
    }
    if (task_.rule.from_logits) {
      scores = applied("aten::sigmoid", scores);
      score = floats(scores);
      for (int64_t i = 0; i < count; ++i) score[i] = icr::rounded_to(task_.scores.type, score[i]);
    }
    for (int64_t i = 0; i < count; ++i) score[i] = icr::score_of(score[i]);
    const Tensor of_scores = power(scores, task_.rule.alpha), of_similarities = power(similarities, task_.rule.beta);
    const float *const of_score = floats(of_scores), *const of_similarity = floats(of_similarities);
    for (int64_t i = 0; i < count; ++i) {
      pairs_[i].metric = pairs_[i].similarity != 0 ? of_score[i] * of_similarity[i] : 0.0f;
    }
  }

  // The points with the largest metrics, of equals the first. Where less than k are above zero, the free places go to
  // the first points at zero, whether or not the row can take them.
  void take_points(int32_t row, const Pair* begin, const Pair* end) {
    const int k = task_.rule.topk;
    const Pair* best[icr_kernels::kMostAssigned];
    int kept = 0;
    for (const Pair* pair = begin; pair < end; ++pair) {
      const uint32_t rank = pair->rank();
      if (rank == 0 || (kept == k && rank <= best[k - 1]->rank())) continue;
      int place = kept < k ? kept++ : k - 1;
      for (; place > 0 && best[place - 1]->rank() < rank; --place) best[place] = best[place - 1];
      best[place] = pair;
    }
    for (int i = 0; i < kept; ++i) claim(best[i]->point, {row, best[i]->similarity});
    int free = k - kept;
    const TruthBox box = scene_.box(row);
    const Pair* next = begin;  // in the order of the points
    for (int32_t point = 0; free > 0 && point < task_.points; ++point) {
      while (next < end && next->point < point) ++next;
      const bool is_similar = next < end && next->point == point;
      if (is_similar && next->rank() > 0) continue;
      --free;
      if (scene_.is_candidate(box, point)) claim(point, {row, is_similar ? next->similarity : 0.0f});
    }
  }

  void claim(int32_t point, const Claim& claim) {
    Claim& before = claims_[point];
    before = before.row == kNobody ? claim : Claim{kSeveral, 0};
  }

  // Every point goes to one row; rows keep the best of theirs; scores.
  void settle() {
    for (int64_t point = 0; point < task_.points; ++point) {
      const Claim& claim = claims_[point].row == kSeveral ? owners_[point] : claims_[point];
      if (claim.row != kNobody) pairs_.push_back({claim.row, int32_t(point), claim.similarity, 0});
    }
    add_metrics();
    const auto order = [](const Pair& pair) { return std::tuple(pair.row, ~pair.rank(), pair.point); };
    std::sort(pairs_.begin(), pairs_.end(), [&](const Pair& a, const Pair& b) { return order(a) < order(b); });
    for (size_t begin = 0, end = 0; begin < pairs_.size(); begin = end) {
      while (end < pairs_.size() && pairs_[end].row == pairs_[begin].row) ++end;
      const size_t kept = task_.rule.topk2 > 0 ? best_of(pairs_.data() + begin, end - begin) : end - begin;
      float metric = 0, similarity = 0;
      for (const Pair* pair = &pairs_[begin]; pair < &pairs_[begin] + kept; ++pair) {
        if (pair->rank() > icr::rank_of(metric)) metric = pair->metric;
        if (icr::rank_of(pair->similarity) > icr::rank_of(similarity)) similarity = pair->similarity;
      }
      for (const Pair* pair = &pairs_[begin]; pair < &pairs_[begin] + kept; ++pair) {
        index()[pair->point] = pair->row;
        score()[pair->point] = pair->metric * similarity / (metric + task_.rule.eps);
      }
    }
  }

  // How many of a row's points, best first, are among its topk2 best of all points: of those at zero the first, whether
  // or not they are its own.
  size_t best_of(const Pair* pairs, size_t count) const {
    const size_t k = task_.rule.topk2;
    size_t kept = 0;
    while (kept < std::min(count, k) && pairs[kept].rank() > 0) ++kept;
    const size_t above = kept;
    for (; kept < count; ++kept) {
      const int64_t point = pairs[kept].point;
      const auto is_before = [&](const Pair& pair) { return pair.point < point; };
      if (point - std::count_if(pairs, pairs + above, is_before) >= int64_t(k - above)) break;
    }
    return kept;
  }

  const Scene& scene_;
  const AssignmentTask& task_;
  const int64_t image_;
  std::vector<Pair> pairs_;
  std::vector<Claim> claims_, owners_;  // of the points: who takes them, and who has the largest similarity
};

}  // namespace

void Cpu::assign(const AssignmentTask& task) const {
  const Scene scene(task, like_);
  torch::stable::parallel_for(0, task.images, 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) Assigner(scene, image).run();
  });
}

}  // namespace icr_cpu
