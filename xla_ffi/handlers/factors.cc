// The handlers for integer factors, alone and beside codes: validate, split over the pool, call. No arithmetic.
#include "xla/ffi/api/ffi.h"
#include "xla_ffi/handlers/epilogue.h"
#include "xla_ffi/handlers/handlers.h"

namespace jax_maddness {
namespace {

using ffi::AnyBuffer;

constexpr uint8_t kMaxShift = 15;

int64_t groups_of(int64_t inner) { return divide_up(inner, 4); }

// From x to u. The last two arrays are missing in the int8 product.
struct DownArrays {
  Named center, feature_scale;
  const Named* down = nullptr;
  const Named* steps = nullptr;

  // Throws InvalidArgument unless they fit x, which is [ops, ..., features]. Returns the rank.
  int64_t check(const Named& x) const {
    const int64_t ops = x.dim(0), features = x.last();
    if (features < 1 || features > kMaxWidth) {
      throw InvalidArgument(describe(x) + " must have 1 to " + std::to_string(kMaxWidth) + " features.");
    }
    for (const Named& per_feature : {center, feature_scale}) {
      check_type(per_feature, ffi::DataType::F32, "float32");
      check_shape(per_feature, {ops, features});
    }
    if (down == nullptr) return features;
    check_type(*down, ffi::DataType::S8, "int8");
    check_type(*steps, ffi::DataType::F32, "float32");
    const int64_t rank = steps->last();
    check_rank(*steps, rank);
    check_shape(*steps, {ops, rank});
    check_shape(*down, {ops, groups_of(features), rank, 4});
    return rank;
  }

  static void check_rank(const Named& array, int64_t rank) {
    if (rank >= 4 && rank <= kMaxWidth && rank % 4 == 0) return;
    throw InvalidArgument(describe(array) + " must have a rank that is a multiple of 4, from 4 to " +
                          std::to_string(kMaxWidth) + ".");
  }

  Down of(int64_t op, bool by_row) const noexcept {
    const int64_t features = center.last();
    const float* const centers = data<const float>(center) + op * features;
    const float* const scales = data<const float>(feature_scale) + op * features;
    if (down == nullptr) return {centers, scales, nullptr, nullptr, 0, by_row};
    const int64_t rank = steps->last();
    return {centers, scales, data<const int8_t>(*down) + op * groups_of(features) * rank * 4,
            data<const float>(*steps) + op * rank, rank};
  }
};

// From u to y. `shift` is missing where there are no tables.
struct UpArrays {
  Named up, scale, offset;
  const Named* shift = nullptr;

  // Throws InvalidArgument unless they fit the problem, whose number of outputs they determine if it has no tables.
  void check(int64_t rank, Problem* problem) const {
    check_type(up, ffi::DataType::S8, "int8");
    if (up.rank() != 4) throw InvalidArgument(describe(up) + " must have four dimensions.");
    if (shift == nullptr) problem->outputs = up.dim(2);
    check_shape(up, {problem->ops, groups_of(rank), problem->outputs, 4});
    check_rescaling(scale, offset, *problem);
    if (shift == nullptr) return;
    check_type(*shift, ffi::DataType::U8, "uint8");
    check_shape(*shift, {problem->ops, problem->outputs});
    check_at_most(*shift, kMaxShift);
  }

