// Runs the kernels of integer factors, every array being guarded, and compares them with the definition.
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

// Compares outputs with those of the definition. NaN has many forms.
template <typename T>
void check_outputs(const FactorRun& r, const char* kernel, const std::vector<T>& y,
                   const std::vector<std::vector<int64_t>>& u, const std::vector<int32_t>& of_tables) {
  const IntegerFactors& f = r.f;
  for (size_t i = 0; i < y.size(); ++i) {
    const auto n = static_cast<int64_t>(i) / f.outputs, m = static_cast<int64_t>(i) % f.outputs;
    const float of_row = f.by_row ? [&] {
      flush_denormals(true);
      const float most = f.greatest_step(&r.p.x[static_cast<size_t>(n * f.features)]);
      flush_denormals(false);
      return most;
    }()
                                  : 1.0f;
    const int32_t sum = f.sum(u[static_cast<size_t>(n)], m, of_tables.empty() ? 0 : of_tables[i]);
    const float scale = f.scale[static_cast<size_t>(m)] * of_row;
    const float exact = std::fma(scale, static_cast<float>(sum), f.offset[static_cast<size_t>(m)]);
    const uint32_t wanted = round_to(exact, r.p.type);
    uint32_t got = 0;
    std::memcpy(&got, &y[i], sizeof(T));
    const bool right = is_nan(exact) ? is_nan(widen(got, r.p.type)) : got == wanted;
    CHECK(
        right || is_excused(exact, r.p.type),
        "tier %s, %s, %s, %ld rows, D = %ld, rank %ld, M = %ld, C = %ld, by row %d: row %ld, output %ld is %x, not %x",
        r.run.tier.name, kernel, name(r.p.type), long(r.p.rows), long(f.features), long(f.rank), long(f.outputs),
        long(r.p.codebooks), f.by_row, long(n), long(m), got, wanted);
  }
}

inline std::vector<std::vector<int64_t>> factors_of_rows(const Problem& p, const IntegerFactors& f) {
  flush_denormals(true);
  std::vector<std::vector<int64_t>> u;
  for (int64_t n = 0; n < p.rows; ++n) u.push_back(f.u(&p.x[static_cast<size_t>(n * f.features)]));
  flush_denormals(false);
  return u;
}

template <typename T>
void check_kernels(const FactorRun& r, const std::vector<std::vector<int64_t>>& u, int64_t stride, bool flushed) {
  const std::vector<int32_t> none, of_tables = r.p.sums();
  const auto with = [&](const auto& call) {
    flush_denormals(flushed);
    const auto y = call();
    flush_denormals(false);
    return y;
  };
  check_outputs(r, "factors", with([&] { return r.factors<T>(stride); }), u, none);
  if (r.f.rank == 0) return;
  std::vector<int8_t> flat;
  for (const auto& row : u) flat.insert(flat.end(), row.begin(), row.end());
  CHECK(with([&] { return r.u(); }) == flat, "tier %s, %s, %ld rows, D = %ld, rank %ld: project", r.run.tier.name,
        name(r.p.type), long(r.p.rows), long(r.f.features), long(r.f.rank));
  const Input<int8_t> of_rows(flat);
  check_outputs(r, "factors_of", with([&] { return r.factors_of<T>(of_rows, stride); }), u, none);
  check_outputs(r, "amm_factors", with([&] { return r.mixed<T>(stride); }), u, of_tables);
  check_outputs(r, "by code", with([&] { return r.mixed_by_code<T>(stride); }), u, of_tables);
  check_outputs(r, "of codes", with([&] { return r.mixed_of_codes<T>(of_rows, stride); }), u, of_tables);
}

inline void check_factors(const Tier& tier, const Problem& p, const IntegerFactors& f, Random& random) {
  const FactorRun run(tier, p, f);
  const std::vector<std::vector<int64_t>> u = factors_of_rows(p, f);
  // Rows of whole lines stay so: kernels may write these past the cache.
  const int64_t stride = p.outputs + (p.outputs % 16 == 0 && p.outputs > 0 ? 0 : random.below(3));
  const bool flushed = random.below(2) == 0;
  p.type == FloatType::kF32 ? check_kernels<uint32_t>(run, u, stride, flushed)
                            : check_kernels<uint16_t>(run, u, stride, flushed);
}

struct FactorSizes {
  int64_t rows, features, rank, outputs, codebooks;
};

inline void check_random_factors(const Tier& tier, Random& random, const FactorSizes& s, FloatType type,
                                 bool by_row = false) {
  Problem p = random_problem(random, s.rows, s.features, s.codebooks, s.outputs, type);
  if (random.below(2) == 0) {
    p.oblique = random_oblique(random, p.x, s.rows, s.features, s.codebooks, 1 + random.below(12));
  }
  check_factors(tier, p, random_factors(random, s.features, s.rank, s.outputs, by_row), random);
}

}  // namespace jax_maddness::testing

#endif  // JAX_MADDNESS_TESTS_FACTOR_RUN_H_
