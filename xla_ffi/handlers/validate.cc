#include "xla_ffi/handlers/validate.h"

#include <algorithm>

namespace jax_maddness {

std::string describe(const Named& array) {
  std::string text = std::string(array.name) + " [";
  for (size_t i = 0; i < array.rank(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(array.dim(i));
  return text + "]";
}

int64_t Named::dim(size_t i) const {
  if (i >= rank()) throw InvalidArgument(describe(*this) + " has too few dimensions.");
  return buffer.dimensions()[i];
}

FloatType check_float_type(const Named& array) {
  switch (array.buffer.element_type()) {
    case ffi::DataType::F32:
      return FloatType::kF32;
    case ffi::DataType::BF16:
      return FloatType::kBF16;
    case ffi::DataType::F16:
      return FloatType::kF16;
    default:
      throw InvalidArgument(describe(array) + " must be float32, bfloat16 or float16.");
  }
}

void check_type(const Named& array, ffi::DataType type, const char* type_name) {
  if (array.buffer.element_type() != type) throw InvalidArgument(describe(array) + " must be " + type_name + ".");
}

void check_shape(const Named& array, std::initializer_list<int64_t> shape) {
  const auto dims = array.buffer.dimensions();
  if (dims.size() == shape.size() && std::equal(shape.begin(), shape.end(), dims.begin())) return;
  std::string expected;
  for (const int64_t dim : shape) expected += (expected.empty() ? "" : ", ") + std::to_string(dim);
  throw InvalidArgument(describe(array) + " must have the shape [" + expected + "].");
}

void check_rows(const Named& array, const Named& like, int64_t last) {
  const auto dims = array.buffer.dimensions(), like_dims = like.buffer.dimensions();
  if (dims.size() > 0 && dims.size() == like_dims.size() &&
      std::equal(dims.begin(), dims.end() - 1, like_dims.begin()) && array.last() == last) {
    return;
  }
  throw InvalidArgument(describe(array) + " must have the dimensions of " + describe(like) + ", with " +
                        std::to_string(last) + " as the last.");
}

int64_t count_rows(const Named& array) {
  if (array.rank() < 2) throw InvalidArgument(describe(array) + " must have at least two dimensions.");
  return count_rows(array, 1, array.rank() - 1);
}

int64_t count_rows(const Named& array, size_t begin, size_t end) {
  if (end < begin || array.rank() < end) throw InvalidArgument(describe(array) + " has too few dimensions.");
  const auto* const dims = array.buffer.dimensions().begin();
  int64_t rows = 1;
  if (std::find(dims + begin, dims + end, 0) != dims + end) return 0;  // a product of the others may overflow
  for (size_t i = begin; i < end; ++i) {
    if (__builtin_mul_overflow(rows, dims[i], &rows)) throw InvalidArgument(describe(array) + " is too large.");
  }
  return rows;
}

void check_indices(const Named& indices, int64_t features) {
  const auto* values = static_cast<const int32_t*>(indices.buffer.untyped_data());
  const auto count = static_cast<int64_t>(indices.buffer.element_count());
  // Negative ones are huge as unsigned. A maximum vectorises; the search is for the message only.
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, static_cast<uint32_t>(values[i]));
  if (count == 0 || static_cast<int64_t>(largest) < features) return;
  const int32_t* wrong = std::find_if(values, values + count, [&](int32_t v) { return v < 0 || v >= features; });
  throw InvalidArgument(describe(indices) + " holds " + std::to_string(*wrong) + " at position " +
                        std::to_string(wrong - values) + ": not in [0, " + std::to_string(features) + ").");
}

void check_at_most(const Named& array, uint8_t most) {
  const auto* values = static_cast<const uint8_t*>(array.buffer.untyped_data());
  uint8_t largest = 0;
  for (size_t i = 0; i < array.buffer.element_count(); ++i) largest = std::max(largest, values[i]);
  if (largest <= most) return;
  throw InvalidArgument(describe(array) + " holds " + std::to_string(largest) + ": more than " + std::to_string(most) +
                        ".");
}

}  // namespace jax_maddness
