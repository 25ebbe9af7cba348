// All layers of a step as one lazy operation.
#pragma once
#include <utility>

#include "attend.h"
#include "decoder_layer.h"
#include "stack.h"

using Layers = std::vector<std::shared_ptr<LaidLayer>>;

// A cache's buffers between the operation that writes them and the arrays that stand for them afterwards.
using Written = std::shared_ptr<std::vector<mx::array>>;

// The layers, their windows (0 for all keys) and the scale of the scores.
struct StackShape {
  Layers layers;
  std::vector<int> windows;
  float scale;
};

// The inputs of a step before the cache's buffers, in this order.
enum StepInput { X, COS, SIN, SLOTS, ENDS, TABLES };

// Run all layers. `in` has StepInput's arrays, TABLES if `block` is not 0, then the mask if `is_masked`.
inline void run_stack(const StackShape& stack, int block, bool is_masked, const Inputs& in,
                      const std::vector<View>& buffers, float* y) {
  int tokens = in[X].shape[0];
  int sequences = in[ENDS].shape[0];
  const bool* mask = is_masked ? in.back().as<bool>() : nullptr;
  const int32_t* tables = block ? in[TABLES].as<int32_t>() : nullptr;
  int width = block ? in[TABLES].shape[1] : 0;
  const int32_t* ends = in[ENDS].as<int32_t>();
  Step step = {tokens, in[SLOTS].as<int32_t>(),
               queries_of(sequences, tokens / sequences, ends, tables, width, block, mask)};
  std::vector<const Layer*> layers;
  for (const auto& laid : stack.layers) layers.push_back(&laid->layer);
  size_t count = layers.size();
  int dim = layers[0]->shape.dim;
  auto run = [&](size_t arrays, auto slots_of) {  // `arrays` for the keys of a layer, and as many for its values
    std::vector<decltype(slots_of(&buffers[0]))> slots;
    for (size_t i = 0; i < 2 * count; i++) slots.push_back(slots_of(&buffers[arrays * i]));
    run_layers(*pool, layers, stack.windows, stack.scale, &slots[0], &slots[count], in[COS].floats(), in[SIN].floats(),
               step, in[X].floats(), y);
  };
  if (buffers.size() == 2 * count)
    run(1, [](const View* of) { return float_slots(of); });
  else
    run(3, [dim](const View* of) { return packed_slots(of, dim); });
}

// All layers as one operation with one output, the last layer's. Its last inputs are the cache's buffers. It writes a
// buffer in place where no other reference to it exists, and into a copy otherwise. A `Buffer` then stands for each,
// because MLX does not let an operation with several outputs write its inputs in place.
class Stack : public CpuPrimitive {
 public:
  Stack(mx::Stream stream, std::shared_ptr<StackShape> shape, int block, bool is_masked, Written written)
      : CpuPrimitive(stream, "Stack"), shape_(shape), block_(block), is_masked_(is_masked), written_(written) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    size_t numbers = TABLES + (block_ > 0) + is_masked_;
    outputs[0].set_data(mx::allocator::malloc(outputs[0].nbytes()));
    Inputs in;
    for (size_t i = 0; i < numbers; i++) in.push_back(view_of(inputs[i]));
    std::vector<View> buffers;
    std::vector<View> shared;
    std::vector<char*> copies;
    for (size_t i = numbers; i < inputs.size(); i++) {
      mx::array out(inputs[i].shape(), inputs[i].dtype(), nullptr, {});
      if (inputs[i].is_donatable() && inputs[i].flags().row_contiguous) {
        out.copy_shared_buffer(inputs[i]);
      } else {
        out.set_data(mx::allocator::malloc(out.nbytes()));
        shared.push_back(view_of(inputs[i]));
        copies.push_back(out.data<char>());
        mx::cpu::get_command_encoder(stream()).add_temporary(out);  // the task writes into it
      }
      buffers.push_back(view_of(out));
      written_->push_back(std::move(out));
    }
    auto task = [shape = shape_, block = block_, is_masked = is_masked_, in = std::move(in),
                 buffers = std::move(buffers), shared = std::move(shared), copies = std::move(copies),
                 y = outputs[0].data<float>()]() mutable {
      Copies rows(in.size());
      for (size_t i = 0; i < in.size(); i++)
        if (!in[i].in_rows(0)) put_in_rows(in[i], rows[i]);
      for (size_t i = 0; i < shared.size(); i++) copy_axes(shared[i], 0, shared[i].data, copies[i]);
      run_stack(*shape, block, is_masked, in, buffers, y);
    };
    mx::cpu::get_command_encoder(stream()).dispatch(std::move(task));
  }

 private:
  std::shared_ptr<StackShape> shape_;
  int block_;
  bool is_masked_;
  Written written_;
};

