// The operands that several handlers have in common: their checks, and the part of them that belongs to a task.
#ifndef JAX_MADDNESS_HANDLERS_OPERANDS_H_
#define JAX_MADDNESS_HANDLERS_OPERANDS_H_

#include "xla_ffi/handlers/split.h"
#include "xla_ffi/handlers/trees.h"

namespace jax_maddness {

// Checks everything about x and its trees.
inline void check_trees(const Named& x, const TreeArrays& trees, Problem* problem) {
  problem->rows = count_rows(x);
  problem->ops = x.dim(0);
  problem->codebooks = trees.check(x);
}

inline void check_by_code(const Named& by_code, Problem* problem) {
  check_type(by_code, ffi::DataType::U8, "uint8");
  if (by_code.rank() != 4) throw InvalidArgument(describe(by_code) + " must have four dimensions.");
  problem->outputs = by_code.dim(3);
  check_shape(by_code, {problem->ops, problem->codebooks, kLeaves, problem->outputs});
}

inline void check_values(const Named& values, Problem* problem) {
  check_type(values, ffi::DataType::U8, "uint8");
  if (values.rank() != 4) throw InvalidArgument(describe(values) + " must have four dimensions.");
  problem->outputs = values.dim(1);
  check_shape(values, {problem->ops, problem->outputs, problem->codebooks, kLeaves});
}

inline void check_rescaling(const Named& scale, const Named& offset, const Problem& problem) {
  for (const Named& vector : {scale, offset}) {
    check_type(vector, ffi::DataType::F32, "float32");
    check_shape(vector, {problem.ops, problem.outputs});
  }
}

// Checks codes and tables of a call that is given codes.
inline Problem problem_of_codes(const Named& codes, const Named& values) {
  check_type(codes, ffi::DataType::U8, "uint8");
  Problem problem{0, count_rows(codes), codes.last(), 0, false};
  problem.ops = codes.dim(0);
  if (problem.codebooks < 1) throw InvalidArgument(describe(codes) + " must have at least one codebook.");
  if (problem.codebooks > kMostOfARow) throw InvalidArgument(describe(codes) + " is too large.");
  check_values(values, &problem);
  return problem;
}

inline Rows rows_of(const Named& x, FloatType type, const Problem& problem, const Task& task) {
  const int64_t features = x.last();
  const int64_t first = (task.op * problem.rows + task.rows.begin) * features;
  return {data<const char>(x) + first * width(type), type, task.rows.count, features};
}

// The rows of a task in an x whose rows stand feature by feature.
inline ByFeature by_feature_of(const Named& x, FloatType type, const Problem& problem, const Task& task) {
  const int64_t first = task.op * problem.rows * x.dim(1) + task.rows.begin;
  return {data<const char>(x) + first * width(type), type, task.rows.count, problem.rows};
}

// Rows of codes, or of u.
template <typename T>
const T* bytes_of(const Named& array, const Problem& problem, const Task& task) {
  return data<const T>(array) + (task.op * problem.rows + task.rows.begin) * array.last();
}

inline Tables tables_of(const Named& values, const Problem& problem, const Task& task) {
  const int64_t first = task.op * problem.outputs + task.outputs.begin;
  return {data<const uint8_t>(values) + first * problem.codebooks * kLeaves, nullptr, nullptr, task.outputs.count,
          problem.codebooks};
}

inline Tables by_code_of(const Named& by_code, const Problem& problem, const Task& task) {
  const int64_t first = task.op * problem.codebooks * kLeaves * problem.outputs + task.outputs.begin;
  return {
      data<const uint8_t>(by_code) + first, nullptr, nullptr, task.outputs.count, problem.codebooks, problem.outputs};
}

// A number, or more, of every output.
template <typename T>
const T* per_output(const Named& array, const Problem& problem, const Task& task) {
  return data<const T>(array) + task.op * problem.outputs + task.outputs.begin;
}

// Adds scale and offset to tables.
inline Tables rescaling(Tables tables, const Named& scale, const Named& offset, const Problem& problem,
                        const Task& task) {
  tables.scale = per_output<float>(scale, problem, task);
  tables.offset = per_output<float>(offset, problem, task);
  return tables;
}

inline Output output_of(const Named& y, FloatType type, const Problem& problem, const Task& task, bool streams) {
  const int64_t first = (task.op * problem.rows + task.rows.begin) * problem.outputs + task.outputs.begin;
  return {data<char>(y) + first * width(type), type, problem.outputs, streams};
}

// The rows and outputs of a task in a y that stands output by output.
inline Output by_output_of(const Named& y, FloatType type, const Problem& problem, const Task& task) {
  const int64_t first = (task.op * problem.outputs + task.outputs.begin) * problem.rows + task.rows.begin;
  return {data<char>(y) + first * width(type), type, problem.rows};
}

}  // namespace jax_maddness

#endif  // JAX_MADDNESS_HANDLERS_OPERANDS_H_
