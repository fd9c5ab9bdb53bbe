// The difference between the handlers for the two kinds of split trees; handlers.cc has all that they share.
#ifndef JAX_MADDNESS_HANDLERS_TREES_H_
#define JAX_MADDNESS_HANDLERS_TREES_H_

#include <algorithm>
#include <utility>

#include "xla_ffi/handlers/common.h"
#include "xla_ffi/handlers/validate.h"
#include "xla_ffi/kernels/kernels.h"

namespace jax_maddness {

// The arrays of a call that hold the trees of its ops.
class TreeArrays {
 public:
  // Throws InvalidArgument unless they fit x, which is [ops, ..., features]. Returns the number of codebooks.
  virtual int64_t check(const Named& x) const = 0;

  // The kernels with the trees of one op.
  virtual void encode(const Tier& tier, int64_t op, const Rows& x, uint8_t* codes, void* scratch) const noexcept = 0;
  virtual void amm(const Tier& tier, int64_t op, const Rows& x, const Tables& tables, const Output& y,
                   void* scratch) const noexcept = 0;
  virtual void amm_by_code(const Tier& tier, int64_t op, const Rows& x, const Tables& tables, const Output& y,
                           void* scratch) const noexcept = 0;
  virtual void amm_factors(const Tier& tier, int64_t op, const Rows& x, const Tables& tables, const Factors& factors,
                           const Output& y, void* scratch) const noexcept = 0;
  virtual void amm_factors_by_code(const Tier& tier, int64_t op, const Rows& x, const Tables& tables,
                                   const Factors& factors, const Output& y, void* scratch) const noexcept = 0;

 protected:
  ~TreeArrays() = default;
};

// The checks of both kinds: x has features, and `per_codebook` is [ops, codebooks, ...]. Returns the
// number of codebooks.
inline int64_t check_codebooks(const Named& x, int64_t features, const Named& per_codebook) {
  if (per_codebook.rank() != 3) throw InvalidArgument(describe(per_codebook) + " must have three dimensions.");
  if (per_codebook.dim(1) < 1) throw InvalidArgument(describe(per_codebook) + " must have at least one codebook.");
  if (features < 1) throw InvalidArgument(describe(x) + " must have at least one feature.");
  if (std::max(features, per_codebook.dim(1)) > kMostOfARow) {
    throw InvalidArgument(describe(x) + " or " + describe(per_codebook) + " is too large.");
  }
  return per_codebook.dim(1);
}

// The last two parts of every call that returns y; see epilogue.h.
struct EpilogueOperands {
  ffi::RemainingArgs rest;
  ffi::Dictionary attributes;
};

// Appends what follows the trees in a call with integer factors to a binding.
template <typename Binding>
auto bind_factors(Binding binding) {
  return std::move(binding)
      .template Arg<ffi::AnyBuffer>()   // values, or by_code
      .template Arg<ffi::AnyBuffer>()   // center
      .template Arg<ffi::AnyBuffer>()   // feature scale
      .template Arg<ffi::AnyBuffer>()   // down
      .template Arg<ffi::AnyBuffer>()   // steps
      .template Arg<ffi::AnyBuffer>()   // up
      .template Arg<ffi::AnyBuffer>()   // shift
      .template Arg<ffi::AnyBuffer>()   // scale
      .template Arg<ffi::AnyBuffer>()   // offset
      .RemainingArgs()                  // residual
      .Attrs()                          // activation
      .template Ret<ffi::AnyBuffer>();  // y
}

struct TableArrays {
  ffi::AnyBuffer values, scale, offset;
  bool by_code;  // the order of `values`
};

// The arrays of integer factors beside tables.
struct FactorArrays {
  ffi::AnyBuffer values, center, feature_scale, down, steps, up, shift, scale, offset;
  bool by_code;  // the order of `values`
};

// The handlers for any kind of trees.
ffi::Error encode_with(const TreeArrays& trees, ffi::ThreadPool& pool, ffi::AnyBuffer x, ffi::AnyBuffer codes);
ffi::Error amm_with(const TreeArrays& trees, ffi::ThreadPool& pool, ffi::AnyBuffer x, const TableArrays& tables,
                    const EpilogueOperands& epilogue, ffi::AnyBuffer y);
ffi::Error amm_factors_with(const TreeArrays& trees, ffi::ThreadPool& pool, ffi::AnyBuffer x,
                            const FactorArrays& factors, const EpilogueOperands& epilogue, ffi::AnyBuffer y);

}  // namespace jax_maddness

#endif  // JAX_MADDNESS_HANDLERS_TREES_H_
