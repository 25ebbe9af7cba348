// The CPU kernels under their Python names. All arrays are float32 where nothing else is said.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>

#include <chrono>
#include <memory>
#include <optional>

#include "arena.h"
#include "attention.h"
#include "interleave.h"
#include "layer.h"
#include "native.h"
#include "stack.h"

namespace nb = nanobind;

namespace {

Pool* pool = nullptr;  // never freed: its threads wait until the process ends

void start(int threads) {
  if (!pool) pool = new Pool(threads);
}

Format format_of(const mx::array& x) {
  if (x.dtype() == mx::float32) return Format::Float32;
  if (x.dtype() == mx::float16) return Format::Float16;
  if (x.dtype() == mx::bfloat16) return Format::BFloat16;
  throw std::invalid_argument("expected float32, float16 or bfloat16, found " + words(x));
}

// Lazy work runs on MLX's threads. It holds its data by `std::shared_ptr`s made here, never by those of nanobind, which
// take Python's lock when they are dropped.
struct SharedArena {
  std::shared_ptr<Arena> arena = std::make_shared<Arena>();
};

// Matrices in the products' layout, and the arena that they lie in.
struct Laid {
  std::shared_ptr<Arena> arena;
  Joined joined;
};

class Matrix {
 public:
  // Floats (rows, columns), evaluated and in row order.
  Matrix(const SharedArena& arena, const mx::array& numbers, const std::optional<mx::array>& bias)
      : laid_(std::make_shared<Laid>(Laid{arena.arena, {}})) {
    Weight w = sized(numbers.shape(0), numbers.shape(1), format_of(numbers));
    int64_t size = (int64_t)w.blocks() * LANES * w.columns;
    void* to = laid_->arena->take(size * bytes_of(w.format));
    if (w.format == Format::Float32)
      interleave(*pool, numbers.data<float>(), (float*)to, w.rows, w.columns);
    else
      interleave(*pool, numbers.data<uint16_t>(), (uint16_t*)to, w.rows, w.columns);
    w.numbers = to;
    add(w, bias);
  }

  // Codes as MLX packs them: (rows, columns · bits / 32) uint32, scales and biases (rows, groups).
  Matrix(const SharedArena& arena, const mx::array& codes, const mx::array& scales, const mx::array& biases,
         const std::optional<mx::array>& bias, int columns, int bits)
      : laid_(std::make_shared<Laid>(Laid{arena.arena, {}})) {
    if (biases.dtype() != scales.dtype()) throw std::invalid_argument("biases: expected the scales' type, found " + words(biases));
    int wide = bits <= 4 ? 4 : 8;
    Weight w = sized(codes.shape(0), columns, wide == 4 ? Format::Codes4 : Format::Codes8);
    w.group = columns / scales.shape(1);
    int64_t rows = (int64_t)w.blocks() * LANES;
    uint32_t* to = (uint32_t*)laid_->arena->take(rows * columns * wide / 8);
    interleave_codes(*pool, codes.data<uint32_t>(), to, w.rows, columns, bits, wide);
    w.numbers = to;
    w.scaling = format_of(scales);
    void* scalings = laid_->arena->take(rows * w.groups() * 2 * bytes_of(w.scaling));
    if (w.scaling == Format::Float32)
      interleave_scalings(w, scales.data<float>(), biases.data<float>(), (float*)scalings);
    else
      interleave_scalings(w, scales.data<uint16_t>(), biases.data<uint16_t>(), (uint16_t*)scalings);
    w.scalings = scalings;
    add(w, bias);
  }

  // The outputs of `other` behind those of this matrix.
  void join(const Matrix& other) {
    const Joined& theirs = other.joined();
    laid_->joined.parts.insert(laid_->joined.parts.end(), theirs.parts.begin(), theirs.parts.end());
    laid_->joined.rows += theirs.rows;
  }

  const Joined& joined() const { return laid_->joined; }

  int64_t nbytes() const {
    int64_t total = 0;
    for (const Weight& w : joined().parts) total += w.numbers_nbytes() + w.scalings_nbytes();
    return total;
  }

