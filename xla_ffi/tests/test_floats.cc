// Every tier's look-ups in float tables, and their gradient, against sums in the order that layout.h states: the same
// floats.
#include "xla_ffi/tests/definition.h"

namespace jax_maddness::testing {
namespace {

struct Floats {
  int64_t rows, codebooks, outputs;
  std::vector<uint8_t> codes;  // the upper four bits are noise
  std::vector<float> values, dy;

  size_t entry(int64_t m, int64_t c, int64_t k) const { return static_cast<size_t>((m * codebooks + c) * kLeaves + k); }
  int64_t code(int64_t n, int64_t c) const { return codes[static_cast<size_t>(n * codebooks + c)] & 15; }

  std::vector<float> y() const {
    std::vector<float> result;
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t m = 0; m < outputs; ++m) {
        float sum = 0;
        for (int64_t c = 0; c < codebooks; ++c) sum += values[entry(m, c, code(n, c))];
        result.push_back(sum);
      }
    }
    return result;
  }

  std::vector<float> gradient() const {
    std::vector<float> result(values.size());
    for (int64_t n = 0; n < rows; ++n) {
      for (int64_t c = 0; c < codebooks; ++c) {
        for (int64_t m = 0; m < outputs; ++m) {
          result[entry(m, c, code(n, c))] += dy[static_cast<size_t>(n * outputs + m)];
        }
      }
    }
    return result;
  }
};

// One row in so many of dy is not zero.
Floats random_floats(Random& random, int64_t n, int64_t c, int64_t m, int64_t one_in) {
  Floats p{n, c, m, {}, {}, {}};
  for (int64_t i = 0; i < n * c; ++i) p.codes.push_back(static_cast<uint8_t>(random.below(256)));
  for (int64_t i = 0; i < m * c * kLeaves; ++i) p.values.push_back(random.normal());
  for (int64_t i = 0; i < n; ++i) {
    const bool any = random.below(one_in) == 0;
    for (int64_t j = 0; j < m; ++j) p.dy.push_back(any ? random.normal() : j % 2 == 0 ? 0.0f : -0.0f);
  }
  return p;
}

void check_same(const Tier& tier, const char* what, const Floats& p, const std::vector<float>& got,
                const std::vector<float>& wanted) {
  for (size_t i = 0; i < wanted.size(); ++i) {
    CHECK(bits_of(got[i]) == bits_of(wanted[i]), "tier %s, %ld rows, C = %ld, M = %ld: %s %zu is %g, not %g", tier.name,
          long(p.rows), long(p.codebooks), long(p.outputs), what, i, static_cast<double>(got[i]),
          static_cast<double>(wanted[i]));
  }
}

// Forward, some rows after the others, as two tasks; backward, some codebooks after the others.
void check_floats(const Tier& tier, Random& random, int64_t n, int64_t c, int64_t m, int64_t one_in) {
  const Floats p = random_floats(random, n, c, m, one_in);
  const Input<uint8_t> codes(p.codes);
  const Input<float> values(p.values), dy(p.dy);
  const Result<char> scratch(1, kFloatScratch, 0);
  const int64_t stride = m + random.below(3), third = n / 3, half = c / 2;
  const Result<float> y(n, m, stride), gradient(m, c * kLeaves, c * kLeaves);
  for (const auto& [begin, count] : {std::pair{int64_t{0}, third}, {third, n - third}}) {
    tier.look_up_floats({codes.data() + begin * c, count, c, c}, {values.data(), m, c * kLeaves},
                        {y.data() + begin * stride, stride}, scratch.data());
  }
  check_same(tier, "output", p, y.values(), p.y());
  for (const auto& [begin, count] : {std::pair{int64_t{0}, half}, {half, c - half}}) {
    tier.look_up_gradient({codes.data() + begin, n, count, c}, {dy.data(), m},
                          {gradient.data() + begin * kLeaves, m, c * kLeaves}, scratch.data());
  }
  check_same(tier, "entry", p, gradient.values(), p.gradient());
}

void test_sizes() {
  Random random(1);
  for (const Tier* tier : tested_tiers()) {
    for (const int64_t rows : {0, 1, 2, 63, 64, 65, 129, 200}) {
      for (const int64_t codebooks : {1, 2, 7, 8, 9, 17}) {
        for (const int64_t outputs : {0, 1, 3, 15, 16, 17, 31, 33, 63, 64, 65, 100}) {
          check_floats(*tier, random, rows, codebooks, outputs, 1 + random.below(3));
        }
      }
    }
    for (const int64_t codebooks : {127, 128, 129, 300}) check_floats(*tier, random, 70, codebooks, 65, 1);
    check_floats(*tier, random, 300, 4, 40, 1000);
  }
}

void test_numbers_that_are_not() {
  for (const Tier* tier : tested_tiers()) {
    const Input<uint8_t> codes(std::vector<uint8_t>{3, 3});
    const Input<float> dy(std::vector<float>{std::nanf(""), 1e-40f});
    const Result<char> scratch(1, kFloatScratch, 0);
    const Result<float> gradient(1, kLeaves, kLeaves);
    tier->look_up_gradient({codes.data(), 1, 1, 1}, {dy.data(), 1}, {gradient.data(), 1, kLeaves}, scratch.data());
    CHECK(std::isnan(gradient.values()[3]), "tier %s skips NaN", tier->name);
    tier->look_up_gradient({codes.data(), 1, 1, 1}, {dy.data() + 1, 1}, {gradient.data(), 1, kLeaves}, scratch.data());
    CHECK(gradient.values()[3] == 1e-40f, "tier %s skips a denormal", tier->name);
  }
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  return run_on_tiers("floats", argc, argv, [] {
    test_sizes();
    test_numbers_that_are_not();
  });
}
