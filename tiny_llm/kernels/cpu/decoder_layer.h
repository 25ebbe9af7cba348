// A decoder layer's two functions, and the norm, as lazy operations.
#pragma once
#include "layer.h"
#include "matrix.h"

// Copy a vector of floats into the arena; null where there is none.
inline const float* kept(Arena& arena, const std::optional<mx::array>& x) {
  if (!x) return nullptr;
  expect("norm", *x, mx::float32, 1, {});
  void* to = arena.take(x->nbytes());
  std::memcpy(to, x->data<float>(), x->nbytes());
  return (const float*)to;
}

// A layer, and the arena that its norms and matrices are in.
struct LaidLayer {
  std::shared_ptr<Arena> arena;
  Layer layer;
};

// The experts of a layer and what chooses among them.
class ExpertMixture {
 public:
  ExpertMixture(const Matrix& router, const std::vector<const Matrix*>& gate_up,
                const std::vector<const Matrix*>& down, int chosen, bool normalize)
      : mixture_(std::make_shared<ExpertSet>()) {
    mixture_->router = router.joined();
    for (size_t i = 0; i < gate_up.size(); i++) mixture_->experts.push_back({gate_up[i]->joined(), down[i]->joined()});
    mixture_->chosen = chosen;
    mixture_->normalize = normalize;
  }

  // Add an expert that all rows pass, as far as its gate (1, hidden) says.
  void share(const Matrix& gate_up, const Matrix& down, const Matrix& gate) {
    mixture_->shared = {gate_up.joined(), down.joined()};
    mixture_->shared_gate = gate.joined();
    mixture_->has_shared = true;
  }

  const std::shared_ptr<ExpertSet>& mixture() const { return mixture_; }

 private:
  std::shared_ptr<ExpertSet> mixture_;
};

// A layer of the model without its attention. It has an MLP (`gate_up`, `down`), or a mixture of experts; without both
// it can only `project`.
class DecoderLayer {
 public:
  DecoderLayer(const SharedArena& arena, int heads, int kv_heads, int dim, float eps, bool int8, const Matrix& qkv,
               const Matrix& o, const Matrix* gate_up, const Matrix* down, const ExpertMixture* mixture,
               const mx::array& input_norm, const mx::array& post_norm, const std::optional<mx::array>& q_norm,
               const std::optional<mx::array>& k_norm)
      : laid_(std::make_shared<LaidLayer>(LaidLayer{arena.arena, {}})) {
    Layer& layer = laid_->layer;
    layer.shape = {qkv.joined().columns, heads, kv_heads, dim, eps};
    layer.qkv = qkv.joined();
    layer.o = o.joined();
    if (mixture) layer.mixture = mixture->mixture();
    if (gate_up && down) layer.mlp = {gate_up->joined(), down->joined()};
    layer.input_norm = kept(*arena.arena, input_norm);
    layer.post_norm = kept(*arena.arena, post_norm);
    layer.q_norm = kept(*arena.arena, q_norm);
    layer.k_norm = kept(*arena.arena, k_norm);
    layer.int8 = int8;
  }

  const std::shared_ptr<LaidLayer>& laid() const { return laid_; }

  // Compute q (T, heads, dim), k and v (T, kv_heads, dim) from x (T, hidden), cos and sin (T, dim/2).
  std::vector<mx::array> project(const mx::array& x, const mx::array& cos, const mx::array& sin) const {
    const Shape& s = laid_->layer.shape;
    expect("x", x, mx::float32, 2, {s.hidden});
    int rows = x.shape(0);
    expect("cos", cos, mx::float32, 2, {rows, s.dim / 2});
    expect("sin", sin, mx::float32, 2, {rows, s.dim / 2});
    std::vector<mx::Shape> shapes = {{rows, s.heads, s.dim}, {rows, s.kv_heads, s.dim}, {rows, s.kv_heads, s.dim}};
    auto work = [laid = laid_, rows](const Inputs& in, const Outputs& out) {
      ::project(*pool, laid->layer, in[0].floats(), in[1].floats(), in[2].floats(), rows, out[0], out[1], out[2]);
    };
    return lazy("Project", shapes, {x, cos, sin}, 3, work);
  }

  // Compute the layer's output (T, hidden) from its input x (T, hidden) and `attended` (T, heads, dim).
  mx::array finish(const mx::array& x, const mx::array& attended) const {
    const Shape& s = laid_->layer.shape;
    expect("x", x, mx::float32, 2, {s.hidden});
    int rows = x.shape(0);
    expect("attended", attended, mx::float32, 3, {rows, s.heads, s.dim});
    auto work = [laid = laid_, rows](const Inputs& in, const Outputs& out) {
      ::finish(*pool, laid->layer, in[0].floats(), in[1].floats(), rows, out[0]);
    };
    return lazy("Finish", {{rows, s.hidden}}, {x, attended}, 2, work)[0];
  }

 private:
  std::shared_ptr<LaidLayer> laid_;
};

// Compute the RMS norm of x (…, size) with `weight` (size,).
inline mx::array norm(const mx::array& x, const mx::array& weight, float eps) {
  int size = weight.shape(0);
  expect("norm", x, mx::float32, x.ndim(), {size});
  return lazy("Norm", {x.shape()}, {x, weight}, 2, [size, eps](const Inputs& in, const Outputs& out) {
    int rows = 1;
    for (size_t i = 0; i + 1 < in[0].shape.size(); i++) rows *= in[0].shape[i];
    each_row(*pool, rows, [&](int row) {
      rms_norm(in[0].floats() + (int64_t)row * size, in[1].floats(), size, eps, out[0] + (int64_t)row * size);
    });
  })[0];
}
