// The handlers, called as XLA calls them: first to ask which version of the FFI API they were compiled for, then with
// arrays of wrong ranks. Dimensions and contents lie in memory of exactly their size, so that AddressSanitizer notices
// what a handler reads beside them. What handlers compute is tested from Python, where XLA itself is the caller.
#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "xla_ffi/handlers/handlers.h"
#include "xla_ffi/tests/testing.h"

struct XLA_FFI_Error {
  std::string message;
};

namespace jax_maddness::testing {
namespace {

constexpr auto kU8 = XLA_FFI_DataType_U8, kS8 = XLA_FFI_DataType_S8, kS32 = XLA_FFI_DataType_S32,
               kF32 = XLA_FFI_DataType_F32;

struct Array {
  XLA_FFI_DataType type;
  std::vector<int64_t> dims;
};

struct Call {
  XLA_FFI_Handler* handler;
  const char* name;
  std::vector<Array> args, results;
};

// The runtime of a process without a thread pool.
XLA_FFI_Error* create_error(XLA_FFI_Error_Create_Args* args) { return new XLA_FFI_Error{args->message}; }
void get_message(XLA_FFI_Error_GetMessage_Args* args) { args->message = args->error->message.c_str(); }
void destroy_error(XLA_FFI_Error_Destroy_Args* args) { delete args->error; }
XLA_FFI_Error* schedule(XLA_FFI_ThreadPool_Schedule_Args*) { return new XLA_FFI_Error{"no pool"}; }
XLA_FFI_Error* num_threads(XLA_FFI_ThreadPool_NumThreads_Args*) { return new XLA_FFI_Error{"no pool"}; }

XLA_FFI_Api runtime() {
  XLA_FFI_Api api = {};
  api.struct_size = sizeof(api);
  api.api_version.struct_size = XLA_FFI_Api_Version_STRUCT_SIZE;
  api.api_version.major_version = XLA_FFI_API_MAJOR;
  api.api_version.minor_version = XLA_FFI_API_MINOR;
  api.XLA_FFI_Error_Create = create_error;
  api.XLA_FFI_Error_GetMessage = get_message;
  api.XLA_FFI_Error_Destroy = destroy_error;
  api.XLA_FFI_ThreadPool_Schedule = schedule;
  api.XLA_FFI_ThreadPool_NumThreads = num_threads;
  return api;
}

// The arrays of a call, in the form in which XLA passes them.
class Buffers {
 public:
  explicit Buffers(const std::vector<Array>& arrays) : buffers_(arrays.size()) {
    for (size_t i = 0; i < arrays.size(); ++i) {
      const Array& array = arrays[i];
      const int64_t count =
          std::accumulate(array.dims.begin(), array.dims.end(), int64_t{1}, std::multiplies<int64_t>());
      const size_t bytes = static_cast<size_t>(count) * (array.type == kU8 || array.type == kS8 ? 1 : 4);
      contents_.emplace_back(new char[bytes]());
      dims_.emplace_back(new int64_t[array.dims.size()]);
      std::copy(array.dims.begin(), array.dims.end(), dims_.back().get());
      buffers_[i].struct_size = XLA_FFI_Buffer_STRUCT_SIZE;
      buffers_[i].dtype = array.type;
      buffers_[i].data = contents_.back().get();
      buffers_[i].rank = static_cast<int64_t>(array.dims.size());
      buffers_[i].dims = dims_.back().get();
      pointers_.push_back(&buffers_[i]);
    }
  }

  void** pointers() { return pointers_.data(); }
  int64_t size() const { return static_cast<int64_t>(pointers_.size()); }

 private:
  std::vector<XLA_FFI_Buffer> buffers_;
  std::vector<std::unique_ptr<char[]>> contents_;
  std::vector<std::unique_ptr<int64_t[]>> dims_;
  std::vector<void*> pointers_;
};

// Returns the handler's error message; empty if it succeeds.
std::string message(const Call& call) {
  static const XLA_FFI_Api api = runtime();
  Buffers args(call.args), results(call.results);
  std::vector<XLA_FFI_ArgType> arg_types(call.args.size(), XLA_FFI_ArgType_BUFFER);
  std::vector<XLA_FFI_RetType> result_types(call.results.size(), XLA_FFI_RetType_BUFFER);
  XLA_FFI_CallFrame frame = {};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = &api;
  frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
  frame.args.struct_size = XLA_FFI_Args_STRUCT_SIZE;
  frame.args.size = args.size();
  frame.args.types = arg_types.data();
  frame.args.args = args.pointers();
  frame.rets.struct_size = XLA_FFI_Rets_STRUCT_SIZE;
  frame.rets.size = results.size();
  frame.rets.types = result_types.data();
  frame.rets.rets = results.pointers();
  frame.attrs.struct_size = XLA_FFI_Attrs_STRUCT_SIZE;
  const std::unique_ptr<XLA_FFI_Error> error(call.handler(&frame));
  return error ? error->message : "";
}

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
