// The handlers, called as XLA calls them: first to ask which version of the FFI API they were compiled for, then with
// arrays of wrong ranks. What handlers compute is tested from Python, where XLA itself is the caller.
#include <string>
#include <vector>

#include "xla_ffi/tests/handler_calls.h"

namespace jax_maddness::testing {
namespace {

constexpr auto kU8 = XLA_FFI_DataType_U8, kS8 = XLA_FFI_DataType_S8, kS32 = XLA_FFI_DataType_S32,
               kF32 = XLA_FFI_DataType_F32;

// Returns the handler's error message; empty if it succeeds.
std::string message(const Call& call) { return run(call).error; }

// Calls the handler with every array in turn of every other rank up to 6: it must refuse each by name.
void test_ranks(const Call& call) {
  CHECK(message(call).empty(), "%s refuses right arrays: %s", call.name, message(call).c_str());
  const size_t args = call.args.size(), arrays = args + call.results.size();
  for (size_t i = 0; i < arrays; ++i) {
    for (size_t rank = 0; rank <= 6; ++rank) {
      Call wrong = call;
      std::vector<int64_t>& dims = i < args ? wrong.args[i].dims : wrong.results[i - args].dims;
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

// Right calls of all handlers: 2 rows of 3 features, 2 codebooks that project 4 of them, 5 outputs; 2 queries, 7
// vectors.
std::vector<Call> calls() {
  const Array x{kF32, {1, 2, 3}}, codes{kU8, {1, 2, 2}}, y{kF32, {1, 2, 5}}, sums{kS32, {1, 2, 5}};
  const Array indices{kS32, {1, 2, 4}}, thresholds{kF32, {1, 2, 15}};
  const Array features{kS32, {1, 2, 4}}, projections{kS8, {1, 2, 4, 4}}, integers{kS32, {1, 2, 15}},
      center{kF32, {1, 3}};
  const Array values{kU8, {1, 5, 2, 16}}, by_code{kU8, {1, 2, 16, 5}}, floats{kF32, {1, 5, 2, 16}}, scale{kF32, {1, 5}};
  const Array best{kS32, {2, 3}}, greatest{kS32, {1, 1, 5}};
  return {
      {encode_handler, "encode", {x, indices, thresholds}, {codes}},
      {aggregate_handler, "aggregate", {codes, values}, {sums}},
      {amm_handler, "amm", {x, indices, thresholds, values, scale, scale}, {y}},
      {amm_of_codes_handler, "amm_of_codes", {codes, values, scale, scale}, {y}},
      {amm_by_code_handler, "amm_by_code", {x, indices, thresholds, by_code, scale, scale}, {y}},
      {encode_oblique_handler, "encode_oblique", {x, features, projections, integers, center, center}, {codes}},
      {amm_oblique_handler,
       "amm_oblique",
       {x, features, projections, integers, center, center, values, scale, scale},
       {y}},
      {amm_oblique_by_code_handler,
       "amm_oblique_by_code",
       {x, features, projections, integers, center, center, by_code, scale, scale},
       {y}},
      {scan_handler, "scan", {{kU8, {1, 1, 64}}, {kU8, {2, 2, 16}}, {kS32, {}}}, {best, best}},
      {rescore_handler, "rescore", {{kF32, {2, 3}}, {kF32, {7, 3}}, {kS32, {2, 4}}}, {{kF32, {2, 4}}}},
      {greatest_handler, "greatest", {codes, {kU8, {5, 2, 16}}, {kU8, {1, 2}}}, {greatest, greatest}},
      {look_up_handler, "look_up", {codes, floats}, {y}},
      {look_up_gradient_handler, "look_up_gradient", {codes, y}, {floats}},
  };
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
  }
  std::printf("handlers: XLA FFI API %d.%d\n", XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
}
