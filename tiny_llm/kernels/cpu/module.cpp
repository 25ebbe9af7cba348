// The CPU kernels under their Python names. Arrays are float32 where nothing else is said.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include "attend.h"
#include "decoder_layer.h"
#include "layer_stack.h"
#include "matrix.h"
#include "read_speed.h"

namespace nb = nanobind;

namespace {

nb::tuple project_as_tuple(const DecoderLayer& layer, const mx::array& x, const mx::array& cos, const mx::array& sin) {
  std::vector<mx::array> qkv = layer.project(x, cos, sin);
  return nb::make_tuple(qkv[0], qkv[1], qkv[2]);
}

}  // namespace

NB_MODULE(MODULE, m) {
  m.attr("LANES") = LANES;
  m.def("start", &start);
  m.def("read_speed", &read_speed);
  m.def("held_bytes", &Arena::held_bytes);
  nb::class_<SharedArena>(m, "Arena").def(nb::init<>());
  nb::class_<Matrix>(m, "Matrix")
      .def(nb::init<const SharedArena&, const mx::array&, const std::optional<mx::array>&>(), nb::arg("arena"),
           nb::arg("numbers"), nb::arg("bias").none())
      .def(nb::init<const SharedArena&, const mx::array&, const mx::array&, const mx::array&,
                    const std::optional<mx::array>&, int, int>(),
           nb::arg("arena"), nb::arg("codes"), nb::arg("scales"), nb::arg("biases"), nb::arg("bias").none(),
           nb::arg("columns"), nb::arg("bits"))
      .def_prop_ro("nbytes", &Matrix::nbytes)
      .def("join", &Matrix::join)
      .def("product", &Matrix::product)
      .def("rows", &Matrix::rows);
  nb::class_<ExpertMixture>(m, "ExpertMixture")
      .def(nb::init<const Matrix&, const std::vector<const Matrix*>&, const std::vector<const Matrix*>&, int, bool>(),
           nb::arg("router"), nb::arg("gate_up"), nb::arg("down"), nb::arg("chosen"), nb::arg("normalize"))
      .def("share", &ExpertMixture::share, nb::arg("gate_up"), nb::arg("down"), nb::arg("gate"));
  nb::class_<DecoderLayer>(m, "DecoderLayer")
      .def(nb::init<const SharedArena&, int, int, int, float, bool, const Matrix&, const Matrix&, const Matrix*,
                    const Matrix*, const ExpertMixture*, const mx::array&, const mx::array&,
                    const std::optional<mx::array>&, const std::optional<mx::array>&>(),
           nb::arg("arena"), nb::arg("heads"), nb::arg("kv_heads"), nb::arg("dim"), nb::arg("eps"), nb::arg("int8"),
           nb::arg("qkv"), nb::arg("o"), nb::arg("gate_up").none(), nb::arg("down").none(), nb::arg("mixture").none(),
           nb::arg("input_norm"),
           nb::arg("post_norm"), nb::arg("q_norm").none(), nb::arg("k_norm").none())
      .def("project", &project_as_tuple)
      .def("finish", &DecoderLayer::finish);
  nb::class_<LayerStack>(m, "LayerStack")
      .def(nb::init<const std::vector<const DecoderLayer*>&, std::vector<int>, float>())
      .def("run", &LayerStack::run, nb::arg("x"), nb::arg("cos"), nb::arg("sin"), nb::arg("slots"), nb::arg("ends"),
           nb::arg("tables").none(), nb::arg("mask").none(), nb::arg("block_size"), nb::arg("buffers"));
  m.def("norm", &norm);
  m.def("attend", &attention, nb::arg("q"), nb::arg("slots"), nb::arg("scale"), nb::arg("window"),
        nb::arg("mask").none());
  m.def("attend_pages", &paged_attention);
}
