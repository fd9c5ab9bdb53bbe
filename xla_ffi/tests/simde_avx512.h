// AVX-512 without AVX-512, for tests only: force-included (-include) before a tier.cc of AVX-512, which is compiled
// without its flags, it replaces the intrinsics by SIMDe's portable ones, and declares the tier supported. So the logic
// of that tier, though not its instructions, runs on any x86-64: see JAX_MADDNESS_SIMDE_TESTS in CMakeLists.txt.
// (tools/avx512-under-bochs runs the instructions, slowly.)
//
// The intrinsics below are those that SIMDe 0.7.4 lacks, or does not have exactly. Masked-off elements are never
// touched, as in hardware.
#ifndef JAX_MADDNESS_TESTS_SIMDE_AVX512_H_
#define JAX_MADDNESS_TESTS_SIMDE_AVX512_H_

#if defined(__AVX512F__)
#error "compile this without AVX-512: it is there to be emulated"
#endif

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <immintrin.h>
#include <simde/x86/avx512.h>

#include <cmath>
#include <cstdint>
#include <cstring>

#undef __builtin_cpu_supports
#define __builtin_cpu_supports(feature) true

namespace jax_maddness {
namespace {
namespace simde_gaps {

template <typename T, typename Vector, typename Mask>
Vector masked_load(Mask mask, const void* from) {
  T elements[sizeof(Vector) / sizeof(T)] = {};
  for (size_t i = 0; i < sizeof(Vector) / sizeof(T); ++i) {
    if (mask >> i & 1) std::memcpy(&elements[i], static_cast<const T*>(from) + i, sizeof(T));
  }
  Vector result;
  std::memcpy(&result, elements, sizeof result);
  return result;
}

template <typename T, typename Vector, typename Mask>
void masked_store(void* to, Mask mask, const Vector& vector) {
  T elements[sizeof(Vector) / sizeof(T)];
  std::memcpy(elements, &vector, sizeof vector);
  for (size_t i = 0; i < sizeof(Vector) / sizeof(T); ++i) {
    if (mask >> i & 1) std::memcpy(static_cast<T*>(to) + i, &elements[i], sizeof(T));
  }
}

// 16 elements of one type to 16 of another.
template <typename From, typename To, typename Result, typename Vector, typename Convert>
Result convert(const Vector& vector, const Convert& one) {
  From from[16];
  To to[16];
  static_assert(sizeof from == sizeof(Vector) && sizeof to == sizeof(Result));
  std::memcpy(from, &vector, sizeof from);
  for (int i = 0; i < 16; ++i) to[i] = one(from[i]);
  Result result;
  std::memcpy(&result, to, sizeof result);
  return result;
}

inline simde__m512i convert_u16_to_i32(const simde__m256i& v) {
  return convert<uint16_t, int32_t, simde__m512i>(v, [](uint16_t u) { return int32_t{u}; });
}
inline simde__m256i convert_i32_to_i16(const simde__m512i& v) {
  return convert<int32_t, int16_t, simde__m256i>(v, [](int32_t i) { return static_cast<int16_t>(i); });
}
inline simde__m128i convert_i32_to_i8(const simde__m512i& v) {
  return convert<int32_t, int8_t, simde__m128i>(v, [](int32_t i) { return static_cast<int8_t>(i); });
}
inline simde__m512 convert_i32_to_f32(const simde__m512i& v) {
  return convert<int32_t, float, simde__m512>(v, [](int32_t i) { return static_cast<float>(i); });
}

// What is out of range, or NaN, is the least.
inline simde__m512i convert_f32_to_i32(const simde__m512& v) {
  return convert<float, int32_t, simde__m512i>(v, [](float f) {
    return f >= -2147483648.0f && f < 2147483648.0f ? static_cast<int32_t>(std::nearbyint(f)) : INT32_MIN;
  });
}

inline float f16_to_f32(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  if (exponent == 31) return std::copysign(fraction == 0 ? HUGE_VALF : std::nanf(""), half >> 15 ? -1.0f : 1.0f);
  const float magnitude =
      exponent == 0 ? std::ldexp(float(fraction), -24) : std::ldexp(1024.0f + fraction, exponent - 25);
  return half >> 15 ? -magnitude : magnitude;
}

inline uint16_t f32_to_f16(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  if (std::isnan(value)) return sign | 0x7e00;
  const float magnitude = std::fabs(value);
  if (magnitude >= 65520.0f) return sign | 0x7c00;
  const int exponent = magnitude < 0x1p-14f ? -14 : std::ilogb(magnitude);
  const float steps = std::nearbyint(std::ldexp(magnitude, 10 - exponent));  // a step out of the top is the next binade
  return static_cast<uint16_t>(sign + (exponent + 14) * 1024 + static_cast<int>(steps));
}

inline simde__m512 convert_f16_to_f32(const simde__m256i& v) {
  return convert<uint16_t, float, simde__m512>(v, f16_to_f32);
}
inline simde__m256i convert_f32_to_f16(const simde__m512& v, int /*rounding: to nearest*/) {
  return convert<float, uint16_t, simde__m256i>(v, f32_to_f16);
}

// SIMDe's rounds twice.
inline simde__m512 fused_multiply_add(const simde__m512& a, const simde__m512& b, const simde__m512& c) {
  float x[16], y[16], z[16];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  std::memcpy(z, &c, sizeof z);
  for (int i = 0; i < 16; ++i) x[i] = std::fma(x[i], y[i], z[i]);
  simde__m512 result;
  std::memcpy(&result, x, sizeof result);
  return result;
}

template <typename T, typename Vector>
Vector gather(const simde__m512i& index, const void* base, int scale) {
  return convert<int32_t, T, Vector>(index, [&](int32_t i) {
    T value;
    std::memcpy(&value, static_cast<const char*>(base) + int64_t{i} * scale, sizeof value);
    return value;
  });
}

// Of the elements that `mask` tells: the least, and which of them are less than the other's.
inline int32_t masked_least(uint16_t mask, const simde__m512i& v) {
  int32_t elements[16], least = INT32_MAX;
  std::memcpy(elements, &v, sizeof elements);
  for (int i = 0; i < 16; ++i) {
    if (mask >> i & 1 && elements[i] < least) least = elements[i];
  }
  return least;
}
inline uint16_t masked_less(uint16_t mask, const simde__m512i& a, const simde__m512i& b) {
  int32_t x[16], y[16];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  uint32_t less = 0;
  for (int i = 0; i < 16; ++i) less |= static_cast<uint32_t>(x[i] < y[i]) << i;
  return static_cast<uint16_t>(mask & less);
}

inline uint32_t greater_words(const simde__m512i& a, const simde__m512i& b) {
  int16_t x[32], y[32];
  std::memcpy(x, &a, sizeof x);
  std::memcpy(y, &b, sizeof y);
  uint32_t greater = 0;
  for (int i = 0; i < 32; ++i) greater |= static_cast<uint32_t>(x[i] > y[i]) << i;
  return greater;
}

}  // namespace simde_gaps
}  // namespace
}  // namespace jax_maddness

