// The handlers for trees that compare features: their arrays, and the bindings to XLA.
#include "xla/ffi/api/ffi.h"
#include "xla_ffi/handlers/handlers.h"
#include "xla_ffi/handlers/trees.h"

namespace jax_maddness {
namespace {

using ffi::AnyBuffer;

class Axis final : public TreeArrays {
 public:
  Axis(AnyBuffer indices, AnyBuffer thresholds) : indices_{"indices", indices}, thresholds_{"thresholds", thresholds} {}

  int64_t check(const Named& x) const override {
    const int64_t ops = x.dim(0), codebooks = check_codebooks(x, indices_);
    check_type(indices_, ffi::DataType::S32, "int32");
    check_type(thresholds_, ffi::DataType::F32, "float32");
    check_shape(indices_, {ops, codebooks, kLevels});
    check_shape(thresholds_, {ops, codebooks, kNodes});
    check_indices(indices_, x.last());
    return codebooks;
  }

  void encode(const Tier& tier, int64_t op, const Rows& x, uint8_t* codes, void* scratch) const noexcept override {
    tier.encode(x, of(op), codes, scratch);
  }
  void amm(const Tier& tier, int64_t op, const Rows& x, const Tables& tables, const Output& y,
           void* scratch) const noexcept override {
    tier.amm(x, of(op), tables, y, scratch);
  }
  void amm_by_code(const Tier& tier, int64_t op, const Rows& x, const Tables& tables, const Output& y,
                   void* scratch) const noexcept override {
    tier.amm_by_code(x, of(op), tables, y, scratch);
  }
  void amm_factors(const Tier& tier, int64_t op, const Rows& x, const Tables& tables, const Factors& factors,
                   const Output& y, void* scratch) const noexcept override {
    tier.amm_factors(x, of(op), tables, factors, y, scratch);
  }
  void amm_factors_by_code(const Tier& tier, int64_t op, const Rows& x, const Tables& tables, const Factors& factors,
                           const Output& y, void* scratch) const noexcept override {
    tier.amm_factors_by_code(x, of(op), tables, factors, y, scratch);
  }

 private:
  Trees of(int64_t op) const noexcept {
    const int64_t codebooks = indices_.dim(1), first = op * codebooks;
    return {data<const int32_t>(indices_) + first * kLevels, data<const float>(thresholds_) + first * kNodes,
            codebooks};
  }

  const Named indices_, thresholds_;
};

ffi::Error encode(ffi::ThreadPool pool, AnyBuffer x, AnyBuffer indices, AnyBuffer thresholds,
                  ffi::Result<AnyBuffer> codes) {
  return encode_with(Axis(indices, thresholds), pool, x, *codes);
}

template <bool kByCode>
ffi::Error amm(ffi::ThreadPool pool, AnyBuffer x, AnyBuffer indices, AnyBuffer thresholds, AnyBuffer values,
               AnyBuffer scale, AnyBuffer offset, ffi::Result<AnyBuffer> y) {
  return amm_with(Axis(indices, thresholds), pool, x, {values, scale, offset, kByCode}, *y);
}

template <bool kByCode>
ffi::Error amm_factors(ffi::ThreadPool pool, AnyBuffer x, AnyBuffer indices, AnyBuffer thresholds, AnyBuffer values,
                       AnyBuffer center, AnyBuffer feature_scale, AnyBuffer down, AnyBuffer steps, AnyBuffer up,
                       AnyBuffer shift, AnyBuffer scale, AnyBuffer offset, ffi::Result<AnyBuffer> y) {
  return amm_factors_with(Axis(indices, thresholds), pool, x,
                          {values, center, feature_scale, down, steps, up, shift, scale, offset, kByCode}, *y);
}

auto bind_trees() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<AnyBuffer>()   // x
      .Arg<AnyBuffer>()   // indices
      .Arg<AnyBuffer>();  // thresholds
}

auto bind_tables() {
  return bind_trees()
      .Arg<AnyBuffer>()   // values, or by_code
      .Arg<AnyBuffer>()   // scale
      .Arg<AnyBuffer>()   // offset
      .Ret<AnyBuffer>();  // y
}

XLA_FFI_DEFINE_HANDLER(bound_encode, encode, bind_trees().Ret<AnyBuffer>());  // codes
XLA_FFI_DEFINE_HANDLER(bound_amm, amm<false>, bind_tables());
XLA_FFI_DEFINE_HANDLER(bound_amm_by_code, amm<true>, bind_tables());
XLA_FFI_DEFINE_HANDLER(bound_amm_factors, amm_factors<false>, bind_factors(bind_trees()));
XLA_FFI_DEFINE_HANDLER(bound_amm_factors_by_code, amm_factors<true>, bind_factors(bind_trees()));

}  // namespace

XLA_FFI_Error* encode_handler(XLA_FFI_CallFrame* frame) { return bound_encode(frame); }
XLA_FFI_Error* amm_handler(XLA_FFI_CallFrame* frame) { return bound_amm(frame); }
XLA_FFI_Error* amm_by_code_handler(XLA_FFI_CallFrame* frame) { return bound_amm_by_code(frame); }
XLA_FFI_Error* amm_factors_handler(XLA_FFI_CallFrame* frame) { return bound_amm_factors(frame); }
XLA_FFI_Error* amm_factors_by_code_handler(XLA_FFI_CallFrame* frame) { return bound_amm_factors_by_code(frame); }

}  // namespace jax_maddness