  Up of(int64_t rank, const Problem& problem, const Task& task) const noexcept {
    const int64_t first = task.op * groups_of(rank) * problem.outputs + task.outputs.begin;
    return {data<const int8_t>(up) + first * 4,
            shift == nullptr ? nullptr : per_output<uint8_t>(*shift, problem, task),
            per_output<float>(scale, problem, task),
            per_output<float>(offset, problem, task),
            rank,
            task.outputs.count,
            problem.outputs};
  }
};

// Sets the work of factors of which `features` are projected.
void set_products(int64_t features, int64_t rank, Problem* problem) {
  problem->repeated = static_cast<double>(rank) * static_cast<double>(features);
  problem->products = problem->repeated + static_cast<double>(rank) * static_cast<double>(problem->outputs);
  problem->block_rows = kBlockFactorRows;
}

void check_like(const Named& y, const Named& x, const Problem& problem) {
  if (y.buffer.element_type() != x.buffer.element_type()) throw InvalidArgument("y must have the type of x.");
  check_rows(y, x, problem.outputs);
}

ffi::Error project(ffi::ThreadPool pool, AnyBuffer x_, AnyBuffer center, AnyBuffer feature_scale, AnyBuffer down_,
                   AnyBuffer steps_, ffi::Result<AnyBuffer> u_) {
  return guarded([&](const Tier& tier) {
    const Named x{"x", x_}, down{"down", down_}, steps{"steps", steps_}, u{"u", *u_};
    const DownArrays arrays{{"center", center}, {"feature scale", feature_scale}, &down, &steps};
    const FloatType type = check_float_type(x);
    Problem problem{x.dim(0), count_rows(x), 0, 0, false};
    const int64_t rank = arrays.check(x);
    check_type(u, ffi::DataType::S8, "int8");
    check_rows(u, x, rank);
    set_products(x.last(), rank, &problem);
    const size_t bytes = tier.factor_scratch_bytes(x.last(), rank, 0);
    split_and_run(problem, bytes, u, pool, [&](const Task& task, void* scratch, bool) noexcept {
      int8_t* const to = data<int8_t>(u) + (task.op * problem.rows + task.rows.begin) * rank;
      tier.project(rows_of(x, type, problem, task), arrays.of(task.op, false), to, scratch);
    });
  });
}

// Factors without tables, of features.
void run_factors(const Tier& tier, ffi::ThreadPool& pool, const Named& x, const DownArrays& down, const UpArrays& up,
                 bool by_row, const EpilogueOperands& epilogue, const Named& y) {
  const FloatType type = check_float_type(x);
  Problem problem{x.dim(0), count_rows(x), 0, 0, false};
  const int64_t rank = down.check(x);
  up.check(rank, &problem);
  check_like(y, x, problem);
  set_products(down.down == nullptr ? 0 : x.last(), rank, &problem);
  const size_t bytes = tier.factor_scratch_bytes(x.last(), rank, 0);
  const auto kernel = [&](const Task& task, const Output& out, void* scratch) noexcept {
    tier.factors(rows_of(x, type, problem, task), {down.of(task.op, by_row), up.of(rank, problem, task)}, out, scratch);
  };
  write_outputs(tier, problem, bytes, y, type, epilogue, pool, kernel);
}

ffi::Error factors(ffi::ThreadPool pool, AnyBuffer x, AnyBuffer center, AnyBuffer feature_scale, AnyBuffer down_,
                   AnyBuffer steps_, AnyBuffer up, AnyBuffer scale, AnyBuffer offset, ffi::RemainingArgs rest,
                   ffi::Dictionary attributes, ffi::Result<AnyBuffer> y) {
  return guarded([&](const Tier& tier) {
    const Named down{"down", down_}, steps{"steps", steps_};
    run_factors(tier, pool, {"x", x}, {{"center", center}, {"feature scale", feature_scale}, &down, &steps},
                {{"up", up}, {"scale", scale}, {"offset", offset}}, false, {rest, attributes}, {"y", *y});
  });
}

template <bool kByRow>
ffi::Error int8(ffi::ThreadPool pool, AnyBuffer x, AnyBuffer center, AnyBuffer feature_scale, AnyBuffer up,
                AnyBuffer scale, AnyBuffer offset, ffi::RemainingArgs rest, ffi::Dictionary attributes,
                ffi::Result<AnyBuffer> y) {
  return guarded([&](const Tier& tier) {
    run_factors(tier, pool, {"x", x}, {{"center", center}, {"feature scale", feature_scale}},
                {{"up", up}, {"scale", scale}, {"offset", offset}}, kByRow, {rest, attributes}, {"y", *y});
  });
}

// Checks u, and returns its rank.
int64_t check_u(const Named& u) {
  check_type(u, ffi::DataType::S8, "int8");
  DownArrays::check_rank(u, u.last());
  return u.last();
}

ffi::Error factors_of(ffi::ThreadPool pool, AnyBuffer u_, AnyBuffer up, AnyBuffer scale, AnyBuffer offset,
                      ffi::RemainingArgs rest, ffi::Dictionary attributes, ffi::Result<AnyBuffer> y_) {
  return guarded([&](const Tier& tier) {
    const Named u{"u", u_}, y{"y", *y_};
    const UpArrays arrays{{"up", up}, {"scale", scale}, {"offset", offset}};
    Problem problem{u.dim(0), count_rows(u), 0, 0, false};
    const int64_t rank = check_u(u);
    arrays.check(rank, &problem);
    const FloatType type = check_float_type(y);
    check_rows(y, u, problem.outputs);
    set_products(0, rank, &problem);
    const size_t bytes = tier.factor_scratch_bytes(0, rank, 0);
    const auto kernel = [&](const Task& task, const Output& out, void* scratch) noexcept {
      tier.factors_of(bytes_of<int8_t>(u, problem, task), task.rows.count, arrays.of(rank, problem, task), out,
                      scratch);
    };
    write_outputs(tier, problem, bytes, y, type, {rest, attributes}, pool, kernel);
  });
}

ffi::Error amm_of_codes_factors(ffi::ThreadPool pool, AnyBuffer codes_, AnyBuffer u_, AnyBuffer values_, AnyBuffer up,
                                AnyBuffer shift_, AnyBuffer scale, AnyBuffer offset, ffi::RemainingArgs rest,
                                ffi::Dictionary attributes, ffi::Result<AnyBuffer> y_) {
  return guarded([&](const Tier& tier) {
    const Named codes{"codes", codes_}, u{"u", u_}, values{"values", values_}, shift{"shift", shift_}, y{"y", *y_};
    const UpArrays arrays{{"up", up}, {"scale", scale}, {"offset", offset}, &shift};
    Problem problem = problem_of_codes(codes, values);
    const int64_t rank = check_u(u);
    check_rows(u, codes, rank);
    arrays.check(rank, &problem);
    const FloatType type = check_float_type(y);
    check_rows(y, codes, problem.outputs);
    set_products(0, rank, &problem);
    const size_t bytes = tier.factor_scratch_bytes(0, rank, problem.codebooks);
    const auto kernel = [&](const Task& task, const Output& out, void* scratch) noexcept {
      tier.amm_of_codes_factors(bytes_of<uint8_t>(codes, problem, task), bytes_of<int8_t>(u, problem, task),
                                task.rows.count, tables_of(values, problem, task), arrays.of(rank, problem, task), out,
                                scratch);
    };
    write_outputs(tier, problem, bytes, y, type, {rest, attributes}, pool, kernel);
  });
}

auto bind_rounding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<AnyBuffer>()   // x
      .Arg<AnyBuffer>()   // center
      .Arg<AnyBuffer>();  // feature scale
}

auto bind_down() {
  return bind_rounding()
      .Arg<AnyBuffer>()   // down
      .Arg<AnyBuffer>();  // steps
}

template <typename Binding>
auto bind_up(Binding binding) {
  return std::move(binding)
      .template Arg<AnyBuffer>()   // up
      .template Arg<AnyBuffer>()   // scale
      .template Arg<AnyBuffer>()   // offset
      .RemainingArgs()             // residual
      .Attrs()                     // activation
      .template Ret<AnyBuffer>();  // y
}

XLA_FFI_DEFINE_HANDLER(bound_project, project, bind_down().Ret<AnyBuffer>());  // u
XLA_FFI_DEFINE_HANDLER(bound_factors, factors, bind_up(bind_down()));
XLA_FFI_DEFINE_HANDLER(bound_int8, int8<false>, bind_up(bind_rounding()));
XLA_FFI_DEFINE_HANDLER(bound_int8_by_row, int8<true>, bind_up(bind_rounding()));
XLA_FFI_DEFINE_HANDLER(bound_factors_of, factors_of,
                       bind_up(ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<AnyBuffer>()));  // u
XLA_FFI_DEFINE_HANDLER(bound_amm_of_codes_factors, amm_of_codes_factors,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<AnyBuffer>()    // codes
                           .Arg<AnyBuffer>()    // u
                           .Arg<AnyBuffer>()    // values
                           .Arg<AnyBuffer>()    // up
                           .Arg<AnyBuffer>()    // shift
                           .Arg<AnyBuffer>()    // scale
                           .Arg<AnyBuffer>()    // offset
                           .RemainingArgs()     // residual
                           .Attrs()             // activation
                           .Ret<AnyBuffer>());  // y

}  // namespace