// Buffer `index` after a `Stack`, whose output is the input here: the same memory.
class Buffer : public CpuPrimitive {
 public:
  Buffer(mx::Stream stream, Written written, size_t index)
      : CpuPrimitive(stream, "Buffer"), written_(std::move(written)), index_(index) {}

  void eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>& outputs) override {
    outputs[0].copy_shared_buffer((*written_)[index_]);
    (*written_)[index_] = mx::array(0);  // drops this reference, so that the output has the only one
  }

 private:
  Written written_;
  size_t index_;
};

// The layers of a model, to be run as one operation.
class LayerStack {
 public:
  LayerStack(const std::vector<const DecoderLayer*>& layers, std::vector<int> windows, float scale)
      : shape_(std::make_shared<StackShape>()) {
    shape_->scale = scale;
    shape_->windows = std::move(windows);
    for (const DecoderLayer* layer : layers) shape_->layers.push_back(layer->laid());
  }

  // Return the last layer's output, and the buffers with the new tokens.
  //
  // x (T, hidden), cos and sin (T, dim/2); slots (T,) of the new tokens, ends (sequences,) after them. `tables`
  // (sequences, width) has blocks of `block` slots. `buffers` has all layers' keys, then all layers' values.
  std::pair<mx::array, std::vector<mx::array>> run(const mx::array& x, const mx::array& cos, const mx::array& sin,
                                                   const mx::array& slots, const mx::array& ends,
                                                   const std::optional<mx::array>& tables,
                                                   const std::optional<mx::array>& mask, int block,
                                                   const std::vector<mx::array>& buffers) const {
    const Shape& s = shape_->layers[0]->layer.shape;
    int tokens = x.shape(0);
    int sequences = ends.shape(0);
    expect("x", x, mx::float32, 2, {s.hidden});
    expect("cos", cos, mx::float32, 2, {tokens, s.dim / 2});
    expect("sin", sin, mx::float32, 2, {tokens, s.dim / 2});
    expect("slots", slots, mx::int32, 1, {tokens});
    expect("ends", ends, mx::int32, 1, {});
    std::vector<mx::array> inputs = {x, cos, sin, slots, ends};
    if (tables) {
      expect("tables", *tables, mx::int32, 2, {});
      inputs.push_back(*tables);
    }
    if (mask) {
      expect("mask", *mask, mx::bool_, 2, {});
      inputs.push_back(*mask);
    }
    size_t count = buffers.size();
    size_t layers = shape_->layers.size();
    if (sequences == 0 || tokens % sequences != 0)
      throw std::invalid_argument("ends: expected a divisor of the " + std::to_string(tokens) + " tokens, found " +
                                  std::to_string(sequences) + " sequences");
    if (count != 2 * layers && count != 6 * layers)
      throw std::invalid_argument("buffers: expected 2 or 6 for each of " + std::to_string(layers) +
                                  " layers, found " + std::to_string(count));
    add_cache(buffers, count == 6 * layers, inputs);
    auto stream = mx::default_stream(mx::Device::cpu);
    auto written = std::make_shared<std::vector<mx::array>>();
    auto stack = std::make_shared<Stack>(stream, shape_, tables ? block : 0, mask.has_value(), written);
    mx::array y({tokens, s.hidden}, mx::float32, stack, std::move(inputs));
    std::vector<mx::array> after;
    for (size_t i = 0; i < count; i++) {
      auto buffer = std::make_shared<Buffer>(stream, written, i);
      after.emplace_back(buffers[i].shape(), buffers[i].dtype(), buffer, std::vector<mx::array>{y});
    }
    return {y, after};
  }

 private:
  std::shared_ptr<StackShape> shape_;
};
