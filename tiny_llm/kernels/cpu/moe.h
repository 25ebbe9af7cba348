// The MLP of a layer with experts: a router sends each row to a few of many MLPs. model/moe.py has the same in plain
// operations.
#pragma once
#include <numeric>
#include <vector>

#include "mlp.h"

struct ExpertSet {
  Joined router;
  std::vector<Mlp> experts;
  int chosen;      // experts of a row
  bool normalize;  // let the shares of a row's experts sum to 1
  bool has_shared;
  Mlp shared;          // an expert that all rows pass
  Joined shared_gate;  // (1, hidden)
};

// A row's choice of an expert.
struct Choice {
  int row;
  float share;
};

// Turn a router's logits into probabilities.
inline void softmax_of(float* logits, int size) {
  float top = *std::max_element(logits, logits + size);
  float total = 0;
  for (int i = 0; i < size; i++) total += logits[i] = std::exp(logits[i] - top);
  for (int i = 0; i < size; i++) logits[i] /= total;
}

// Append each row's choices to the lists of its experts. Of equal probabilities the expert with the lower number wins.
inline void route(const ExpertSet& moe, float* logits, int rows, std::vector<std::vector<Choice>>& choices) {
  int count = (int)moe.experts.size();
  choices.assign(count, {});
  std::vector<int> order(count);
  for (int row = 0; row < rows; row++) {
    float* p = logits + (int64_t)row * count;
    softmax_of(p, count);
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + moe.chosen, order.end(),
                      [p](int a, int b) { return p[a] != p[b] ? p[a] > p[b] : a < b; });
    float total = 0;
    for (int i = 0; i < moe.chosen; i++) total += p[order[i]];
    for (int i = 0; i < moe.chosen; i++)
      choices[order[i]].push_back({row, moe.normalize ? p[order[i]] / total : p[order[i]]});
  }
}

// A thread's memory for a mixture's intermediate results.
struct ExpertScratch {
  std::vector<float> logits, rows, outputs;
  std::vector<std::vector<Choice>> choices;
};

// Add share · from to a row of `size` numbers.
inline void add_share(float share, const float* from, int size, float* to) {
  for (int i = 0; i < size; i++) to[i] += share * from[i];
}

// Compute y (count, hidden), the sum of each row's experts by their shares, from x (count, hidden), normed. An expert's
// matrices are read once for all of its rows.
inline void mix(Pool& pool, const ExpertSet& moe, bool int8, const float* x, int count, float* y) {
  static thread_local ExpertScratch own;
  int hidden = moe.router.columns;
  own.logits.resize((size_t)count * moe.experts.size());
  own.rows.resize((size_t)count * hidden);
  own.outputs.resize((size_t)count * hidden);
  product(pool, moe.router, false, x, count, own.logits.data());
  route(moe, own.logits.data(), count, own.choices);
  std::fill_n(y, (int64_t)count * hidden, 0.f);
  for (size_t e = 0; e < moe.experts.size(); e++) {
    const std::vector<Choice>& choices = own.choices[e];
    int rows = (int)choices.size();
    if (rows == 0) continue;
    float* gathered = own.rows.data();
    float* outputs = own.outputs.data();
    each_row(pool, rows, [&](int i) {
      std::copy_n(x + (int64_t)choices[i].row * hidden, hidden, gathered + (int64_t)i * hidden);
    });
    compute_mlp(pool, moe.experts[e], int8, gathered, rows, outputs);
    each_row(pool, rows, [&](int i) {
      add_share(choices[i].share, outputs + (int64_t)i * hidden, hidden, y + (int64_t)choices[i].row * hidden);
    });
  }
  if (!moe.has_shared) return;
  std::vector<float> gates(count);
  product(pool, moe.shared_gate, false, x, count, gates.data());
  compute_mlp(pool, moe.shared, int8, x, count, own.outputs.data());
  for (int i = 0; i < count; i++) {
    float share = 1 / (1 + std::exp(-gates[i]));
    add_share(share, own.outputs.data() + (int64_t)i * hidden, hidden, y + (int64_t)i * hidden);
  }
}
