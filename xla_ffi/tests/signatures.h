// What the handlers take, stated independently of them: the types and dimensions of every array, and whether the arrays
// of a call fit together.
#ifndef JAX_MADDNESS_TESTS_SIGNATURES_H_
#define JAX_MADDNESS_TESTS_SIGNATURES_H_

#include <cctype>
#include <map>
#include <sstream>

#include "xla_ffi/tests/handler_calls.h"

namespace jax_maddness::testing {

constexpr int64_t kMostWidth = 100'000;  // of oblique trees

// An array is described by a letter for its type and one word for each dimension: a number, a letter that stands for
// one size in the whole call, h for half of c, g and p for the groups of four of d and of r, or * for any number of
// dimensions of rows. The types are u8, s8 (b), s16 (w), s32 (i), f32 (s), one floating type for all of the call's
// arrays (x), any floating type (f), indices below d (n), and shifts of at most 15 bits (t).
struct Signature {
  XLA_FFI_Handler* handler;
  const char* name;
  std::vector<std::string> args, results;
  bool is_product = false;  // an activation may follow, and the last of the arguments is a residual
};

// The names, "" for none.
constexpr const char* kActivationNames[] = {"",         "relu", "relu6",   "hard_swish", "gelu",
                                            "gelu_erf", "silu", "sigmoid", "tanh"};

// Adds to all signatures of products the same with a residual.
inline std::vector<Signature> with_residuals(std::vector<Signature> all) {
  for (size_t i = 0, count = all.size(); i < count; ++i) {
    Signature one = all[i];
    if (one.results[0] != "x o * m" && one.results[0] != "f o * m") continue;
    if (one.args[0].find("* d") == std::string::npos && one.results[0][0] == 'x') continue;  // by feature
    one.results[0] = "x o * m";
    one.args.push_back("x o * m");
    one.is_product = true;
    all.push_back(one);
  }
  return all;
}

inline const std::vector<Signature>& signatures() {
  static const std::string codes = "u o * c", values = "u o m c 16", by_code = "u o c 16 m", scale = "s o m";
  static const std::string x = "x o * d", y = "x o * m", indices = "n o c 4", thresholds = "s o c 15";
  static const std::string features = "n o c w", projections = "b o c 4 w", integers = "i o c 15", center = "s o d";
  static const std::string down = "b o g r 4", steps = "s o r", u = "b o * r", up = "b o p m 4", shift = "t o m";
  static const std::vector<Signature> all = with_residuals({
      {encode_handler, "encode", {x, indices, thresholds}, {codes}},
      {aggregate_handler, "aggregate", {codes, values}, {"i o * m"}},
      {amm_handler, "amm", {x, indices, thresholds, values, scale, scale}, {y}},
      {amm_of_codes_handler, "amm_of_codes", {codes, values, scale, scale}, {"f o * m"}},
      {amm_by_code_handler, "amm_by_code", {x, indices, thresholds, by_code, scale, scale}, {y}},
      {amm_by_feature_handler, "amm_by_feature", {"x o d *", indices, thresholds, values, scale, scale}, {y}},
      {amm_by_feature_and_output_handler,
       "amm_by_feature_and_output",
       {"x o d *", indices, thresholds, values, scale, scale},
       {"x o m *"}},
      {encode_oblique_handler, "encode_oblique", {x, features, projections, integers, center, center}, {codes}},
      {amm_oblique_handler,
       "amm_oblique",
       {x, features, projections, integers, center, center, values, scale, scale},
       {y}},
      {amm_oblique_by_code_handler,
       "amm_oblique_by_code",
       {x, features, projections, integers, center, center, by_code, scale, scale},
       {y}},
      {project_handler, "project", {x, center, center, down, steps}, {u}},
      {factors_handler, "factors", {x, center, center, down, steps, up, scale, scale}, {y}},
      {factors_of_handler, "factors_of", {u, up, scale, scale}, {"f o * m"}},
      {int8_handler, "int8", {x, center, center, "b o g m 4", scale, scale}, {y}},
      {int8_by_row_handler, "int8_by_row", {x, center, center, "b o g m 4", scale, scale}, {y}},
      {amm_factors_handler,
       "amm_factors",
       {x, indices, thresholds, values, center, center, down, steps, up, shift, scale, scale},
       {y}},
      {amm_factors_by_code_handler,
       "amm_factors_by_code",
       {x, indices, thresholds, by_code, center, center, down, steps, up, shift, scale, scale},
       {y}},
      {amm_oblique_factors_handler,
       "amm_oblique_factors",
       {x, features, projections, integers, center, center, values, center, center, down, steps, up, shift, scale,
        scale},
       {y}},
      {amm_oblique_factors_by_code_handler,
       "amm_oblique_factors_by_code",
       {x, features, projections, integers, center, center, by_code, center, center, down, steps, up, shift, scale,
        scale},
       {y}},
      {amm_of_codes_factors_handler, "amm_of_codes_factors", {codes, u, values, up, shift, scale, scale}, {"f o * m"}},
      {scan_handler, "scan", {"u b h 64", "u q c 16", "i"}, {"i q k", "i q k"}},
      {scan_sums_handler, "scan_sums", {"u b h 64", "u q c 16", "i"}, {"w q b 64"}},
      {scan_lists_handler, "scan_lists", {"u b h 64", "u q c 16", "i v 2", "i q v", "i", "i"}, {"i q k", "i q k"}},
      {rescore_handler, "rescore", {"f q l", "f v d", "i q k"}, {"s q k"}},
      {greatest_handler, "greatest", {"u e n c", "u m c 16", "u e n"}, {"i e k m", "i e k m"}},
      {look_up_handler, "look_up", {codes, "s o m c 16"}, {"s o * m"}},
      {look_up_gradient_handler, "look_up_gradient", {codes, "s o * m"}, {"s o m c 16"}},
  });
  return all;
}

inline std::vector<std::string> words(const std::string& text) {
  std::istringstream stream(text);
  std::vector<std::string> result;
  for (std::string word; stream >> word;) result.push_back(word);
  return result;
}

constexpr XLA_FFI_DataType kFloats[] = {XLA_FFI_DataType_F32, XLA_FFI_DataType_BF16, XLA_FFI_DataType_F16};

inline bool is_float(XLA_FFI_DataType type) {
  return std::find(std::begin(kFloats), std::end(kFloats), type) != std::end(kFloats);
}

inline XLA_FFI_DataType type_of(char letter, XLA_FFI_DataType x, Random& random) {
  switch (letter) {
    case 't':
    case 'u':
      return XLA_FFI_DataType_U8;
    case 'b':
      return XLA_FFI_DataType_S8;
    case 'w':
      return XLA_FFI_DataType_S16;
    case 's':
      return XLA_FFI_DataType_F32;
    case 'x':
      return x;
    case 'f':
      return kFloats[random.below(3)];
    default:
      return XLA_FFI_DataType_S32;
  }
}

// ---- Whether arrays fit together ----

inline bool matches_type(char letter, XLA_FFI_DataType type, XLA_FFI_DataType* x) {
  Random unused(0);
  if (letter == 'f') return is_float(type);
  if (letter != 'x') return type == type_of(letter, *x, unused);
  if (*x == XLA_FFI_DataType_INVALID) *x = type;
  return is_float(type) && type == *x;
}

class Fit {
 public:
  bool add(const std::string& described, const Array& array) {
    const std::vector<std::string> parts = words(described);
    const auto star = std::find(parts.begin(), parts.end(), "*");
    const size_t fixed = parts.size() - 1 - (star == parts.end() ? 0 : 1), rank = array.dims.size();
    if (!matches_type(parts[0][0], array.type, &x_) || rank < fixed || (star == parts.end() && rank != fixed))
      return false;
    if (parts[0][0] == 'n') indices_.push_back(&array);
    if (parts[0][0] == 't') shifts_.push_back(&array);
    auto dim = array.dims.begin();
    for (auto word = parts.begin() + 1; word != parts.end(); ++word) {
      if (*word != "*") {
        if (!bind(*word, *dim++)) return false;
        continue;
      }
      const std::vector<int64_t> rows(dim, dim + static_cast<int64_t>(rank - fixed));
      dim += static_cast<int64_t>(rank - fixed);
      if (has_rows_ && rows != rows_) return false;
      has_rows_ = true;
      rows_ = rows;
    }
    return true;
  }

