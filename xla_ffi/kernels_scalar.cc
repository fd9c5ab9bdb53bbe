// Scalar tier: the definition of layout.h in plain loops, for every CPU, and the answer that other tiers must give.
// Nothing here is meant to be fast: one look-up is a load and an add.
#include <cmath>
#include <cstring>

#include "count_denormals.h"
#include "kernels.h"

namespace jax_maddness {
namespace {

float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float widen_f16(uint16_t half) {
  const uint32_t sign = uint32_t{half & 0x8000u} << 16;
  const uint32_t exponent = half >> 10 & 31, fraction = half & 0x3ff;
  if (exponent == 31) return float_of_bits(sign | 0x7f800000 | fraction << 13);
  if (exponent != 0) return float_of_bits(sign | (exponent + 112) << 23 | fraction << 13);
  return float_of_bits(sign | bits_of_float(static_cast<float>(fraction) * 0x1p-24f));
}

uint16_t round_to_f16(float value) {
  const uint32_t bits = bits_of_float(value), magnitude = bits & 0x7fffffff;
  const uint16_t sign = bits >> 16 & 0x8000;
  if (magnitude > 0x7f800000) return sign | 0x7e00 | (magnitude >> 13 & 0x1ff);  // NaN stays NaN
  if (magnitude >= 0x477ff000) return sign | 0x7c00;                             // rounds past 65504
  if (magnitude >= 0x38800000) {                                                 // normal in f16
    return sign | (magnitude + 0xfff + (magnitude >> 13 & 1) - (112u << 23)) >> 13;
  }
  if (magnitude <= 0x33000000) return sign;  // up to half of the least denormal: a tie goes to zero
  const uint32_t fraction = (magnitude & 0x7fffff) | 0x800000, shift = 126 - (magnitude >> 23);
  const uint32_t floor = fraction >> shift, rest = fraction & ((1u << shift) - 1), half = 1u << (shift - 1);
  return sign | (floor + (rest > half || (rest == half && (floor & 1))));
}

uint16_t round_to_bf16(float value) {
  const uint32_t bits = bits_of_float(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return bits >> 16 | 0x40;  // rounding could carry a NaN into infinity
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

float load(const void* data, FloatType type, int64_t i) {
  switch (type) {
    case FloatType::kF32:
      return static_cast<const float*>(data)[i];
    case FloatType::kBF16:
      return float_of_bits(uint32_t{static_cast<const uint16_t*>(data)[i]} << 16);
    case FloatType::kF16:
      return widen_f16(static_cast<const uint16_t*>(data)[i]);
  }
  return 0;
}

void store(void* data, FloatType type, int64_t i, float value) {
  switch (type) {
    case FloatType::kF32:
      static_cast<float*>(data)[i] = value;
      return;
    case FloatType::kBF16:
      static_cast<uint16_t*>(data)[i] = round_to_bf16(value);
      return;
    case FloatType::kF16:
      static_cast<uint16_t*>(data)[i] = round_to_f16(value);
      return;
  }
}

void encode_row(const Rows& x, int64_t n, const Trees& trees, uint8_t* codes) {
  for (int64_t c = 0; c < trees.codebooks; ++c) {
    const int32_t* indices = trees.indices + c * kLevels;
    const float* thresholds = trees.thresholds + c * kNodes;
    int64_t node = 0;
    for (int64_t level = 0; level < kLevels; ++level) {
      const bool right = load(x.data, x.type, n * x.features + indices[level]) > thresholds[node];
      node = 2 * node + 1 + right;
    }
    codes[c] = static_cast<uint8_t>(node - kNodes);
  }
}

// Modulo 2^32 beyond 2^23 codebooks, where an int32 sum could overflow.
int32_t sum(const uint8_t* codes, const Tables& tables, int64_t m) {
  const uint8_t* values = tables.values + m * tables.codebooks * kLeaves;
  uint32_t sum = 0;
  for (int64_t c = 0; c < tables.codebooks; ++c) sum += values[c * kLeaves + (codes[c] & 15)];
  return static_cast<int32_t>(sum);
}

bool supported() { return true; }

size_t scratch_bytes(int64_t /*features*/, int64_t codebooks) { return static_cast<size_t>(codebooks); }

void encode(const Rows& x, const Trees& trees, uint8_t* codes, void* /*scratch*/) noexcept {
  const CountDenormals guard;
  for (int64_t n = 0; n < x.count; ++n) encode_row(x, n, trees, codes + n * trees.codebooks);
}

void aggregate(const uint8_t* codes, int64_t rows, const Tables& tables, int32_t* sums, int64_t stride,
               void* /*scratch*/) noexcept {
  for (int64_t n = 0; n < rows; ++n) {
    for (int64_t m = 0; m < tables.outputs; ++m) {
      sums[n * stride + m] = sum(codes + n * tables.codebooks, tables, m);
    }
  }
}

void amm(const Rows& x, const Trees& trees, const Tables& tables, const Output& y, void* scratch) noexcept {
  const CountDenormals guard;
  auto* codes = static_cast<uint8_t*>(scratch);
  for (int64_t n = 0; n < x.count; ++n) {
    encode_row(x, n, trees, codes);
    for (int64_t m = 0; m < tables.outputs; ++m) {
      const float total = static_cast<float>(sum(codes, tables, m));
      store(y.data, y.type, n * y.stride + m, std::fma(tables.scale[m], total, tables.offset[m]));
    }
  }
}

}  // namespace

extern const Tier scalar_tier;
const Tier scalar_tier = {"scalar", supported, scratch_bytes, encode, aggregate, amm};

}  // namespace jax_maddness
