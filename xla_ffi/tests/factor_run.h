// Runs the kernels of integer factors, every array being guarded.
#ifndef JAX_MADDNESS_TESTS_FACTOR_RUN_H_
#define JAX_MADDNESS_TESTS_FACTOR_RUN_H_

#include "xla_ffi/tests/factors.h"

namespace jax_maddness::testing {

// A tier with a problem and factors.
struct FactorRun {
  const Run run;
  const Problem& p;
  const IntegerFactors& f;
  Input<float> center, feature_scale, steps, scale, offset;
  Input<int8_t> down, up;
  Input<uint8_t> shift;
  AlignedBytes scratch;

  FactorRun(const Tier& tier, const Problem& p, const IntegerFactors& f)
      : run(tier, p),
        p(p),
        f(f),
        center(f.center),
        feature_scale(f.feature_scale),
        steps(f.steps),
        scale(f.scale),
        offset(f.offset),
        down(f.down),
        up(f.up),
        shift(f.shift),
        scratch(tier.factor_scratch_bytes(f.features, f.inner(), p.codebooks)) {}

  Down downward() const {
    if (f.rank == 0) return {center.data(), feature_scale.data(), nullptr, nullptr, 0, f.by_row};
    return {center.data(), feature_scale.data(), down.data(), steps.data(), f.rank};
  }
  // Of outputs [begin, begin + count).
  Up upward(int64_t begin, int64_t count, bool shifts) const {
    return {up.data() + begin * 4,
            shifts ? shift.data() + begin : nullptr,
            scale.data() + begin,
            offset.data() + begin,
            f.inner(),
            count,
            f.outputs};
  }

  std::vector<int8_t> u() const {
    Result<int8_t> out(p.rows, f.rank, f.rank);
    run.tier.project(run.rows(), downward(), out.data(), scratch.data());
    return out.values();
  }

  // The outputs, computed as by two tasks: call(begin, count, y).
  template <typename T, typename Call>
  std::vector<T> outputs(int64_t stride, const Call& call) const {
    Result<T> out(p.rows, f.outputs, stride);
    const int64_t third = f.outputs / 3 / 4 * 4;
    for (const auto& [begin, count] : {std::pair{int64_t{0}, third}, {third, f.outputs - third}}) {
      call(begin, count, Output{out.data() + begin, p.type, stride, stride % 2 == 0});
    }
    return out.values();
  }

  template <typename T>
  std::vector<T> factors(int64_t stride) const {
    return outputs<T>(stride, [&](int64_t begin, int64_t count, const Output& y) {
      run.tier.factors(run.rows(), {downward(), upward(begin, count, false)}, y, scratch.data());
    });
  }

  template <typename T>
  std::vector<T> factors_of(const Input<int8_t>& of_rows, int64_t stride) const {
    return outputs<T>(stride, [&](int64_t begin, int64_t count, const Output& y) {
      run.tier.factors_of(of_rows.data(), p.rows, upward(begin, count, false), y, scratch.data());
    });
  }

  Tables tables(int64_t begin, int64_t count) const {
    return {run.values.data() + begin * p.codebooks * 16, nullptr, nullptr, count, p.codebooks};
  }

  template <typename T>
  std::vector<T> mixed(int64_t stride) const {
    return outputs<T>(stride, [&](int64_t begin, int64_t count, const Output& y) {
      const Factors both = {downward(), upward(begin, count, true)};
      p.is_oblique()
          ? run.tier.amm_oblique_factors(run.rows(), run.oblique_trees(), tables(begin, count), both, y, scratch.data())
          : run.tier.amm_factors(run.rows(), run.trees(), tables(begin, count), both, y, scratch.data());
    });
  }

  template <typename T>
  std::vector<T> mixed_by_code(int64_t stride) const {
    return outputs<T>(stride, [&](int64_t begin, int64_t count, const Output& y) {
      const Tables of = {run.by_code.data() + begin, nullptr, nullptr, count, p.codebooks, p.outputs};
      const Factors both = {downward(), upward(begin, count, true)};
      p.is_oblique()
          ? run.tier.amm_oblique_factors_by_code(run.rows(), run.oblique_trees(), of, both, y, scratch.data())
          : run.tier.amm_factors_by_code(run.rows(), run.trees(), of, both, y, scratch.data());
    });
  }

  template <typename T>
  std::vector<T> mixed_of_codes(const Input<int8_t>& of_rows, int64_t stride) const {
    Random random(6);
    const Input<uint8_t> codes = Run::noisy(p.codes(), random);
    return outputs<T>(stride, [&](int64_t begin, int64_t count, const Output& y) {
      run.tier.amm_of_codes_factors(codes.data(), of_rows.data(), p.rows, tables(begin, count),
                                    upward(begin, count, true), y, scratch.data());
    });
  }
};

}  // namespace jax_maddness::testing

#endif  // JAX_MADDNESS_TESTS_FACTOR_RUN_H_
