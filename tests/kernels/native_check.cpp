// Check the CPU kernels' parts against double precision, for the instruction set that this file is compiled for.
#include <cstdio>
#include <random>
#include <stdexcept>

#include "attention.h"
#include "interleave.h"
#include "layer.h"

namespace {

std::mt19937 rng(1);
Pool& pool = *new Pool(2);  // never freed, because its threads run until the process ends
int faults = 0;

double number() { return std::uniform_real_distribution<double>(-1, 1)(rng); }

std::vector<float> numbers(size_t size) {
  std::vector<float> found(size);
  for (float& x : found) x = number();
  return found;
}

void expect(bool holds, const char* what, double found) {
  if (holds) return;
  faults++;
  std::printf("%s: %g\n", what, found);
}

void check_products(Format format, int bits, int rows, int columns, int group) {
  std::vector<uint32_t> codes((size_t)rows * columns * bits / 32);
  for (uint32_t& word : codes) word = rng();
  int groups = columns / group, blocks = (rows + LANES - 1) / LANES;
  std::vector<float> scales = numbers(rows * groups), biases = numbers(rows * groups);
  std::vector<uint32_t> words((size_t)blocks * LANES * columns * bits / 32);
  std::vector<float> scalings((size_t)blocks * LANES * groups * 2);
  interleave_codes(pool, codes.data(), words.data(), rows, columns, bits, bits);
  interleave(pool, scales.data(), scalings.data(), rows, groups, 2);
  interleave(pool, biases.data(), scalings.data() + LANES, rows, groups, 2);
  Weight w = {format, Format::Float32, rows, columns, group, words.data(), scalings.data(), nullptr};
  auto value = [&](int row, int k) {
    int64_t place = ((int64_t)row * columns + k) * bits;
    uint32_t code = codes[place / 32] >> (place % 32) & ((1u << bits) - 1);
    int at = row * groups + k / group;
    return (double)scales[at] * code + biases[at];
  };
  for (int count : {1, 2, 3, 4, 7, 20})
    for (bool int8 : {false, true}) {
      std::vector<float> x = numbers(count * columns), y(count * rows);
      product(pool, {{w}, rows, columns}, int8, x.data(), count, y.data());
      double wrong = 0, all = 0;
      for (int m = 0; m < count; m++)
        for (int row = 0; row < rows; row++) {
          double want = 0;
          for (int k = 0; k < columns; k++) want += x[m * columns + k] * value(row, k);
          wrong += (want - y[m * rows + row]) * (want - y[m * rows + row]);
          all += want * want;
        }
      double error = std::sqrt(wrong / all);
      expect(error < (int8 ? 3e-2 : 3e-6), int8 ? "product with int8" : "product", error);
    }
}

// An exception of a piece used to end the process, on the thread that ran the piece.
void check_exceptions() {
  for (int round = 0; round < 200; round++) {
    std::string found;
    try {
      pool.each(64, [](int piece) {
        if (piece % 16 == 7) throw std::runtime_error("piece failed");
      });
    } catch (const std::runtime_error& error) {
      found = error.what();
    }
    expect(found == "piece failed", "an exception of a piece", round);
    std::atomic<int> called{0};
    pool.each(64, [&](int) { called++; });
    expect(called == 64, "pieces after an exception", called);
  }
}

void check_experts(int count, int chosen, bool normalize) {
  const int hidden = 20, inner = 12, experts = 5;
  auto matrix = [](int rows, int columns) {
    auto& numbers_of = *new std::vector<float>(numbers(rows * columns));
    int blocks = (rows + LANES - 1) / LANES;
    auto& laid = *new std::vector<float>(blocks * LANES * columns);
    interleave(pool, numbers_of.data(), laid.data(), rows, columns);
    Weight w = {Format::Float32, Format::Float32, rows, columns, columns, laid.data(), nullptr, nullptr};
    return std::make_pair(&numbers_of, Joined{{w}, rows, columns});
  };
  auto times = [](const std::vector<float>& w, const double* x, int rows, int columns) {
    std::vector<double> y(rows);
    for (int row = 0; row < rows; row++)
      for (int k = 0; k < columns; k++) y[row] += w[row * columns + k] * x[k];
    return y;
  };
  auto router = matrix(experts, hidden);
  ExpertSet set = {};
  set.router = router.second;
  set.chosen = chosen;
  set.normalize = normalize;
  std::vector<const std::vector<float>*> gate_up, down;
  for (int e = 0; e < experts; e++) {
    auto first = matrix(2 * inner, hidden), second = matrix(hidden, inner);
    gate_up.push_back(first.first);
    down.push_back(second.first);
    set.experts.push_back({first.second, second.second});
  }
  std::vector<float> x = numbers(count * hidden), y(x.size());
  mix(pool, set, false, x.data(), count, y.data());
  for (int row = 0; row < count; row++) {
    std::vector<double> from(x.begin() + row * hidden, x.begin() + (row + 1) * hidden), want(hidden);
    std::vector<double> p = times(*router.first, from.data(), experts, hidden);
    double total = 0, kept = 0;
    for (double& logit : p) total += logit = std::exp(logit);
    std::vector<double> sorted = p;
    std::sort(sorted.rbegin(), sorted.rend());
    for (int i = 0; i < chosen; i++) kept += sorted[i];
    for (int e = 0; e < experts; e++) {
      if (p[e] < sorted[chosen - 1]) continue;
      std::vector<double> both = times(*gate_up[e], from.data(), 2 * inner, hidden), middle(inner);
      for (int i = 0; i < inner; i++) middle[i] = both[i] / (1 + std::exp(-both[i])) * both[inner + i];
      std::vector<double> out = times(*down[e], middle.data(), hidden, inner);
      for (int i = 0; i < hidden; i++) want[i] += p[e] / (normalize ? kept : total) * out[i];
    }
    for (int i = 0; i < hidden; i++)
      expect(std::fabs(want[i] - y[row * hidden + i]) < 1e-4, "experts", want[i] - y[row * hidden + i]);
  }
}

void check_halves() {
  uint16_t half[LANES];
  for (int i = 0; i < LANES; i++) half[i] = 0x3c00 + 16 * i;
  for (int i = 0; i < LANES; i++) expect(load((float16*)half)[i] == 1 + i / 64.f, "float16", load((float16*)half)[i]);
  half[0] = 1;
  expect(load((float16*)half)[0] == std::ldexp(1.f, -24), "the smallest float16", load((float16*)half)[0]);
  for (int i = 0; i < LANES; i++) half[i] = 0x3f80 + i;
  for (int i = 0; i < LANES; i++)
    expect(load((bfloat16*)half)[i] == 1 + i / 128.f, "bfloat16", load((bfloat16*)half)[i]);
}

void check_exp() {
  for (double x = -86.5; x < 88; x += 0.37) {
    double error = exp(all((float)x))[0] / std::exp((double)(float)x) - 1;
    expect(std::fabs(error) < 4e-7, "exp", error);
  }
}

void check_attention(int dim, int slots, int count) {
  const int heads = 4, kv_heads = 2;
  std::vector<float> q = numbers(count * heads * dim);
  std::vector<float> k = numbers(kv_heads * slots * dim);
  std::vector<float> v = numbers(k.size());
  std::vector<float> out(q.size());
  Heads shape = {heads, kv_heads, dim, 0, 0.3f};
  FloatSlots keys = {k.data(), (int64_t)slots * dim};
  FloatSlots values = {v.data(), (int64_t)slots * dim};
  attend(pool, shape, keys, values, {{q.data(), out.data(), count, slots, {nullptr, 1}, nullptr}});
  for (int token = 0; token < count; token++)
    for (int head = 0; head < heads; head++) {
      const float* mine = &q[(token * heads + head) * dim];
      int kv = head / (heads / kv_heads), last = slots - count + token;
      std::vector<double> mixed(dim);
      double total = 0;
      for (int slot = 0; slot <= last; slot++) {
        double score = 0;
        for (int d = 0; d < dim; d++) score += mine[d] * k[((int64_t)kv * slots + slot) * dim + d];
        double weight = std::exp(score * 0.3);
        total += weight;
        for (int d = 0; d < dim; d++) mixed[d] += weight * v[((int64_t)kv * slots + slot) * dim + d];
      }
      for (int d = 0; d < dim; d++) {
        double error = mixed[d] / total - out[(token * heads + head) * dim + d];
        expect(std::fabs(error) < 1e-5, "attention", error);
      }
    }
}

}  // namespace

int main() {
  for (int rows : {5, 16, 40})
    for (int group : {32, 64}) {
      check_products(Format::Codes4, 4, rows, 128, group);
      check_products(Format::Codes8, 8, rows, 128, group);
    }
  check_exceptions();
  for (int count : {1, 9, 40})
    for (int chosen : {1, 3, 5}) check_experts(count, chosen, chosen == 3);
  check_halves();
  check_exp();
  for (int dim : {20, 32, 64, 128})
    for (int slots : {3, 300})
      for (int count : {1, 2, 3}) check_attention(dim, slots, count);
  check_attention(64, 300, 70);
  std::printf("%d lanes, %d faults\n", LANES, faults);
  return faults != 0;
}
