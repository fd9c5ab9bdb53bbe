#include "xla_ffi/kernels/dispatch.h"

#include <atomic>
#include <cstdlib>

#if defined(__x86_64__) || defined(_M_X64)
#define JAX_MADDNESS_ON_x86_64(...) __VA_ARGS__
#else
#define JAX_MADDNESS_ON_x86_64(...)
#endif
#if defined(__aarch64__)
#define JAX_MADDNESS_ON_aarch64(...) __VA_ARGS__
#else
#define JAX_MADDNESS_ON_aarch64(...)
#endif
#define JAX_MADDNESS_ON_any(...) __VA_ARGS__

namespace jax_maddness {

#define JAX_MADDNESS_TIER(architecture, name, flags) JAX_MADDNESS_ON_##architecture(extern const Tier name##_tier;)
#include "xla_ffi/kernels/tiers.inc"
#undef JAX_MADDNESS_TIER

namespace {

// Set by set_tier; null: the default.
std::atomic<const Tier*> forced_tier{nullptr};

std::string unusable(const std::string& name, const std::string& source) {
  bool known = false;
  for (const Tier* tier : all_tiers()) known = known || name == tier->name;
  return source + " asks for the tier '" + name + "', which " +
         (known ? "this CPU does not support" : "does not exist in this build") +
         "; choose one of: " + supported_tier_names() + ".";
}

const Tier* find_supported(const std::string& name) {
  for (const Tier* tier : all_tiers()) {
    if (name == tier->name) return tier->supported() ? tier : nullptr;
  }
  return nullptr;
}

struct Default {
  const Tier* tier = nullptr;
  std::string error;
};

Default find_default() {
  Default choice;
  const char* name = std::getenv("JAX_MADDNESS_TIER");
  if (name != nullptr && *name != '\0') {
    choice.tier = find_supported(name);
    if (choice.tier == nullptr) choice.error = unusable(name, "The environment variable JAX_MADDNESS_TIER");
    return choice;
  }
  for (const Tier* tier : all_tiers()) {
    if (choice.tier == nullptr && tier->supported()) choice.tier = tier;
  }
  return choice;
}

}  // namespace

const std::vector<const Tier*>& all_tiers() {
#define JAX_MADDNESS_TIER(architecture, name, flags) JAX_MADDNESS_ON_##architecture(&name##_tier, )
  static const auto* tiers = new std::vector<const Tier*>{
#include "xla_ffi/kernels/tiers.inc"
  };
#undef JAX_MADDNESS_TIER
  return *tiers;
}

std::string supported_tier_names() {
  std::string names;
  for (const Tier* tier : all_tiers()) {
    if (tier->supported()) names += (names.empty() ? "" : ", ") + std::string(tier->name);
  }
  return names;
}

const Tier* active_tier(std::string* error) {
  if (const Tier* tier = forced_tier.load(std::memory_order_acquire)) return tier;
  static const Default* by_default = new Default(find_default());
  if (by_default->tier == nullptr) *error = by_default->error;
  return by_default->tier;
}

std::string set_tier(const char* name) {
  const Tier* tier = name == nullptr ? nullptr : find_supported(name);
  if (tier == nullptr && name != nullptr) return unusable(name, "set_tier");
  forced_tier.store(tier, std::memory_order_release);
  return "";
}

}  // namespace jax_maddness
