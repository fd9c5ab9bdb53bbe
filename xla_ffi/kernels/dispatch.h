// The choice of the tier that runs: the best that this CPU supports, unless the environment variable JAX_MADDNESS_TIER
// or set_tier names another.
#ifndef JAX_MADDNESS_KERNELS_DISPATCH_H_
#define JAX_MADDNESS_KERNELS_DISPATCH_H_

#include <string>
#include <vector>

#include "xla_ffi/kernels/kernels.h"

namespace jax_maddness {

// All tiers of this build, best first; the last one runs everywhere.
const std::vector<const Tier*>& all_tiers();

// Names of the tiers that this CPU can run, best first: "avx2, scalar".
std::string supported_tier_names();

// The tier that kernels run on, or null with `error` set when JAX_MADDNESS_TIER, read at the first call, names one that
// is unknown or unsupported. Threads may call it at any time.
const Tier* active_tier(std::string* error);

// Makes `name` the active tier; null goes back to the environment's choice, or the best. Returns an error message and
// changes nothing when `name` is unknown or unsupported, else an empty string.
std::string set_tier(const char* name);

}  // namespace jax_maddness

#endif  // JAX_MADDNESS_KERNELS_DISPATCH_H_