#define SIMDE_GAP(name) jax_maddness::simde_gaps::name
#define _mm512_maskz_loadu_epi8(mask, p) (SIMDE_GAP(masked_load) < uint8_t, simde__m512i > (mask, p))
#define _mm512_maskz_loadu_epi32(mask, p) (SIMDE_GAP(masked_load) < int32_t, simde__m512i > (mask, p))
#define _mm_maskz_loadu_epi8(mask, p) (SIMDE_GAP(masked_load) < uint8_t, simde__m128i > (mask, p))
#define _mm512_maskz_loadu_ps(mask, p) (SIMDE_GAP(masked_load) < float, simde__m512 > (mask, p))
#define _mm256_maskz_loadu_epi16(mask, p) (SIMDE_GAP(masked_load) < uint16_t, simde__m256i > (mask, p))
#define _mm512_mask_storeu_epi8(p, mask, v) (SIMDE_GAP(masked_store) < uint8_t > (p, mask, v))
#define _mm512_mask_storeu_epi32(p, mask, v) (SIMDE_GAP(masked_store) < int32_t > (p, mask, v))
#define _mm256_mask_storeu_epi16(p, mask, v) (SIMDE_GAP(masked_store) < uint16_t > (p, mask, v))
#define _mm512_stream_si512(p, v) simde_mm512_store_si512(p, v)
#define _mm512_cvtepu16_epi32(v) SIMDE_GAP(convert_u16_to_i32)(v)
#define _mm512_cvtepi32_epi16(v) SIMDE_GAP(convert_i32_to_i16)(v)
#define _mm512_cvtepi32_epi8(v) SIMDE_GAP(convert_i32_to_i8)(v)
#define _mm512_cvtepi32_ps(v) SIMDE_GAP(convert_i32_to_f32)(v)
#define _mm512_cvtps_epi32(v) SIMDE_GAP(convert_f32_to_i32)(v)
#undef _mm512_madd_epi16
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)  // SIMDe's own alias wants four arguments
#define _mm512_cvtph_ps(v) SIMDE_GAP(convert_f16_to_f32)(v)
#define _mm512_cvtps_ph(v, rounding) SIMDE_GAP(convert_f32_to_f16)(v, rounding)
#undef _mm512_fmadd_ps
#define _mm512_fmadd_ps(a, b, c) SIMDE_GAP(fused_multiply_add)(a, b, c)
#define _mm512_mask_reduce_min_epi32(mask, v) SIMDE_GAP(masked_least)(mask, v)
#define _mm512_mask_cmplt_epi32_mask(mask, a, b) SIMDE_GAP(masked_less)(mask, a, b)
#undef _mm512_cmpgt_epi16_mask
#define _mm512_cmpgt_epi16_mask(a, b) SIMDE_GAP(greater_words)(a, b)
#define _mm512_shuffle_f32x4(a, b, lanes) simde_mm512_shuffle_f32x4(a, b, lanes)
#define _mm512_i32gather_ps(index, base, scale) (SIMDE_GAP(gather) < float, simde__m512 > (index, base, scale))
#define _mm512_i32gather_epi32(index, base, scale) (SIMDE_GAP(gather) < int32_t, simde__m512i > (index, base, scale))

#endif  // JAX_MADDNESS_TESTS_SIMDE_AVX512_H_
