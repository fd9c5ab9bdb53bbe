// The handlers for oblique trees: their arrays, and the bindings to XLA.
#include "xla/ffi/api/ffi.h"
#include "xla_ffi/handlers/handlers.h"
#include "xla_ffi/handlers/trees.h"

namespace jax_maddness {
namespace {

using ffi::AnyBuffer;

class Oblique final : public TreeArrays {
 public:
  Oblique(AnyBuffer features, AnyBuffer projections, AnyBuffer thresholds, AnyBuffer center, AnyBuffer scale)
      : features_{"features", features},
        projections_{"projections", projections},
        thresholds_{"thresholds", thresholds},
        center_{"center", center},
        scale_{"feature scale", scale} {}

  int64_t check(const Named& x) const override {
    const int64_t ops = x.dim(0), codebooks = check_codebooks(x, x.last(), features_), width = features_.last();
    if (width < 1 || width > kMaxWidth) {
      throw InvalidArgument(describe(features_) + " must have a width of 1 to " + std::to_string(kMaxWidth) + ".");
    }
    check_type(features_, ffi::DataType::S32, "int32");
    check_type(projections_, ffi::DataType::S8, "int8");
    check_type(thresholds_, ffi::DataType::S32, "int32");
    check_shape(features_, {ops, codebooks, width});
    check_shape(projections_, {ops, codebooks, kLevels, width});
    check_shape(thresholds_, {ops, codebooks, kNodes});
    for (const Named& per_feature : {center_, scale_}) {
      check_type(per_feature, ffi::DataType::F32, "float32");
      check_shape(per_feature, {ops, x.last()});
    }
    check_indices(features_, x.last());
    return codebooks;
  }

  void encode(const Tier& tier, int64_t op, const Rows& x, uint8_t* codes, void* scratch) const noexcept override {
    tier.encode_oblique(x, of(op), codes, scratch);
  }
  void amm(const Tier& tier, int64_t op, const Rows& x, const Tables& tables, const Output& y,
           void* scratch) const noexcept override {
    tier.amm_oblique(x, of(op), tables, y, scratch);
  }
  void amm_by_code(const Tier& tier, int64_t op, const Rows& x, const Tables& tables, const Output& y,
                   void* scratch) const noexcept override {
    tier.amm_oblique_by_code(x, of(op), tables, y, scratch);
  }
  void amm_factors(const Tier& tier, int64_t op, const Rows& x, const Tables& tables, const Factors& factors,
                   const Output& y, void* scratch) const noexcept override {
    tier.amm_oblique_factors(x, of(op), tables, factors, y, scratch);
  }
  void amm_factors_by_code(const Tier& tier, int64_t op, const Rows& x, const Tables& tables, const Factors& factors,
                           const Output& y, void* scratch) const noexcept override {
    tier.amm_oblique_factors_by_code(x, of(op), tables, factors, y, scratch);
  }

 private:
  ObliqueTrees of(int64_t op) const noexcept {
    const int64_t codebooks = features_.dim(1), width = features_.last(), first = op * codebooks;
    return {data<const int32_t>(features_) + first * width,
            data<const int8_t>(projections_) + first * kLevels * width,
            data<const int32_t>(thresholds_) + first * kNodes,
            data<const float>(center_) + op * center_.last(),
            data<const float>(scale_) + op * scale_.last(),
            codebooks,
            width};
  }

  const Named features_, projections_, thresholds_, center_, scale_;
};

ffi::Error encode(ffi::ThreadPool pool, AnyBuffer x, AnyBuffer features, AnyBuffer projections, AnyBuffer thresholds,
                  AnyBuffer center, AnyBuffer feature_scale, ffi::Result<AnyBuffer> codes) {
  return encode_with(Oblique(features, projections, thresholds, center, feature_scale), pool, x, *codes);
}

template <bool kByCode>
ffi::Error amm(ffi::ThreadPool pool, AnyBuffer x, AnyBuffer features, AnyBuffer projections, AnyBuffer thresholds,
               AnyBuffer center, AnyBuffer feature_scale, AnyBuffer values, AnyBuffer scale, AnyBuffer offset,
               ffi::RemainingArgs rest, ffi::Dictionary attributes, ffi::Result<AnyBuffer> y) {
  return amm_with(Oblique(features, projections, thresholds, center, feature_scale), pool, x,
                  {values, scale, offset, kByCode}, {rest, attributes}, *y);
}

template <bool kByCode>
ffi::Error amm_factors(ffi::ThreadPool pool, AnyBuffer x, AnyBuffer features, AnyBuffer projections,
                       AnyBuffer thresholds, AnyBuffer tree_center, AnyBuffer tree_scale, AnyBuffer values,
                       AnyBuffer center, AnyBuffer feature_scale, AnyBuffer down, AnyBuffer steps, AnyBuffer up,
                       AnyBuffer shift, AnyBuffer scale, AnyBuffer offset, ffi::RemainingArgs rest,
                       ffi::Dictionary attributes, ffi::Result<AnyBuffer> y) {
  return amm_factors_with(Oblique(features, projections, thresholds, tree_center, tree_scale), pool, x,
                          {values, center, feature_scale, down, steps, up, shift, scale, offset, kByCode},
                          {rest, attributes}, *y);
}

auto bind_trees() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<AnyBuffer>()   // x
      .Arg<AnyBuffer>()   // features
      .Arg<AnyBuffer>()   // projections
      .Arg<AnyBuffer>()   // thresholds
      .Arg<AnyBuffer>()   // center
      .Arg<AnyBuffer>();  // scale, of features
}

auto bind_tables() {
  return bind_trees()
      .Arg<AnyBuffer>()   // values, or by_code
      .Arg<AnyBuffer>()   // scale
      .Arg<AnyBuffer>()   // offset
      .RemainingArgs()    // residual
      .Attrs()            // activation
      .Ret<AnyBuffer>();  // y
}

XLA_FFI_DEFINE_HANDLER(bound_encode, encode, bind_trees().Ret<AnyBuffer>());  // codes
XLA_FFI_DEFINE_HANDLER(bound_amm, amm<false>, bind_tables());
XLA_FFI_DEFINE_HANDLER(bound_amm_by_code, amm<true>, bind_tables());
XLA_FFI_DEFINE_HANDLER(bound_amm_factors, amm_factors<false>, bind_factors(bind_trees()));
XLA_FFI_DEFINE_HANDLER(bound_amm_factors_by_code, amm_factors<true>, bind_factors(bind_trees()));

}  // namespace

XLA_FFI_Error* encode_oblique_handler(XLA_FFI_CallFrame* frame) { return bound_encode(frame); }
XLA_FFI_Error* amm_oblique_handler(XLA_FFI_CallFrame* frame) { return bound_amm(frame); }
XLA_FFI_Error* amm_oblique_by_code_handler(XLA_FFI_CallFrame* frame) { return bound_amm_by_code(frame); }
XLA_FFI_Error* amm_oblique_factors_handler(XLA_FFI_CallFrame* frame) { return bound_amm_factors(frame); }
XLA_FFI_Error* amm_oblique_factors_by_code_handler(XLA_FFI_CallFrame* frame) {
  return bound_amm_factors_by_code(frame);
}

}  // namespace jax_maddness
