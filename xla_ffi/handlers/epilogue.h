// What follows a product in the same call: an activation, and a residual that is added before it.
#ifndef JAX_MADDNESS_HANDLERS_EPILOGUE_H_
#define JAX_MADDNESS_HANDLERS_EPILOGUE_H_

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "xla_ffi/handlers/operands.h"

namespace jax_maddness {

// Every handler that returns y takes these two more, and both may be missing: a residual, which is its last operand,
// of the shape and type of y, and the attribute "activation", the name of one.
class EpilogueArguments {
 public:
  explicit EpilogueArguments(const EpilogueOperands& operands) {
    const auto& [rest, attributes] = operands;
    if (rest.size() > 1) throw InvalidArgument("there are " + std::to_string(rest.size()) + " operands too many.");
    if (rest.size() == 1) {
      const auto residual = rest.get<ffi::AnyBuffer>(0);
      if (!residual.has_value()) throw InvalidArgument("the residual must be an array.");
      residual_ = Named{"residual", *residual};
    }
    if (!attributes.contains("activation")) return;
    const auto name = attributes.get<std::string_view>("activation");
    if (!name.has_value()) throw InvalidArgument("the activation must be a string.");
    activation_ = activation_named(*name);
  }

  bool empty() const { return activation_ == Activation::kNone && !residual_.has_value(); }

  // Throws InvalidArgument unless they fit y.
  void check(const Named& y) const {
    if (!residual_.has_value()) return;
    const auto dims = residual_->buffer.dimensions(), like = y.buffer.dimensions();
    if (residual_->buffer.element_type() == y.buffer.element_type() &&
        std::equal(dims.begin(), dims.end(), like.begin(), like.end())) {
      return;
    }
    throw InvalidArgument(describe(*residual_) + " must have the shape and the type of " + describe(y) + ".");
  }

  Epilogue of(FloatType type, const Problem& problem, const Task& task) const noexcept {
    if (!residual_.has_value()) return {activation_, nullptr, 0};
    return {activation_, output_of(*residual_, type, problem, task, false).data, problem.outputs};
  }

 private:
  static Activation activation_named(std::string_view name) {
    constexpr std::pair<std::string_view, Activation> kNames[] = {
        {"relu", Activation::kRelu}, {"relu6", Activation::kRelu6},        {"hard_swish", Activation::kHardSwish},
        {"gelu", Activation::kGelu}, {"gelu_erf", Activation::kExactGelu}, {"silu", Activation::kSilu},
        {"tanh", Activation::kTanh}, {"sigmoid", Activation::kSigmoid},
    };
    for (const auto& [known, activation] : kNames) {
      if (name == known) return activation;
    }
    throw InvalidArgument("there is no activation '" + std::string(name) + "'.");
  }

  std::optional<Named> residual_;
  Activation activation_ = Activation::kNone;
};

// Rows whose z is in the cache at a time.
inline int64_t epilogue_rows(int64_t outputs) {
  constexpr int64_t kBlockBytes = 1 << 20;
  return std::clamp<int64_t>(kBlockBytes / (4 * outputs) / 16 * 16, 16, kManyRows);
}

// Runs kernel(task, output, scratch) for every task of a call, which computes y or, where an epilogue follows, z.
template <typename Kernel>
void write_outputs(const Tier& tier, const Problem& problem, size_t scratch_bytes, const Named& y, FloatType type,
                   const EpilogueOperands& operands, ffi::ThreadPool& pool, const Kernel& kernel) {
  const EpilogueArguments epilogue(operands);
  epilogue.check(y);
  if (problem.outputs == 0) return;
  if (epilogue.empty()) {
    return split_and_run(problem, scratch_bytes, y, pool, [&](const Task& task, char* scratch, bool streams) noexcept {
      kernel(task, output_of(y, type, problem, task, streams), scratch);
    });
  }
  const int64_t rows = epilogue_rows(problem.outputs);
  const size_t of_kernel = (scratch_bytes + 63) / 64 * 64;
  const auto of_z = static_cast<size_t>(std::min(rows, problem.rows) * problem.outputs) * sizeof(float);
  split_and_run(problem, of_kernel + of_z, y, pool, [&](const Task& task, char* scratch, bool streams) noexcept {
    auto* const z = reinterpret_cast<float*>(scratch + of_kernel);
    const int64_t outputs = task.outputs.count;
    for (int64_t n = 0; n < task.rows.count; n += rows) {
      const Task part{task.op, {task.rows.begin + n, std::min(rows, task.rows.count - n)}, task.outputs};
      kernel(part, {z, FloatType::kF32, outputs}, scratch);
      tier.epilogue(z, outputs, part.rows.count, outputs, epilogue.of(type, problem, part),
                    output_of(y, type, problem, part, streams));
    }
  });
}

}  // namespace jax_maddness

#endif  // JAX_MADDNESS_HANDLERS_EPILOGUE_H_