ffi::Error amm_factors_with(const TreeArrays& trees, ffi::ThreadPool& pool, AnyBuffer x_, const FactorArrays& all,
                            const EpilogueOperands& epilogue, AnyBuffer y_) {
  return guarded([&](const Tier& tier) {
    const bool by_code = all.by_code;
    const Named x{"x", x_}, y{"y", y_}, values{by_code ? "by_code" : "values", all.values}, down{"down", all.down},
        steps{"steps", all.steps}, shift{"shift", all.shift};
    const DownArrays from_x{{"center", all.center}, {"feature scale", all.feature_scale}, &down, &steps};
    const UpArrays to_y{{"up", all.up}, {"scale", all.scale}, {"offset", all.offset}, &shift};
    Problem problem{0, 0, 0, 0, true};
    const FloatType type = check_float_type(x);
    check_trees(x, trees, &problem);
    (by_code ? check_by_code : check_values)(values, &problem);
    const int64_t rank = from_x.check(x);
    to_y.check(rank, &problem);
    check_like(y, x, problem);
    set_products(x.last(), rank, &problem);
    const size_t bytes = tier.factor_scratch_bytes(x.last(), rank, problem.codebooks);
    const auto kernel = [&](const Task& task, const Output& out, void* scratch) noexcept {
      const Tables tables = (by_code ? by_code_of : tables_of)(values, problem, task);
      const Factors factors = {from_x.of(task.op, false), to_y.of(rank, problem, task)};
      const Rows rows = rows_of(x, type, problem, task);
      by_code ? trees.amm_factors_by_code(tier, task.op, rows, tables, factors, out, scratch)
              : trees.amm_factors(tier, task.op, rows, tables, factors, out, scratch);
    };
    write_outputs(tier, problem, bytes, y, type, epilogue, pool, kernel);
  });
}

XLA_FFI_Error* project_handler(XLA_FFI_CallFrame* frame) { return bound_project(frame); }
XLA_FFI_Error* factors_handler(XLA_FFI_CallFrame* frame) { return bound_factors(frame); }
XLA_FFI_Error* factors_of_handler(XLA_FFI_CallFrame* frame) { return bound_factors_of(frame); }
XLA_FFI_Error* int8_handler(XLA_FFI_CallFrame* frame) { return bound_int8(frame); }
XLA_FFI_Error* int8_by_row_handler(XLA_FFI_CallFrame* frame) { return bound_int8_by_row(frame); }
XLA_FFI_Error* amm_of_codes_factors_handler(XLA_FFI_CallFrame* frame) { return bound_amm_of_codes_factors(frame); }

}  // namespace jax_maddness
