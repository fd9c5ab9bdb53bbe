// The handlers, as XLA first calls them: to ask which version of the FFI API they were compiled for. What they compute
// is tested from Python, where XLA itself is the caller.
#include "xla_ffi/handlers/handlers.h"
#include "xla_ffi/tests/testing.h"

namespace jax_maddness::testing {
namespace {

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
  using namespace jax_maddness;
  testing::test_metadata(encode_handler, "encode");
  testing::test_metadata(aggregate_handler, "aggregate");
  testing::test_metadata(amm_handler, "amm");
  testing::test_metadata(amm_of_codes_handler, "amm_of_codes");
  testing::test_metadata(amm_by_code_handler, "amm_by_code");
  testing::test_metadata(encode_oblique_handler, "encode_oblique");
  testing::test_metadata(amm_oblique_handler, "amm_oblique");
  testing::test_metadata(amm_oblique_by_code_handler, "amm_oblique_by_code");
  testing::test_metadata(scan_handler, "scan");
  testing::test_metadata(rescore_handler, "rescore");
  testing::test_metadata(greatest_handler, "greatest");
  testing::test_metadata(look_up_handler, "look_up");
  testing::test_metadata(look_up_gradient_handler, "look_up_gradient");
  std::printf("handlers: XLA FFI API %d.%d\n", XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
}