  // x (T, columns) times W transposed: (T, rows)
  mx::array product(const mx::array& x, bool int8) const {
    expect("product", x, mx::float32, 2, {joined().columns});
    int rows = x.shape(0);
    auto work = [laid = laid_, int8, rows](const Inputs& in, const Outputs& out) {
      ::product(*pool, laid->joined, int8, in[0].floats(), rows, out[0]);
    };
    return lazy("Product", {{rows, joined().rows}}, {x}, 1, work)[0];
  }

  // Some of the numbers, by which a fingerprint tells matrices apart.
  nb::bytes sample() const {
    std::string found;
    for (const Weight& w : joined().parts) {
      size_t size = w.numbers_nbytes(), step = (size / 4096 + 3) / 4 * 4;
      for (size_t at = 0; at + 4 <= size; at += std::max<size_t>(step, 4)) found.append((const char*)w.numbers + at, 4);
    }
    return nb::bytes(found.data(), found.size());
  }

  // Rows `tokens` (T,) int32 of W as floats, (T, columns). A number below 0 counts from the end; NaN where there is none.
  mx::array rows(const mx::array& tokens) const {
    expect("rows", tokens, mx::int32, 1, {});
    int count = tokens.shape(0);
    auto work = [laid = laid_, count](const Inputs& in, const Outputs& out) {
      const Weight& w = laid->joined.parts[0];
      for (int i = 0; i < count; i++) {
        int row = in[0].as<int32_t>()[i];
        if (row < 0) row += w.rows;
        float* to = out[0] + (int64_t)i * w.columns;
        if (row >= 0 && row < w.rows)
          take_row(w, row, to);
        else
          std::fill_n(to, w.columns, NAN);
      }
    };
    return lazy("Rows", {{count, joined().columns}}, {tokens}, 1, work)[0];
  }

 private:
  static Weight sized(int rows, int columns, Format format) {
    Weight w = {};
    w.format = format;
    w.rows = rows;
    w.columns = w.group = columns;
    return w;
  }

  template <class Number>
  static void interleave_scalings(const Weight& w, const Number* scales, const Number* biases, Number* to) {
    interleave(*pool, scales, to, w.rows, w.groups(), 2);
    interleave(*pool, biases, to + LANES, w.rows, w.groups(), 2);
  }

  void add(Weight w, const std::optional<mx::array>& bias) {
    if (bias) {
      expect("bias", *bias, mx::float32, 1, {w.rows});
      w.bias = (float*)std::memcpy(laid_->arena->take(w.rows * 4), bias->data<float>(), w.rows * 4);
    }
    laid_->joined = {{w}, w.rows, w.columns};
  }

  std::shared_ptr<Laid> laid_;
};

// A vector of floats that a layer keeps.
const float* kept(Arena& arena, const std::optional<mx::array>& x) {
  if (!x) return nullptr;
  expect("norm", *x, mx::float32, 1, {});
  void* to = arena.take(x->nbytes());
  std::memcpy(to, x->data<float>(), x->nbytes());
  return (const float*)to;
}

// A layer, and the arena that its norms and matrices lie in.
struct LaidLayer {
  std::shared_ptr<Arena> arena;
  Layer layer;
};

class DecoderLayer {
 public:
  DecoderLayer(const SharedArena& arena, int heads, int kv_heads, int dim, float eps, bool int8, const Matrix& qkv,
               const Matrix& o, const Matrix& gate_up, const Matrix& down, const mx::array& input_norm,
               const mx::array& post_norm, const std::optional<mx::array>& q_norm,
               const std::optional<mx::array>& k_norm)
      : laid_(std::make_shared<LaidLayer>(LaidLayer{arena.arena, {}})) {
    Layer& layer = laid_->layer;
    layer.shape = {qkv.joined().columns, down.joined().columns, heads, kv_heads, dim, eps};
    layer.qkv = qkv.joined();
    layer.o = o.joined();
    layer.gate_up = gate_up.joined();
    layer.down = down.joined();
    layer.input_norm = kept(*arena.arena, input_norm);
    layer.post_norm = kept(*arena.arena, post_norm);
    layer.q_norm = kept(*arena.arena, q_norm);
    layer.k_norm = kept(*arena.arena, k_norm);
    layer.int8 = int8;
  }

  const std::shared_ptr<LaidLayer>& laid() const { return laid_; }

