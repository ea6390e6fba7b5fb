#include "bindings/text.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "text/tokens.h"

namespace py = pybind11;

namespace rnnfast {
namespace {

// Bytes that are read while other Python threads run; the buffer is locked against resizing.
struct Block {
  explicit Block(const py::buffer& buffer) : info(buffer.request()) {
    if (info.itemsize != 1 || info.ndim != 1 || info.strides[0] != 1)
      throw py::type_error("text must be contiguous bytes");
  }
  const uint8_t* data() const { return static_cast<const uint8_t*>(info.ptr); }
  size_t size() const { return static_cast<size_t>(info.size); }
  std::optional<py::bytes> refused(const Scanned& scanned) const {
    if (!scanned.refused) return std::nullopt;
    return py::bytes(reinterpret_cast<const char*>(data()) + scanned.read, scanned.refused);
  }

  py::buffer_info info;
};

template <class Encoder, class Id>
Scanned encode_as(const Encoder& encoder, const Block& block, bool last, py::array& ids,
                  size_t* count) {
  Id* const out = static_cast<Id*>(ids.mutable_data());
  const py::gil_scoped_release released;
  return encoder.encode(block.data(), block.size(), last, out, count);
}

template <class Encoder>
std::tuple<size_t, size_t, std::optional<py::bytes>> encode(const Encoder& encoder,
                                                            const py::buffer& text, bool last,
                                                            py::array ids) {
  const Block block(text);
  if (ids.ndim() != 1 || !(ids.flags() & py::array::c_style) ||
      static_cast<size_t>(ids.size()) < block.size())
    throw py::value_error("ids must be a contiguous array of as many elements as text has bytes");
  size_t count = 0;
  Scanned scanned;
  if (py::isinstance<py::array_t<uint8_t>>(ids))
    scanned = encode_as<Encoder, uint8_t>(encoder, block, last, ids, &count);
  else if (py::isinstance<py::array_t<uint16_t>>(ids))
    scanned = encode_as<Encoder, uint16_t>(encoder, block, last, ids, &count);
  else if (py::isinstance<py::array_t<int32_t>>(ids))
    scanned = encode_as<Encoder, int32_t>(encoder, block, last, ids, &count);
  else
    throw py::type_error("ids must be uint8, uint16 or int32");
  return {scanned.read, count, block.refused(scanned)};
}

template <class Counter>
std::tuple<size_t, std::optional<py::bytes>> count(Counter& counter, const py::buffer& text,
                                                   bool last) {
  const Block block(text);
  Scanned scanned;
  {
    const py::gil_scoped_release released;
    scanned = counter.count(block.data(), block.size(), last);
  }
  return {scanned.read, block.refused(scanned)};
}

template <class Encoder, class Known>
void bind_encoder(py::module_& m, const char* name, const char* known, const char* doc) {
  py::class_<Encoder>(m, name, doc)
      .def(py::init<const std::vector<Known>&, int32_t>(), py::arg(known), py::arg("unknown"))
      .def("encode", encode<Encoder>, py::arg("text"), py::arg("last"), py::arg("ids"),
           "Encodes a block into ids; returns bytes read, ids written, and the bytes refused.");
}

template <class Counter>
void bind_counter(py::module_& m, const char* name, const char* doc) {
  py::class_<Counter>(m, name, doc)
      .def(py::init<>())
      .def("count", count<Counter>, py::arg("text"), py::arg("last"),
           "Adds a block; returns bytes read, and the bytes refused.")
      .def("counts", &Counter::counts, "Pairs of a token and its occurrences.");
}

}  // namespace

void bind_text(py::module_& m) {
  bind_encoder<CharacterEncoder, std::pair<uint32_t, int32_t>>(m, "CharacterEncoder", "ids",
                                                               "Characters of a text to ids.");
  bind_encoder<WordEncoder, std::string>(m, "WordEncoder", "tokens",
                                         "Words of a text to ids; a line end is <eos>.");
  bind_counter<CharacterCounter>(m, "CharacterCounter", "How often each character occurs.");
  bind_counter<WordCounter>(m, "WordCounter", "How often each word occurs; a line end is <eos>.");
}

}  // namespace rnnfast
