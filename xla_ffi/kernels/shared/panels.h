// For tier files only: everything here has internal linkage. The operands of the products of integer factors, which
// shared/factors.inc cuts to size for a tier's own factors.inc.
#ifndef JAX_MADDNESS_KERNELS_SHARED_PANELS_H_
#define JAX_MADDNESS_KERNELS_SHARED_PANELS_H_

#include <cstdint>

namespace jax_maddness {
namespace {

// A part of some rows of factors: some groups of four.
template <typename Factor>
struct FactorsOf {
  const Factor* data;
  int64_t stride;        // distance between rows
  const int32_t* start;  // of the rows' sums: null unless the part is the first one
  int64_t rows;
  int64_t groups;
};

// Sums of rows for the outputs of a panel. Whole registers of them may be read and written.
struct PanelSums {
  int32_t* data;
  int64_t stride;
  int64_t outputs;
  bool added;  // the product is added to them; if not, they are set

  PanelSums from(int64_t m, int64_t count) const { return {data + m, stride, count, added}; }
};

// Rows of f32 outputs, to which a tier may rescale the sums of a panel straight from registers.
struct DirectOutputs {
  char* data;      // null: sums are stored
  int64_t stride;  // bytes
  const float* scale;
  const float* offset;
  bool streams;
};

// What a tier holds during a call that multiplies `rows` rows, where that is nothing.
struct NoProductState {
  explicit NoProductState(int64_t /*rows*/) {}
};

}  // namespace
}  // namespace jax_maddness

#endif  // JAX_MADDNESS_KERNELS_SHARED_PANELS_H_
