// Every tier's epilogue against the definition of layout.h in doubles.
#include <limits>

#include "xla_ffi/tests/definition.h"

namespace jax_maddness::testing {
namespace {

constexpr Activation kActivations[] = {Activation::kNone,      Activation::kRelu,    Activation::kRelu6,
                                       Activation::kHardSwish, Activation::kGelu,    Activation::kExactGelu,
                                       Activation::kSilu,      Activation::kSigmoid, Activation::kTanh};
constexpr FloatType kTypes[] = {FloatType::kF32, FloatType::kBF16, FloatType::kF16};

double sigmoid(double z) { return 1 / (1 + std::exp(-z)); }

double defined(Activation activation, double z) {
  const auto relu6 = [](double v) { return v > 6 ? 6 : v < 0 ? 0 : v; };
  switch (activation) {
    case Activation::kNone:
      return z;
    case Activation::kRelu:
      return z < 0 ? 0 : z;
    case Activation::kRelu6:
      return relu6(z);
    case Activation::kHardSwish:
      return z * relu6(z + 3) / 6;
    case Activation::kGelu:
      return z * sigmoid(2 * std::sqrt(2 / M_PI) * (z + 0.044715 * z * z * z));
    case Activation::kExactGelu:
      return z * std::erfc(-z / std::sqrt(2)) / 2;
    case Activation::kSilu:
      return z * sigmoid(z);
    case Activation::kSigmoid:
      return sigmoid(z);
    case Activation::kTanh:
      return std::tanh(z);
  }
  return z;
}

// Rounding of the type, and 4e-7 of max(1, |z|) before it.
bool is_close(float got, double z, double wanted, FloatType type) {
  if (std::isnan(wanted)) return std::isnan(got);
  const double step = type == FloatType::kF32 ? 0x1p-23 : type == FloatType::kBF16 ? 0x1p-8 : 0x1p-11;
  if (std::isinf(wanted) || std::fabs(wanted) > std::numeric_limits<float>::max()) return double{got} == wanted;
  return std::fabs(double{got} - wanted) <= 4e-7 * std::max(1.0, std::fabs(z)) + step * std::fabs(wanted) + 0x1p-24;
}

void check(const Tier& tier, Activation activation, FloatType type, const std::vector<float>& z,
           const std::vector<float>& residual, int64_t rows, int64_t outputs, int64_t stride, bool streams) {
  const Input<float> from(z);
  const Input<char> more(in_type(residual, type));
  const int64_t width = type == FloatType::kF32 ? 4 : 2;
  const Result<char> y(rows, outputs * width, stride * width);
  const bool adds = !residual.empty();
  tier.epilogue(from.data(), outputs, rows, outputs, {activation, adds ? more.data() : nullptr, outputs},
                {y.data(), type, stride, streams});
  const std::vector<char> bytes = y.values();
  for (size_t i = 0; i < z.size(); ++i) {
    uint32_t bits = 0;
    std::memcpy(&bits, bytes.data() + i * static_cast<size_t>(width), static_cast<size_t>(width));
    const float sum = adds ? z[i] + widen(round_to(residual[i], type), type) : z[i];
    const double wanted = defined(activation, double{sum});
    const float got = widen(bits, type);
    if (type == FloatType::kF16 && std::fabs(wanted) > 65000) continue;
    CHECK(is_close(got, double{sum}, wanted, type), "tier %s: activation %d of %g in type %d is %g, not %g", tier.name,
          static_cast<int>(activation), double{sum}, static_cast<int>(type), double{got}, wanted);
  }
}

void test_sizes() {
  Random random(1);
  for (const Tier* tier : tested_tiers()) {
    for (const Activation activation : kActivations) {
      for (const FloatType type : kTypes) {
        for (const int64_t outputs : {0, 1, 7, 16, 17, 64, 255, 256, 257, 300, 512}) {
          const int64_t rows = random.below(4), stride = outputs + (random.below(2) == 0 ? 0 : random.below(5));
          std::vector<float> z, residual;
          for (int64_t i = 0; i < rows * outputs; ++i) z.push_back(3 * random.normal());
          if (random.below(2) == 0) {
            for (int64_t i = 0; i < rows * outputs; ++i) residual.push_back(random.normal());
          }
          check(*tier, activation, type, z, residual, rows, outputs, stride, random.below(2) == 0);
        }
      }
    }
  }
}

// Every magnitude, both signs, zeros, infinities and NaN.
void test_numbers() {
  std::vector<float> z = {0.0f, -0.0f, HUGE_VALF, -HUGE_VALF, std::nanf(""), 1e-40f, -1e-40f};
  for (float v = 1e-30f; v < 3e38f; v *= 1.01f) {
    z.push_back(v);
    z.push_back(-v);
  }
  for (int i = -4000; i <= 4000; ++i) z.push_back(static_cast<float>(i) / 40);
  const auto count = static_cast<int64_t>(z.size());
  for (const Tier* tier : tested_tiers()) {
    for (const Activation activation : kActivations) {
      for (const FloatType type : kTypes) check(*tier, activation, type, z, {}, 1, count, count, false);
    }
  }
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  return run_on_tiers("epilogue", argc, argv, [] {
    test_sizes();
    test_numbers();
  });
}
