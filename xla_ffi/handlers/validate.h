// The checks of the handlers before a kernel sees a pointer. Python has validated the arguments already, with better
// messages for users; memory safety rests on these checks alone.
#ifndef JAX_MADDNESS_HANDLERS_VALIDATE_H_
#define JAX_MADDNESS_HANDLERS_VALIDATE_H_

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "xla/ffi/api/ffi.h"
#include "xla_ffi/kernels/layout.h"

namespace jax_maddness {

namespace ffi = xla::ffi;

// Thrown in the calling thread only; the handler turns it into an ffi::Error.
struct InvalidArgument : std::invalid_argument {
  using std::invalid_argument::invalid_argument;
};

struct Named {
  const char* name;
  ffi::AnyBuffer buffer;

  // Throws InvalidArgument where the array has no such dimension: the handlers' memory safety does not depend on the
  // order of their checks.
  int64_t dim(size_t i) const;
  size_t rank() const { return buffer.dimensions().size(); }
  int64_t last() const { return dim(rank() - 1); }  // of rank 0, that is a dimension far beyond
};

// "x [2, 3, 8]"
std::string describe(const Named& array);

FloatType check_float_type(const Named& array);
void check_type(const Named& array, ffi::DataType type, const char* type_name);
void check_shape(const Named& array, std::initializer_list<int64_t> shape);

// Checks that `array` has the dimensions of `like`, except that its last one is `last`.
void check_rows(const Named& array, const Named& like, int64_t last);

// The product of all dimensions between the first and the last; throws when the rank is below two or it overflows.
int64_t count_rows(const Named& array);

// The product of the dimensions from `begin` to before `end`; throws when there are fewer, or it overflows.
int64_t count_rows(const Named& array, size_t begin, size_t end);

void check_indices(const Named& indices, int64_t features);

// Checks that no entry of a uint8 array is greater than `most`.
void check_at_most(const Named& array, uint8_t most);

}  // namespace jax_maddness

#endif  // JAX_MADDNESS_HANDLERS_VALIDATE_H_