  // x (T, hidden), cos and sin (T, dim/2) -> q (T, heads, dim), k and v (T, kv_heads, dim)
  nb::tuple project(const mx::array& x, const mx::array& cos, const mx::array& sin) const {
    const Shape& s = laid_->layer.shape;
    expect("x", x, mx::float32, 2, {s.hidden});
    int rows = x.shape(0);
    expect("cos", cos, mx::float32, 2, {rows, s.dim / 2});
    expect("sin", sin, mx::float32, 2, {rows, s.dim / 2});
    std::vector<mx::Shape> shapes = {{rows, s.heads, s.dim}, {rows, s.kv_heads, s.dim}, {rows, s.kv_heads, s.dim}};
    auto work = [laid = laid_, rows](const Inputs& in, const Outputs& out) {
      const float *x = in[0].floats(), *cos = in[1].floats(), *sin = in[2].floats();
      ::project(*pool, laid->layer, x, cos, sin, rows, out[0], out[1], out[2]);
    };
    auto out = lazy("Project", shapes, {x, cos, sin}, 3, work);
    return nb::make_tuple(out[0], out[1], out[2]);
  }

  // x (T, hidden), attended (T, heads, dim) -> (T, hidden)
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

mx::array norm(const mx::array& x, const mx::array& weight, float eps) {
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

// The speed at which all threads together read memory that no cache holds, in GB/s; the best of three.
double read_speed(size_t bytes) {
  Arena arena;
  float* numbers = (float*)arena.take(bytes);
  std::memset((void*)numbers, 0, bytes);
  int64_t vectors = bytes / sizeof(Floats);
  constexpr int PARTS = 64;
  double best = 0;
  for (int run = 0; run < 3; run++) {
    std::vector<float> totals(PARTS);
    auto start = std::chrono::steady_clock::now();
    pool->each(PARTS, [&](int i) {
      Floats total = {};
      for (int64_t v = vectors * i / PARTS; v < vectors * (i + 1) / PARTS; v++) {
        fetch_ahead(numbers + v * LANES);
        total += load(numbers + v * LANES);
      }
      totals[i] = sum(total);
    });
    std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    for (float total : totals) bytes += total != 0;  // so that the sums are needed
    best = std::max(best, bytes / seconds.count() / 1e9);
  }
  return best;
}

// ---- attention ----

// (heads, slots, width) with slots in a row
FloatRows floats_of(const View& x) { return {x.floats(), x.strides[0]}; }

PackedRows packed_of(const View& codes, const View& scales, const View& biases, int dim) {
  int group = dim / scales.shape.back(), bits = 32 * codes.shape.back() / dim;
  return {codes.as<uint32_t>(),
          scales.floats(),
          biases.floats(),
          codes.strides[0],
          scales.strides[0],
          biases.strides[0],
          bits,
          group};
}

// Keys and values are float32, or codes in uint32 with scales and biases in float32.
void expect_slots(const mx::array& x, bool are_codes) {
  bool fits = x.dtype() == (are_codes ? mx::uint32 : mx::float32) && x.ndim() >= 3;
  if (!fits) throw std::invalid_argument("cache: expected keys and values in float32, found " + words(x));
}

// q, then keys and values: an array each, or codes, scales and biases each
std::vector<mx::array> with_slots(const mx::array& q, const nb::list& slots) {
  std::vector<mx::array> inputs = {q};
  expect("q", q, mx::float32, 3, {});
  size_t count = nb::len(slots);
  for (size_t i = 0; i < count; i++) {
    inputs.push_back(nb::cast<const mx::array&>(slots[i]));
    expect_slots(inputs.back(), count == 6 && i % 3 == 0);
  }
  return inputs;
}

Heads heads_of(const std::vector<mx::array>& inputs, float scale, int window) {
  const mx::array& q = inputs[0];
  return {q.shape(1), inputs[1].shape(0), q.shape(2), window, scale};
}

// q (T, heads, dim) at the last T of the slots that keys and values (kv_heads, slots, …) hold. `inputs`: q, keys,
// values
mx::array attention(const Heads& heads, std::vector<mx::array> inputs, const std::optional<mx::array>& mask) {
  mx::Shape shape = inputs[0].shape();
  int count = shape[0], slots = inputs[1].shape(1);
  bool masked = mask.has_value(), packed = inputs.size() > 3;
  if (masked) {
    expect("mask", *mask, mx::bool_, 2, {count, slots});
    inputs.insert(inputs.begin() + 1, *mask);
  }
  return lazy("Attention", {shape}, inputs, 1 + masked, [=](const Inputs& in, const Outputs& out) {
    const bool* mask = masked ? in[1].as<bool>() : nullptr;
    const View* of = in.data() + 1 + masked;
    std::vector<Queries> mine = {{in[0].floats(), out[0], count, slots, {nullptr, 1}, mask}};
    if (packed)
      attend(*pool, heads, packed_of(of[0], of[1], of[2], heads.dim), packed_of(of[3], of[4], of[5], heads.dim), mine);
    else
      attend(*pool, heads, floats_of(of[0]), floats_of(of[1]), mine);
  })[0];
}

// one query of each sequence, q (R, heads, dim), over blocks of a pool (kv_heads, blocks, block, …)
mx::array paged_attention(const Heads& heads, std::vector<mx::array> inputs, const mx::array& tables,
                          const mx::array& ends) {
  mx::Shape shape = inputs[0].shape();
  int rows = shape[0], width = tables.shape(1), block = inputs[1].shape(2), row = heads.heads * heads.dim;
  bool packed = inputs.size() > 3;
  expect("tables", tables, mx::int32, 2, {rows, width});
  expect("ends", ends, mx::int32, 1, {rows});
  inputs.insert(inputs.begin() + 1, {tables, ends});
  return lazy("PagedAttention", {shape}, inputs, 3, [=](const Inputs& in, const Outputs& out) {
    std::vector<Queries> all;
    for (int r = 0; r < rows; r++) {
      const int32_t* table = in[1].as<int32_t>() + (int64_t)r * width;
      all.push_back({in[0].floats() + (int64_t)r * row,
                     out[0] + (int64_t)r * row,
                     1,
                     in[2].as<int32_t>()[r],
                     {table, block},
                     nullptr});
    }
    const View* of = in.data() + 3;
    if (packed)
      attend(*pool, heads, packed_of(of[0], of[1], of[2], heads.dim), packed_of(of[3], of[4], of[5], heads.dim), all);
    else
      attend(*pool, heads, floats_of(of[0]), floats_of(of[1]), all);
  })[0];
}

// ---- a whole step ----

using Layers = std::vector<std::shared_ptr<LaidLayer>>;

// A cache's buffers between the operation that writes them and the arrays that stand for them afterwards.
using Written = std::shared_ptr<std::vector<mx::array>>;

PackedSlots packed_slots(const View* of, int dim) {
  int group = dim / of[1].shape.back(), bits = 32 * of[0].shape.back() / dim;
  return {(uint32_t*)of[0].data,
          (float*)of[1].data,
          (float*)of[2].data,
          of[0].strides[0],
          of[1].strides[0],
          of[2].strides[0],
          bits,
          group};
}

// What a step's layers are: the same in every step.
struct StackShape {
  Layers layers;
  std::vector<int> windows;
  float scale;
};

// `in`: x, cos, sin, slots, ends, tables where `block` is not 0, the mask where there is one
void run_stack(const StackShape& stack, int block, bool masked, const Inputs& in, const std::vector<View>& buffers,
               float* y) {
  int tokens = in[0].shape[0], sequences = in[4].shape[0];
  const bool* mask = masked ? in.back().as<bool>() : nullptr;
  Step step = {tokens, in[3].as<int32_t>(), {}};
  for (int i = 0; i < sequences; i++) {
    const int32_t* table = block ? in[5].as<int32_t>() + (int64_t)i * in[5].shape[1] : nullptr;
    step.sequences.push_back({nullptr, nullptr, tokens / sequences, in[4].as<int32_t>()[i], {table, block}, mask});
  }
  std::vector<const Layer*> layers;
  for (const auto& laid : stack.layers) layers.push_back(&laid->layer);
  size_t count = layers.size(), half = buffers.size() / 2;
  const float *x = in[0].floats(), *cos = in[1].floats(), *sin = in[2].floats();
  if (half == count) {
    std::vector<FloatSlots> keys, values;
    for (size_t i = 0; i < count; i++) {
      keys.push_back({(float*)buffers[i].data, buffers[i].strides[0]});
      values.push_back({(float*)buffers[half + i].data, buffers[half + i].strides[0]});
    }
    run_layers(*pool, layers, stack.windows, stack.scale, keys, values, cos, sin, step, x, y);
  } else {
    std::vector<PackedSlots> keys, values;
    for (size_t i = 0; i < count; i++) {
      keys.push_back(packed_slots(&buffers[3 * i], layers[0]->shape.dim));
      values.push_back(packed_slots(&buffers[half + 3 * i], layers[0]->shape.dim));
    }
    run_layers(*pool, layers, stack.windows, stack.scale, keys, values, cos, sin, step, x, y);
  }
}

// All layers as one operation with one output, the last layer's. It writes the cache's buffers, its last inputs, in
// place where nobody else holds them; `Buffer` then stands for each. (MLX lets no operation with several outputs do
// that.)
class Stack : public mx::Primitive {
 public:
  Stack(mx::Stream stream, std::shared_ptr<StackShape> shape, int block, bool masked, Written written)
      : Primitive(stream), shape_(std::move(shape)), block_(block), masked_(masked), written_(std::move(written)) {}

  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    size_t numbers = 5 + (block_ > 0) + masked_;
    outputs[0].set_data(mx::allocator::malloc(outputs[0].nbytes()));
    Inputs in;
    for (size_t i = 0; i < numbers; i++) in.push_back(view_of(inputs[i]));
    std::vector<View> buffers, shared;
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
    auto task = [shape = shape_, block = block_, masked = masked_, in = std::move(in), buffers = std::move(buffers),
                 shared = std::move(shared), copies = std::move(copies), y = outputs[0].data<float>()]() mutable {
      std::vector<std::vector<char>> rows(in.size());
      for (size_t i = 0; i < in.size(); i++)
        if (!in[i].in_rows(0)) put_in_rows(in[i], rows[i]);
      for (size_t i = 0; i < shared.size(); i++) copy_axes(shared[i], 0, shared[i].data, copies[i]);
      run_stack(*shape, block, masked, in, buffers, y);
    };
    mx::cpu::get_command_encoder(stream()).dispatch(std::move(task));
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("a CPU kernel was called on a GPU");
  }

  const char* name() const override { return "Stack"; }

 private:
  std::shared_ptr<StackShape> shape_;
  int block_;
  bool masked_;
  Written written_;
};

// Buffer `index` after a `Stack`, whose output is the input here: the same memory.
class Buffer : public mx::Primitive {
 public:
  Buffer(mx::Stream stream, Written written, size_t index)
      : Primitive(stream), written_(std::move(written)), index_(index) {}

