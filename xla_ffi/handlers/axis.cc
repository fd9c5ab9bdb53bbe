// The handlers for trees that compare features: their arrays, and the bindings to XLA.
#include <algorithm>

#include "xla/ffi/api/ffi.h"
#include "xla_ffi/handlers/handlers.h"
#include "xla_ffi/handlers/operands.h"

namespace jax_maddness {
namespace {

using ffi::AnyBuffer;

class Axis final : public TreeArrays {
 public:
  Axis(AnyBuffer indices, AnyBuffer thresholds) : indices_{"indices", indices}, thresholds_{"thresholds", thresholds} {}

  int64_t check(const Named& x) const override { return check_features(x, x.last()); }

  // Throws InvalidArgument unless they fit x, whose rows have so many features. Returns the number of codebooks.
  int64_t check_features(const Named& x, int64_t features) const {
    const int64_t ops = x.dim(0), codebooks = check_codebooks(x, features, indices_);
    check_type(indices_, ffi::DataType::S32, "int32");
    check_type(thresholds_, ffi::DataType::F32, "float32");
    check_shape(indices_, {ops, codebooks, kLevels});
    check_shape(thresholds_, {ops, codebooks, kNodes});
    check_indices(indices_, features);
    return codebooks;
  }

  void encode(const Tier& tier, int64_t op, const Rows& x, uint8_t* codes, void* scratch) const noexcept override {
    tier.encode(x, of(op), codes, scratch);
  }
  void encode_by_feature(const Tier& tier, int64_t op, const ByFeature& x, uint8_t* codes) const noexcept {
    tier.encode_by_feature(x, of(op), codes);
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
               AnyBuffer scale, AnyBuffer offset, ffi::RemainingArgs rest, ffi::Dictionary attributes,
               ffi::Result<AnyBuffer> y) {
  return amm_with(Axis(indices, thresholds), pool, x, {values, scale, offset, kByCode}, {rest, attributes}, *y);
}

constexpr int64_t kChunk = 1024;  // rows that are encoded before the tables are read: 4 KiB of a feature

// Checks that y is [ops, ..., outputs], or [ops, outputs, ...] if `by_output`, for an x that is [ops, features, ...].
void check_rows_by_feature(const Named& y, const Named& x, int64_t outputs, bool by_output) {
  const auto dims = y.buffer.dimensions(), like = x.buffer.dimensions();
  const auto* const rows = dims.begin() + (by_output ? 2 : 1);
  if (dims.size() == like.size() && dims.front() == like.front() && (by_output ? dims[1] : dims.back()) == outputs &&
      std::equal(like.begin() + 2, like.end(), rows)) {
    return;
  }
  throw InvalidArgument(describe(y) + " must have the ops and rows of " + describe(x) + ", with " +
                        std::to_string(outputs) + (by_output ? " as the second." : " as the last."));
}

template <bool kByOutput>
ffi::Error amm_by_feature(ffi::ThreadPool pool, AnyBuffer x_, AnyBuffer indices, AnyBuffer thresholds,
                          AnyBuffer values_, AnyBuffer scale_, AnyBuffer offset_, ffi::Result<AnyBuffer> y_) {
  return guarded([&](const Tier& tier) {
    const Axis trees(indices, thresholds);
    const Named x{"x", x_}, y{"y", *y_}, values{"values", values_}, scale{"scale", scale_}, offset{"offset", offset_};
    Problem problem{0, 0, 0, 0, true};
    const FloatType type = check_float_type(x);
    problem.ops = x.dim(0);
    problem.rows = count_rows(x, 2, x.rank());
    problem.codebooks = trees.check_features(x, x.dim(1));
    check_values(values, &problem);
    check_rescaling(scale, offset, problem);
    if (y.buffer.element_type() != x_.element_type()) throw InvalidArgument("y must have the type of x.");
    check_rows_by_feature(y, x, problem.outputs, kByOutput);
    if (problem.outputs == 0) return;
    const size_t of_tier = (tier.scratch_bytes(0, problem.codebooks) + 63) / 64 * 64;
    const auto of_codes = static_cast<size_t>(std::min(kChunk, problem.rows) * problem.codebooks);
    split_and_run(problem, of_tier + of_codes, y, pool, [&](const Task& task, char* scratch, bool streams) noexcept {
      auto* const codes = reinterpret_cast<uint8_t*>(scratch + of_tier);
      const Tables tables = rescaling(tables_of(values, problem, task), scale, offset, problem, task);
      for (int64_t n = 0; n < task.rows.count; n += kChunk) {
        const Task part{task.op, {task.rows.begin + n, std::min(kChunk, task.rows.count - n)}, task.outputs};
        trees.encode_by_feature(tier, task.op, by_feature_of(x, type, problem, part), codes);
        if (kByOutput) {
          tier.amm_of_codes_by_output(codes, part.rows.count, tables, by_output_of(y, type, problem, part), scratch);
        } else {
          tier.amm_of_codes(codes, part.rows.count, tables, output_of(y, type, problem, part, streams), scratch);
        }
      }
    });
  });
}

template <bool kByCode>
ffi::Error amm_factors(ffi::ThreadPool pool, AnyBuffer x, AnyBuffer indices, AnyBuffer thresholds, AnyBuffer values,
                       AnyBuffer center, AnyBuffer feature_scale, AnyBuffer down, AnyBuffer steps, AnyBuffer up,
                       AnyBuffer shift, AnyBuffer scale, AnyBuffer offset, ffi::RemainingArgs rest,
                       ffi::Dictionary attributes, ffi::Result<AnyBuffer> y) {
  return amm_factors_with(Axis(indices, thresholds), pool, x,
                          {values, center, feature_scale, down, steps, up, shift, scale, offset, kByCode},
                          {rest, attributes}, *y);
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
      .Arg<AnyBuffer>();  // offset
}

auto bind_amm() {
  return bind_tables()
      .RemainingArgs()    // residual
      .Attrs()            // activation
      .Ret<AnyBuffer>();  // y
}

XLA_FFI_DEFINE_HANDLER(bound_encode, encode, bind_trees().Ret<AnyBuffer>());  // codes
XLA_FFI_DEFINE_HANDLER(bound_amm, amm<false>, bind_amm());
XLA_FFI_DEFINE_HANDLER(bound_amm_by_code, amm<true>, bind_amm());
XLA_FFI_DEFINE_HANDLER(bound_amm_by_feature, amm_by_feature<false>, bind_tables().Ret<AnyBuffer>());
XLA_FFI_DEFINE_HANDLER(bound_amm_by_feature_and_output, amm_by_feature<true>, bind_tables().Ret<AnyBuffer>());
XLA_FFI_DEFINE_HANDLER(bound_amm_factors, amm_factors<false>, bind_factors(bind_trees()));
XLA_FFI_DEFINE_HANDLER(bound_amm_factors_by_code, amm_factors<true>, bind_factors(bind_trees()));

}  // namespace

XLA_FFI_Error* encode_handler(XLA_FFI_CallFrame* frame) { return bound_encode(frame); }
XLA_FFI_Error* amm_handler(XLA_FFI_CallFrame* frame) { return bound_amm(frame); }
XLA_FFI_Error* amm_by_code_handler(XLA_FFI_CallFrame* frame) { return bound_amm_by_code(frame); }
XLA_FFI_Error* amm_by_feature_handler(XLA_FFI_CallFrame* frame) { return bound_amm_by_feature(frame); }
XLA_FFI_Error* amm_by_feature_and_output_handler(XLA_FFI_CallFrame* frame) {
  return bound_amm_by_feature_and_output(frame);
}
XLA_FFI_Error* amm_factors_handler(XLA_FFI_CallFrame* frame) { return bound_amm_factors(frame); }
XLA_FFI_Error* amm_factors_by_code_handler(XLA_FFI_CallFrame* frame) { return bound_amm_factors_by_code(frame); }

}  // namespace jax_maddness
