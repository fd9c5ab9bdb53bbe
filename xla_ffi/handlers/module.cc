// The Python module jax_maddness._ffi. Only jax_maddness/core/ffi.py imports it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <optional>
#include <string>

#include "xla_ffi/handlers/handlers.h"
#include "xla_ffi/kernels/dispatch.h"

namespace nb = nanobind;

namespace {

using jax_maddness::Tier;

nb::dict registrations() {
  const auto capsule = [](XLA_FFI_Handler* handler) { return nb::capsule(reinterpret_cast<void*>(handler)); };
  nb::dict handlers;
  handlers["jax_maddness_encode"] = capsule(jax_maddness::encode_handler);
  handlers["jax_maddness_aggregate"] = capsule(jax_maddness::aggregate_handler);
  handlers["jax_maddness_amm"] = capsule(jax_maddness::amm_handler);
  handlers["jax_maddness_amm_of_codes"] = capsule(jax_maddness::amm_of_codes_handler);
  handlers["jax_maddness_amm_by_code"] = capsule(jax_maddness::amm_by_code_handler);
  handlers["jax_maddness_amm_by_feature"] = capsule(jax_maddness::amm_by_feature_handler);
  handlers["jax_maddness_amm_by_feature_and_output"] = capsule(jax_maddness::amm_by_feature_and_output_handler);
  handlers["jax_maddness_encode_oblique"] = capsule(jax_maddness::encode_oblique_handler);
  handlers["jax_maddness_amm_oblique"] = capsule(jax_maddness::amm_oblique_handler);
  handlers["jax_maddness_amm_oblique_by_code"] = capsule(jax_maddness::amm_oblique_by_code_handler);
  handlers["jax_maddness_project"] = capsule(jax_maddness::project_handler);
  handlers["jax_maddness_factors"] = capsule(jax_maddness::factors_handler);
  handlers["jax_maddness_factors_of"] = capsule(jax_maddness::factors_of_handler);
  handlers["jax_maddness_int8"] = capsule(jax_maddness::int8_handler);
  handlers["jax_maddness_int8_by_row"] = capsule(jax_maddness::int8_by_row_handler);
  handlers["jax_maddness_amm_factors"] = capsule(jax_maddness::amm_factors_handler);
  handlers["jax_maddness_amm_factors_by_code"] = capsule(jax_maddness::amm_factors_by_code_handler);
  handlers["jax_maddness_amm_oblique_factors"] = capsule(jax_maddness::amm_oblique_factors_handler);
  handlers["jax_maddness_amm_oblique_factors_by_code"] = capsule(jax_maddness::amm_oblique_factors_by_code_handler);
  handlers["jax_maddness_amm_of_codes_factors"] = capsule(jax_maddness::amm_of_codes_factors_handler);
  handlers["jax_maddness_scan"] = capsule(jax_maddness::scan_handler);
  handlers["jax_maddness_scan_sums"] = capsule(jax_maddness::scan_sums_handler);
  handlers["jax_maddness_scan_lists"] = capsule(jax_maddness::scan_lists_handler);
  handlers["jax_maddness_greatest"] = capsule(jax_maddness::greatest_handler);
  handlers["jax_maddness_rescore"] = capsule(jax_maddness::rescore_handler);
  handlers["jax_maddness_look_up"] = capsule(jax_maddness::look_up_handler);
  handlers["jax_maddness_look_up_gradient"] = capsule(jax_maddness::look_up_gradient_handler);
  return handlers;
}

nb::list tiers(bool supported_only) {
  nb::list names;
  for (const Tier* tier : jax_maddness::all_tiers()) {
    if (!supported_only || tier->supported()) names.append(tier->name);
  }
  return names;
}

const char* active_tier() {
  std::string error;
  const Tier* tier = jax_maddness::active_tier(&error);
  if (tier == nullptr) throw nb::value_error(error.c_str());
  return tier->name;
}

void set_tier(const std::optional<std::string>& name) {
  const std::string error = jax_maddness::set_tier(name ? name->c_str() : nullptr);
  if (!error.empty()) throw nb::value_error(error.c_str());
}

}  // namespace

NB_MODULE(_ffi, m) {
  m.doc() = "XLA FFI handlers of jax_maddness for CPU, and the choice of the tier that they run on.";
  m.def("registrations", &registrations, "XLA FFI target name -> capsule of its handler.");
  m.def(
      "api_version", [] { return nb::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR); },
      "(major, minor) of the XLA FFI API that this module was compiled against.");
  m.def("tiers", [] { return tiers(false); }, "Names of all tiers of this build, best first.");
  m.def("supported_tiers", [] { return tiers(true); }, "Names of the tiers that this CPU can run, best first.");
  m.def("active_tier", &active_tier,
        "Name of the tier that handlers run on. ValueError when JAX_MADDNESS_TIER, read once, names none of them.");
  m.def(
      "set_tier", &set_tier, nb::arg("name").none(),
      "Makes handlers run on the tier `name`; None goes back to the environment's choice, or the best. ValueError when "
      "it is unknown or unsupported.");
}