  void eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>& outputs) override {
    outputs[0].copy_shared_buffer((*written_)[index_]);
    (*written_)[index_] = mx::array(0);  // from here on the output alone holds the memory
  }

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("a CPU kernel was called on a GPU");
  }

  const char* name() const override { return "Buffer"; }

 private:
  Written written_;
  size_t index_;
};

// The layers of a model, to be run as one operation.
class LayerStack {
 public:
  LayerStack(const nb::list& layers, const nb::list& windows, float scale) : shape_(std::make_shared<StackShape>()) {
    shape_->scale = scale;
    for (nb::handle layer : layers) shape_->layers.push_back(nb::cast<const DecoderLayer&>(layer).laid());
    for (nb::handle window : windows) shape_->windows.push_back(nb::cast<int>(window));
  }

  // Returns y and the buffers with the new tokens. `buffers`: of all layers' keys, then of all layers' values.
  nb::tuple run(const mx::array& x, const mx::array& cos, const mx::array& sin, const mx::array& slots,
                const mx::array& ends, const std::optional<mx::array>& tables, const std::optional<mx::array>& mask,
                int block, const nb::list& buffers) const {
    const Shape& s = shape_->layers[0]->layer.shape;
    int tokens = x.shape(0), sequences = ends.shape(0);
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
    size_t count = nb::len(buffers), layers = shape_->layers.size();
    bool fits = sequences > 0 && tokens % sequences == 0 && (count == 2 * layers || count == 6 * layers);
    if (!fits) throw std::invalid_argument("stack: sequences or buffers that do not fit the layers");
    for (size_t i = 0; i < count; i++) {
      inputs.push_back(nb::cast<const mx::array&>(buffers[i]));
      expect_slots(inputs.back(), count == 6 * layers && i % 3 == 0);
    }
    auto stream = mx::default_stream(mx::Device::cpu);
    auto written = std::make_shared<std::vector<mx::array>>();
    auto stack = std::make_shared<Stack>(stream, shape_, tables ? block : 0, mask.has_value(), written);
    mx::array y({tokens, s.hidden}, mx::float32, stack, std::move(inputs));
    nb::list after;
    for (size_t i = 0; i < count; i++) {
      const mx::array& before = nb::cast<const mx::array&>(buffers[i]);
      after.append(mx::array(before.shape(), before.dtype(), std::make_shared<Buffer>(stream, written, i), {y}));
    }
    return nb::make_tuple(y, after);
  }

