// All handlers with random calls, for as long as it is told to. A call whose arrays fit together must succeed, write
// every element, and give the same on every tier and on pools of any size; one whose arrays do not must be refused.
// What a handler takes is stated here once more, as signatures.
#include <cmath>
#include <limits>

#include "xla_ffi/tests/fuzz.h"
#include "xla_ffi/tests/signatures.h"

namespace jax_maddness::testing {
namespace {

constexpr int64_t kMostElements = 1 << 20;  // of an array that is allocated
// ---- Calls whose arrays fit together ----

struct Sizes {
  std::map<char, int64_t> of;
  std::vector<int64_t> rows;  // what * stands for
};

int64_t random_size(Random& random, int64_t least, int64_t most) {
  return random.below(4) == 0 ? least + random.below(2) : least + random.below(most - least + 1);
}

Sizes random_sizes(Random& random) {
  Sizes sizes;
  const bool large = random.below(10) == 0;
  const std::map<char, std::pair<int64_t, int64_t>> bounds = {{'o', {0, 3}},
                                                              {'c', {1, large ? 20 : 40}},
                                                              {'m', {0, large ? 700 : 140}},
                                                              {'d', {1, 70}},
                                                              {'w', {1, 40}},
                                                              {'p', {1, large ? 40 : 9}},
                                                              {'b', {0, 30}},
                                                              {'q', {0, 9}},
                                                              {'k', {1, 16}},
                                                              {'v', {0, 80}},
                                                              {'e', {0, 3}},
                                                              {'n', {0, 200}}};
  for (const auto& [letter, bound] : bounds) sizes.of[letter] = random_size(random, bound.first, bound.second);
  if (random.below(20) == 0) sizes.of['c'] = 100 + random.below(157);
  if (random.below(20) == 0) sizes.of['q'] = random.below(150);
  sizes.of['h'] = (sizes.of['c'] + 1) / 2;
  sizes.of['g'] = (sizes.of['d'] + 3) / 4;
  sizes.of['r'] = 4 * sizes.of['p'];
  sizes.of['l'] = sizes.of['d'] * (1 + random.below(3));
  for (int64_t i = random.below(3); i > 0; --i) sizes.rows.push_back(random_size(random, 0, large ? 60 : 9));
  if (sizes.rows.size() < 2 && random.below(2) == 0) sizes.rows.push_back(random_size(random, 0, large ? 1500 : 70));
  return sizes;
}

Array array_of(const std::string& described, const Sizes& sizes, XLA_FFI_DataType x, Random& random) {
  const std::vector<std::string> parts = words(described);
  Array array{type_of(parts[0][0], x, random), {}};
  for (auto word = parts.begin() + 1; word != parts.end(); ++word) {
    if (*word == "*") {
      array.dims.insert(array.dims.end(), sizes.rows.begin(), sizes.rows.end());
    } else {
      array.dims.push_back(std::isdigit((*word)[0]) ? std::stoll(*word) : sizes.of.at((*word)[0]));
    }
  }
  return array;
}

Call random_call(const Signature& signature, Random& random) {
  const Sizes sizes = random_sizes(random);
  const XLA_FFI_DataType x = kFloats[random.below(3)];
  Call call{signature.handler, signature.name, {}, {}};
  if (signature.is_product) call.activation = kActivationNames[random.below(std::size(kActivationNames))];
  for (const std::string& arg : signature.args) call.args.push_back(array_of(arg, sizes, x, random));
  for (const std::string& result : signature.results) call.results.push_back(array_of(result, sizes, x, random));
  return call;
}

// ---- Calls whose arrays may not ----

void spoil(Array* array, Random& random) {
  constexpr XLA_FFI_DataType types[] = {XLA_FFI_DataType_U8,  XLA_FFI_DataType_S8,  XLA_FFI_DataType_S32,
                                        XLA_FFI_DataType_F32, XLA_FFI_DataType_F16, XLA_FFI_DataType_BF16,
                                        XLA_FFI_DataType_S64, XLA_FFI_DataType_F64, XLA_FFI_DataType_PRED};
  constexpr int64_t huge[] = {INT64_MAX, int64_t{1} << 62, int64_t{1} << 40, int64_t{1} << 31};
  std::vector<int64_t>& dims = array->dims;
  const auto any = [&] { return dims.begin() + random.below(static_cast<int64_t>(dims.size())); };
  switch (random.below(dims.empty() ? 2 : 8)) {
    case 0:
      array->type = types[random.below(9)];
      break;
    case 1:
      dims.insert(dims.begin() + random.below(static_cast<int64_t>(dims.size()) + 1), random.below(4));
      break;
    case 2:
      dims.erase(any());
      break;
    case 3:
      *any() = 0;
      break;
    case 4:
      std::iter_swap(any(), any());
      break;
    case 5:  // empty, but of a size that overflows
      *any() = huge[random.below(4)];
      *any() = 0;
      break;
    case 6:
      dims.clear();
      break;
    default:
      const auto dim = any();
      *dim = std::max<int64_t>(0, std::min(*dim, INT64_MAX - 7) + random.below(7) - 3);
  }
}

// ---- Contents ----

template <typename T>
void put(std::vector<char>* bytes, size_t i, T value) {
  std::memcpy(bytes->data() + i, &value, sizeof value);
}

// Values of which sums are exact in any order, in a floating type.
void fill_with_small_integers(Array* array, Random& random) {
  for (size_t i = 0; i < array->contents.size(); i += array->width()) {
    const auto value = static_cast<float>(random.below(17) - 8);
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (array->type == XLA_FFI_DataType_F32) put(&array->contents, i, bits);
    if (array->type == XLA_FFI_DataType_BF16) put(&array->contents, i, static_cast<uint16_t>(bits >> 16));
    if (array->type == XLA_FFI_DataType_F16) {
      const uint32_t half =
          value == 0 ? 0 : (bits >> 31 << 15) | (((bits >> 23 & 0xff) - 112) << 10) | (bits >> 13 & 0x3ff);
      put(&array->contents, i, static_cast<uint16_t>(half));
    }
  }
}

void fill(char letter, Array* array, int64_t features, Random& random) {
  array->contents.resize(array->bytes());
  for (char& byte : array->contents) byte = static_cast<char>(random.below(256));
  if (letter == 'b') {  // -128 is in no array of int8, and tiers need not agree on it
    for (char& byte : array->contents) byte = static_cast<char>(std::max<int>(static_cast<signed char>(byte), -127));
  }
  if (letter == 't' && random.below(25) != 0) {
    for (char& byte : array->contents) byte = static_cast<char>(random.below(16));
  }
  if (letter == 'f') fill_with_small_integers(array, random);
  if (letter == 's' && array->type == XLA_FFI_DataType_F32) {
    const float special[] = {0.0f, -0.0f, 0.5f, 0x1p100f, 0x1p-100f, 1e-40f, std::numeric_limits<float>::infinity()};
    const bool is_special = random.below(3) == 0;
    for (size_t i = 0; i < array->contents.size(); i += sizeof(float)) {
      put(&array->contents, i, is_special && random.below(8) == 0 ? special[random.below(7)] : random.normal());
    }
  }
  if (letter == 'n' && array->type == XLA_FFI_DataType_S32 && features > 0) {
    for (size_t i = 0; i < array->contents.size(); i += sizeof(int32_t)) {
      put(&array->contents, i, static_cast<int32_t>(random.below(features)));
    }
    const int32_t wild[] = {-1, static_cast<int32_t>(features), INT32_MIN, INT32_MAX};
    if (random.below(25) == 0 && !array->contents.empty()) {
      const int64_t count = static_cast<int64_t>(array->contents.size() / sizeof(int32_t));
      put(&array->contents, sizeof(int32_t) * static_cast<size_t>(random.below(count)), wild[random.below(4)]);
    }
  }
}

// ---- One case ----

bool has_room(const Array& array) {
  double count = 1;
  for (const int64_t dim : array.dims) count *= static_cast<double>(dim);
  return array.is_empty() || count <= kMostElements;
}

bool is_huge(const Array& array) {
  return std::any_of(array.dims.begin(), array.dims.end(), [](int64_t dim) { return dim > kMostElements; });
}

// Bits, but NaNs of a floating type are all one: which of two NaNs an addition keeps is not defined.
bool is_same(const std::vector<char>& a, const std::vector<char>& b, XLA_FFI_DataType type) {
  if (a == b) return true;
  const Array element{type, {}};
  const uint32_t infinity = type == XLA_FFI_DataType_F32 ? 0x7f800000 : type == XLA_FFI_DataType_BF16 ? 0x7f80 : 0x7c00;
  const uint32_t magnitude = type == XLA_FFI_DataType_F32 ? 0x7fffffff : 0x7fff;
  for (size_t i = 0; i < a.size(); i += element.width()) {
    uint64_t one = 0, other = 0;  // as wide as the widest element
    std::memcpy(&one, a.data() + i, element.width());
    std::memcpy(&other, b.data() + i, element.width());
    if (one == other) continue;
    if (!is_float(type) || (one & magnitude) <= infinity || (other & magnitude) <= infinity) return false;
  }
  return true;
}

void check_equal(const Call& call, const Outcome& outcome, const Outcome& first, const char* tier) {
  CHECK(outcome.error == first.error, "%s, tier %s: '%s', not '%s'", call.name, tier, outcome.error.c_str(),
        first.error.c_str());
  for (size_t i = 0; i < call.results.size() && first.error.empty(); ++i) {
    CHECK(is_same(outcome.results[i], first.results[i], call.results[i].type), "%s, tier %s: result %zu differs",
          call.name, tier, i);
  }
}

void run_case(uint64_t seed) {
  static Pool small(1), medium(3), large(7);
  static Pool* const pools[] = {nullptr, &small, &medium, &large};
  Random random(seed);
  const Signature& signature =
      signatures()[static_cast<size_t>(random.below(static_cast<int64_t>(signatures().size())))];
  Call call = random_call(signature, random);
  const std::vector<std::string> described = words(signature.args[0]);
  const auto of_features = std::find(described.begin(), described.end(), "d");
  const int64_t features = of_features == described.end() || *(of_features - 1) == "*"
                               ? (call.args[0].dims.empty() ? 0 : call.args[0].dims.back())
                               : call.args[0].dims[static_cast<size_t>(of_features - described.begin() - 1)];
  const size_t args = call.args.size(), arrays = args + call.results.size();
  const auto at = [&](size_t i) { return i < args ? &call.args[i] : &call.results[i - args]; };
  for (int64_t i = random.below(2) * (1 + random.below(3)); i > 0; --i) {
    spoil(at(static_cast<size_t>(random.below(static_cast<int64_t>(arrays)))), random);
  }
  bool is_any_huge = false;
  for (size_t i = 0; i < arrays; ++i) {
    if (!has_room(*at(i))) return;
    is_any_huge = is_any_huge || is_huge(*at(i));
  }
  for (size_t i = 0; i < args; ++i) fill(signature.args[i][0], &call.args[i], features, random);
  const Outcome first = run(call);
  CHECK(is_any_huge || first.error.empty() == fits(signature, call), "%s: '%s'", call.name, first.error.c_str());
  for (const Tier* tier : supported_tiers()) {
    set_tier(tier->name);  // of the whole process: other threads see it change, and their results must not
    check_equal(call, run(call, pools[random.below(4)], 0x5a), first, tier->name);
  }
}

}  // namespace
}  // namespace jax_maddness::testing

int main(int argc, char** argv) {
  using namespace jax_maddness::testing;
  const Campaign campaign(argc, argv);
  const int64_t cases = run_campaign(campaign, run_case);
  std::printf("handlers: %ld cases from seed %lu on, on %ld threads and the tiers %s\n", long(cases), campaign.seed,
              long(campaign.threads), jax_maddness::supported_tier_names().c_str());
}
