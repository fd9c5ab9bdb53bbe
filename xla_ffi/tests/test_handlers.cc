// The handlers, called as XLA calls them: first to ask which version of the FFI API they were compiled for, then with
// arrays of wrong ranks, lengths and types. What handlers compute is tested from Python, where XLA itself is the
// caller.
#include <algorithm>
#include <string>
#include <vector>

#include "xla_ffi/tests/handler_calls.h"

namespace jax_maddness::testing {
namespace {

constexpr auto kU8 = XLA_FFI_DataType_U8, kS8 = XLA_FFI_DataType_S8, kS16 = XLA_FFI_DataType_S16,
               kS32 = XLA_FFI_DataType_S32, kF32 = XLA_FFI_DataType_F32;

// Returns the handler's error message; empty if it succeeds.
std::string message(const Call& call) { return run(call).error; }

Array& array_of(Call& call, size_t i) {
  return i < call.args.size() ? call.args[i] : call.results[i - call.args.size()];
}

size_t count_arrays(const Call& call) { return call.args.size() + call.results.size(); }

// Calls the handler with every array in turn of every other rank up to 6: it must refuse each by name.
void test_ranks(const Call& call) {
  CHECK(message(call).empty(), "%s refuses right arrays: %s", call.name, message(call).c_str());
  for (size_t i = 0; i < count_arrays(call); ++i) {
    for (size_t rank = 0; rank <= 6; ++rank) {
      Call wrong = call;
      std::vector<int64_t>& dims = array_of(wrong, i).dims;
      if (rank == dims.size()) continue;
      dims.resize(rank, 1);
      CHECK(!message(wrong).empty(), "%s takes array %zu of rank %zu", call.name, i, rank);
    }
  }
  Call all = call;
  for (Array& array : all.args) array.dims.clear();
  for (Array& array : all.results) array.dims.clear();
  CHECK(!message(all).empty(), "%s takes arrays of rank 0", call.name);
}

// Calls a handler of oblique trees or factors with every dimension of every array in turn one longer, and one shorter:
// it must refuse that, as another array has the same dimension.
void test_dimensions(const Call& call) {
  const auto is_int8 = [](const Array& array) { return array.type == kS8; };
  if (std::none_of(call.args.begin(), call.args.end(), is_int8)) return;
  for (size_t i = 0; i < count_arrays(call); ++i) {
    for (const int64_t difference : {-1, 1}) {
      Call wrong = call;
      for (int64_t& dim : array_of(wrong, i).dims) {
        dim += difference;
        CHECK(!message(wrong).empty(), "%s takes an array %zu of another length", call.name, i);
        dim -= difference;
      }
    }
  }
}

void test_types(const Call& call) {
  for (size_t i = 0; i < count_arrays(call); ++i) {
    Call wrong = call;
    array_of(wrong, i).type = XLA_FFI_DataType_U32;
    CHECK(!message(wrong).empty(), "%s takes an array %zu of uint32", call.name, i);
  }
}

struct Sizes {
  int64_t ops = 1, rows = 2, outputs = 5;
};

// Right calls of all handlers: rows of 3 features, 2 codebooks that project 4 of them, rank 8; 2 queries, 7 vectors.
std::vector<Call> calls(const Sizes& sizes = {}) {
  const int64_t b = sizes.ops, n = sizes.rows, m = sizes.outputs;
  const Array x{kF32, {b, n, 3}}, by_feature{kF32, {b, 3, n}}, codes{kU8, {b, n, 2}}, y{kF32, {b, n, m}},
      by_output{kF32, {b, m, n}}, sums{kS32, {b, n, m}};
  const Array indices{kS32, {b, 2, 4}}, thresholds{kF32, {b, 2, 15}};
  const Array features{kS32, {b, 2, 4}}, projections{kS8, {b, 2, 4, 4}}, integers{kS32, {b, 2, 15}},
      center{kF32, {b, 3}};
  const Array values{kU8, {b, m, 2, 16}}, by_code{kU8, {b, 2, 16, m}}, floats{kF32, {b, m, 2, 16}}, scale{kF32, {b, m}};
  const Array down{kS8, {b, 1, 8, 4}}, steps{kF32, {b, 8}}, u{kS8, {b, n, 8}}, up{kS8, {b, 2, m, 4}},
      whole{kS8, {b, 1, m, 4}}, shift{kU8, {b, m}};
  const Array best{kS32, {2, 3}}, greatest{kS32, {b, 1, m}};
  std::vector<Call> all = {
      {encode_handler, "encode", {x, indices, thresholds}, {codes}},
      {aggregate_handler, "aggregate", {codes, values}, {sums}},
      {amm_handler, "amm", {x, indices, thresholds, values, scale, scale}, {y}},
      {amm_of_codes_handler, "amm_of_codes", {codes, values, scale, scale}, {y}},
      {amm_by_code_handler, "amm_by_code", {x, indices, thresholds, by_code, scale, scale}, {y}},
      {amm_by_feature_handler, "amm_by_feature", {by_feature, indices, thresholds, values, scale, scale}, {y}},
      {amm_by_feature_and_output_handler,
       "amm_by_feature_and_output",
       {by_feature, indices, thresholds, values, scale, scale},
       {by_output}},
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
      {factors_of_handler, "factors_of", {u, up, scale, scale}, {y}},
      {int8_handler, "int8", {x, center, center, whole, scale, scale}, {y}},
      {int8_by_row_handler, "int8_by_row", {x, center, center, whole, scale, scale}, {y}},
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
      {amm_of_codes_factors_handler, "amm_of_codes_factors", {codes, u, values, up, shift, scale, scale}, {y}},
      {scan_handler, "scan", {{kU8, {1, 1, 64}}, {kU8, {2, 2, 16}}, {kS32, {}}}, {best, best}},
      {scan_sums_handler, "scan_sums", {{kU8, {1, 1, 64}}, {kU8, {2, 2, 16}}, {kS32, {}}}, {{kS16, {2, 1, 64}}}},
      {scan_lists_handler,
       "scan_lists",
       {{kU8, {1, 1, 64}}, {kU8, {2, 2, 16}}, {kS32, {3, 2}}, {kS32, {2, 3}}, {kS32, {}}, {kS32, {}}},
       {best, best}},
      {rescore_handler, "rescore", {{kF32, {2, 3}}, {kF32, {7, 3}}, {kS32, {2, 4}}}, {{kF32, {2, 4}}}},
      {greatest_handler, "greatest", {codes, {kU8, {m, 2, 16}}, {kU8, {b, n}}}, {greatest, greatest}},
      {look_up_handler, "look_up", {codes, floats}, {y}},
      {look_up_gradient_handler, "look_up_gradient", {codes, y}, {floats}},
  };
  for (size_t i = 0, count = all.size(); i < count; ++i) {  // the products once more, with an epilogue
    Call call = all[i];
    if (call.args[0].type == kF32 && call.args[0].dims != x.dims) continue;  // rows by feature; queries
    if (call.results[0].type != kF32 || call.results[0].dims != y.dims || call.handler == look_up_handler) continue;
    call.args.push_back(y);
    call.activation = "relu";
    all.push_back(call);
  }
  return all;
}

void test_epilogue() {
  int64_t count = 0;
  for (Call call : calls()) {
    if (call.activation.empty()) continue;
    ++count;
    call.activation = "swish";
    CHECK(message(call).find("no activation 'swish'") != std::string::npos, "%s: %s", call.name, message(call).c_str());
    call.activation = "gelu";
    CHECK(message(call).empty(), "%s: %s", call.name, message(call).c_str());
    call.args.push_back(call.args.back());
    CHECK(message(call).find("too many") != std::string::npos, "%s: %s", call.name, message(call).c_str());
  }
  CHECK(count == 14, "%ld products take an epilogue", long(count));
}

// Calls the handler with array `i` replaced.
std::string message_with(Call call, size_t i, const Array& array) {
  array_of(call, i) = array;
  return message(call);
}

// Bounds of integer factors that no other array has.
void test_factor_bounds() {
  for (const int64_t rank : {0, 2, 6, 100'004}) {
    const Array u{kS8, {1, 1, rank}}, up{kS8, {1, (rank + 3) / 4, 1, 4}}, scale{kF32, {1, 1}}, y{kF32, {1, 1, 1}};
    CHECK(!message({factors_of_handler, "", {u, up, scale, scale}, {y}}).empty(), "factors_of takes rank %ld", rank);
    const Array x{kF32, {1, 1, 3}}, center{kF32, {1, 3}}, down{kS8, {1, 1, rank, 4}}, steps{kF32, {1, rank}};
    CHECK(!message({project_handler, "", {x, center, center, down, steps}, {u}}).empty(), "project takes rank %ld",
          rank);
  }
  for (const int64_t features : {0, 100'001}) {
    const Array x{kF32, {1, 1, features}}, center{kF32, {1, features}}, up{kS8, {1, (features + 3) / 4, 1, 4}},
        scale{kF32, {1, 1}}, y{kF32, {1, 1, 1}};
    CHECK(!message({int8_handler, "", {x, center, center, up, scale, scale}, {y}}).empty(), "int8 takes %ld features",
          features);
  }
  for (const Call& call : calls()) {
    for (size_t i = 0; i < call.args.size(); ++i) {
      const Array shift{kU8, {1, 5}, std::vector<char>(5, 16)};
      if (call.args[i].type != kU8 || call.args[i].dims != shift.dims) continue;
      CHECK(!message_with(call, i, shift).empty(), "%s takes a shift of 16", call.name);
      CHECK(message_with(call, i, {kU8, {1, 5}, std::vector<char>(5, 15)}).empty(), "%s refuses a shift of 15",
            call.name);
    }
  }
}

void test_metadata(XLA_FFI_Handler* handler, const char* name) {
  XLA_FFI_Metadata metadata = {};
  metadata.struct_size = XLA_FFI_Metadata_STRUCT_SIZE;
  XLA_FFI_Metadata_Extension extension = {};
  extension.extension_base.struct_size = XLA_FFI_Metadata_Extension_STRUCT_SIZE;
  extension.extension_base.type = XLA_FFI_Extension_Metadata;
  extension.metadata = &metadata;
  XLA_FFI_CallFrame frame = {};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.extension_start = &extension.extension_base;

  CHECK(handler(&frame) == nullptr, "%s refuses to state its version", name);
  CHECK(metadata.api_version.major_version == XLA_FFI_API_MAJOR, "%s: %d", name, metadata.api_version.major_version);
  CHECK(metadata.api_version.minor_version == XLA_FFI_API_MINOR, "%s: %d", name, metadata.api_version.minor_version);
}

}  // namespace
}  // namespace jax_maddness::testing

int main() {
  using namespace jax_maddness::testing;
  for (const Call& call : calls()) {
    test_metadata(call.handler, call.name);
    test_ranks(call);
    test_types(call);
    test_dimensions(call);
  }
  for (const Sizes& empty : {Sizes{0, 2, 5}, Sizes{1, 0, 5}, Sizes{1, 2, 0}}) {
    for (const Call& call : calls(empty)) {
      CHECK(message(call).empty(), "%s refuses empty arrays: %s", call.name, message(call).c_str());
    }
  }
  test_factor_bounds();
  test_epilogue();
  std::printf("handlers: XLA FFI API %d.%d\n", XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
}