  bool is_complete(const std::string& handler) {
    const auto within = [&](char letter, int64_t least, int64_t most) {
      const auto found = of_.find(letter);
      return found == of_.end() || (found->second >= least && found->second <= most);
    };
    const bool is_scan = handler.rfind("scan", 0) == 0, is_rescore = handler == "rescore",
               is_greatest = handler == "greatest";
    if (!within('c', 1, is_scan ? 256 : INT64_MAX) || !within('w', 1, kMostWidth)) return false;
    if (is_scan && of_['h'] != of_['c'] / 2 + of_['c'] % 2) return false;
    if (is_greatest && !within('k', 1, 16)) return false;
    if (is_rescore) return of_['d'] == 0 ? of_['l'] == 0 : of_['l'] > 0 && of_['l'] % of_['d'] == 0;
    if (!within('d', 1, INT64_MAX)) return false;
    if (of_.count('r') != 0 && (!within('r', 4, kMostWidth) || of_['r'] % 4 != 0)) return false;
    if (of_.count('p') != 0 && of_['p'] != of_['r'] / 4) return false;
    if (of_.count('g') != 0 && (!within('d', 1, kMostWidth) || of_['g'] != of_['d'] / 4 + (of_['d'] % 4 != 0))) {
      return false;
    }
    for (const Array* array : shifts_) {
      for (const char bits : array->contents) {
        if (static_cast<unsigned char>(bits) > 15) return false;
      }
    }
    for (const Array* array : indices_) {
      for (size_t i = 0; i < array->contents.size(); i += sizeof(int32_t)) {
        int32_t index;
        std::memcpy(&index, array->contents.data() + i, sizeof index);
        if (index < 0 || index >= of_['d']) return false;
      }
    }
    return true;
  }

 private:
  bool bind(const std::string& word, int64_t dim) {
    if (std::isdigit(word[0])) return dim == std::stoll(word);
    return of_.emplace(word[0], dim).first->second == dim;
  }

  XLA_FFI_DataType x_ = XLA_FFI_DataType_INVALID;
  std::map<char, int64_t> of_;
  std::vector<int64_t> rows_;
  bool has_rows_ = false;
  std::vector<const Array*> indices_, shifts_;
};

inline bool fits(const Signature& signature, const Call& call) {
  Fit fit;
  for (size_t i = 0; i < call.args.size(); ++i) {
    if (!fit.add(signature.args[i], call.args[i])) return false;
  }
  for (size_t i = 0; i < call.results.size(); ++i) {
    if (!fit.add(signature.results[i], call.results[i])) return false;
  }
  return fit.is_complete(signature.name);
}

}  // namespace jax_maddness::testing

#endif  // JAX_MADDNESS_TESTS_SIGNATURES_H_