 private:
  std::shared_ptr<StackShape> shape_;
};

}  // namespace

NB_MODULE(MODULE, m) {
  m.attr("LANES") = LANES;
  m.def("start", &start);
  m.def("read_speed", &read_speed);
  nb::class_<SharedArena>(m, "Arena").def(nb::init<>());
  nb::class_<Matrix>(m, "Matrix")
      .def(nb::init<const SharedArena&, const mx::array&, const std::optional<mx::array>&>(), nb::arg("arena"),
           nb::arg("numbers"), nb::arg("bias").none())
      .def(nb::init<const SharedArena&, const mx::array&, const mx::array&, const mx::array&,
                    const std::optional<mx::array>&, int, int>(),
           nb::arg("arena"), nb::arg("codes"), nb::arg("scales"), nb::arg("biases"), nb::arg("bias").none(),
           nb::arg("columns"), nb::arg("bits"))
      .def_prop_ro("nbytes", &Matrix::nbytes)
      .def("sample", &Matrix::sample)
      .def("join", &Matrix::join)
      .def("product", &Matrix::product)
      .def("rows", &Matrix::rows);
  nb::class_<DecoderLayer>(m, "DecoderLayer")
      .def(nb::init<const SharedArena&, int, int, int, float, bool, const Matrix&, const Matrix&, const Matrix&,
                    const Matrix&, const mx::array&, const mx::array&, const std::optional<mx::array>&,
                    const std::optional<mx::array>&>(),
           nb::arg("arena"), nb::arg("heads"), nb::arg("kv_heads"), nb::arg("dim"), nb::arg("eps"), nb::arg("int8"),
           nb::arg("qkv"), nb::arg("o"), nb::arg("gate_up"), nb::arg("down"), nb::arg("input_norm"),
           nb::arg("post_norm"), nb::arg("q_norm").none(), nb::arg("k_norm").none())
      .def("sample", [](const DecoderLayer&) { return nb::bytes("", 0); })  // its matrices have theirs
      .def("project", &DecoderLayer::project)
      .def("finish", &DecoderLayer::finish);
  nb::class_<LayerStack>(m, "LayerStack")
      .def(nb::init<const nb::list&, const nb::list&, float>())
      .def("run", &LayerStack::run, nb::arg("x"), nb::arg("cos"), nb::arg("sin"), nb::arg("slots"), nb::arg("ends"),
           nb::arg("tables").none(), nb::arg("mask").none(), nb::arg("block_size"), nb::arg("buffers"));
  m.def("norm", &norm);
  m.def(
      "attend",
      [](const mx::array& q, const nb::list& slots, float scale, int window, const std::optional<mx::array>& mask) {
        std::vector<mx::array> inputs = with_slots(q, slots);
        return attention(heads_of(inputs, scale, window), inputs, mask);
      },
      nb::arg("q"), nb::arg("slots"), nb::arg("scale"), nb::arg("window"), nb::arg("mask").none());
  m.def("attend_pages", [](const mx::array& q, const nb::list& slots, const mx::array& tables, const mx::array& ends,
                           float scale, int window) {
    std::vector<mx::array> inputs = with_slots(q, slots);
    return paged_attention(heads_of(inputs, scale, window), inputs, tables, ends);
  });
}
