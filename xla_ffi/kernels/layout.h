// Every array that a kernel sees: shape, order, type, range. Read this file first.
//
// clang-format off: columns
//   name          shape                      type          range, order
//   x             [rows][features]           f32|bf16|f16  row-major, dense
//   x by feature  [features][rows]           f32|bf16|f16  the same numbers, feature by feature
//   indices       [codebooks][4]             i32           the feature compared at level l; 0 <= index < features
//   thresholds    [codebooks][15]            f32           heap order: node j of level l stands at 2^l - 1 + j
//   codes         [rows][codebooks]          u8            0..15; kernels that read codes use the low 4 bits only
//   tables        [outputs][codebooks][16]   u8            the 16 entries of a codebook are contiguous, and so are
//                                                          the codebooks of an output: 64 bytes are four codebooks
//   by code       [codebooks][16][outputs]   u8            the same entries in another order, for small batches
//   sums          [rows][outputs]            i32           sums[n][m] = sum over c of tables[m][c][codes[n][c]]
//   scale         [outputs]                  f32
//   offset        [outputs]                  f32
//   y             [rows][outputs]            as x          y[n][m] = fma(scale[m], f32(sums[n][m]), offset[m])
//   y by output   [outputs][rows]            as x          the same numbers, output by output
//
// An epilogue, where there is one: y is then computed from these in f32, and rounded once
//   z             [rows][outputs]            f32           fma(scale[m], f32(sums[n][m]), offset[m]), in scratch
//   residual      [rows][outputs]            as y          y[n][m] = activation(z[n][m] + residual[n][m])
//
// Oblique trees, which compare projections instead of features
//   features      [codebooks][width]         i32           the features that a codebook projects;
//                                                          0 <= feature < features of x
//   projections   [codebooks][4][width]      i8            one per level
//   thresholds    [codebooks][15]            i32           of projections, in heap order
//   center        [features]                 f32           finite
//   feature scale [features]                 f32           0, or 2^-100 .. 2^100
//
// Integer factors, beside the codes or without them. Inner indices stand in groups of four, so that a group of an output
// is 32 bits; the last group may be incomplete, and then holds anything in their place. No int8 is -128: one would do no
// harm, but tiers differ in what they make of it
//   center        [features]                 f32           of rounded features, as for oblique trees
//   feature scale [features]                 f32
//   down          [features / 4][rank][4]    i8
//   steps         [rank]                     f32
//   u             [rows][rank]               i8
//   up            [rank / 4][outputs][4]     i8
//   shift         [outputs]                  u8            0..15, of the sums of tables
//
// Training, where the entries of tables are floats; every sum is taken in the order of its index, from 0 on
//   values        [outputs][codebooks][16]   f32
//   y             [rows][outputs]            f32           y[n][m] = sum over c of values[m][c][codes[n][c]]
//   dy            [rows][outputs]            f32           the gradient with respect to y
//   gradient      [outputs][codebooks][16]   f32           the gradient with respect to values: [m][c][k] = sum of
//                                                          dy[n][m] over the rows n where codes[n][c] = k
//
// The greatest sums over the rows of an example, for maxima over positions
//   skipped       [rows]                     u8            not 0: the row does not count
//   sums          [k][outputs]               i32           the k greatest sums of each output, the greatest first; the
//                                                          lowest int32 where fewer rows count
//   positions     [k][outputs]               i32           the rows that have these sums, of equal sums the first row
//                                                          first; -1 where fewer rows count
//
// Retrieval, the other orientation: codes at rest, tables of queries, the k best vectors of each query
//   codes         [blocks][pairs][64]        u8            64 vectors side by side; a byte of pair p has the codes of
//                                                          codebooks 2 p (low 4 bits) and 2 p + 1 (high 4 bits)
//   tables        [queries][codebooks][16]   u8            the low 7 bits of an entry count; codebooks <= 256 is
//                                                          2 * pairs or one less
//   sums          [queries][k]               i32           the greatest of sum over c of tables[q][c][code c], best
//                                                          first; -1 where there are fewer than k vectors
//   positions     [queries][k]               i32           the vectors that have these sums: of equal sums the one
//                                                          with the least position first; -1 where there are fewer
//   ranges        [lists][2]                 i32           lists of vectors: the first block, and the number of vectors
//   levels        [queries][lists]           i32           the greatest of a query's say which lists it scans, and in
//                                                          which order: of equal ones the first list first. To the sums
//                                                          of a list, its level plus 2^23 - 1 is added, clamped to
//                                                          0 .. 2^23 - 1
//   queries       [queries][features]        f32|bf16|f16
//   vectors       [vectors][features]        f32|bf16|f16  not always of the type of queries
//   scores        [queries][k]               f32           sum over d of queries[q][d] * vectors[positions[q][i]][d],
//                                                          in f32, in any order; -infinity where there is no such
//                                                          vector
// clang-format on
//
// y is one fused multiply-add in f32: what XLA makes of the expression on a CPU that has one. f32(sum) rounds to
// nearest even, and so does the step from f32 to bf16 or f16. Rows of bf16 and f16 are widened exactly.
//
// A row walks each codebook's tree from node 0 (Blalock & Guttag 2021, Algorithm 1): at level l it goes right when
// x[indices[l]] > threshold of the node it stands on, as IEEE-754 f32 compares: ties and NaN go left, -0 equals +0, and
// denormals count (XLA runs its threads with denormals flushed, so a kernel that compares must clear DAZ and FTZ).
//
// Oblique trees are the other kind: at level l a row goes right when the sum over w of projections[l][w] *
// q[features[w]] is greater than the threshold; ties go left. q[d] = rint((x[d] - center[d]) * scale[d]) in f32, half
// to even, then clamped to -127 .. 127; NaN becomes -127. With 1 <= width <= 100,000 no sum overflows.
//
// Factors: with the features q as above, s[n][j] = sum over d of down[j][d] * q[n][d], and u[n][j] = rint(f32(s[n][j])
// * steps[j]), half to even, then clamped to -127 .. 127; NaN becomes -127. The sums that y rescales are (sums[n][m] <<
// shift[m]) + sum over j of up[m][j] * u[n][j], where sums[n][m] are those of the tables, if there are any. All sums
// are modulo 2^32. The int8 product leaves `down` out: u are the features q themselves, and rank is their number.
//
// By row, the int8 product takes z[d] = (x[d] - center[d]) * scale[d] in f32, denormals being flushed to zero as on
// XLA's threads, and a = the greatest |z[d]|, or NaN if one is NaN. Then q[d] = rint(z[d] * (127 / a)), or rint(z[d] *
// 0) where a is NaN or less than 2^-100, half to even, then clamped; NaN becomes -127. The scale of the row's outputs
// is scale[m] * a.
//
// The handlers (xla_ffi/handlers) have validated every size and index before a kernel runs. Pointers may be unaligned
// beyond their element type; nothing past the last element may be read or written.
#ifndef JAX_MADDNESS_KERNELS_LAYOUT_H_
#define JAX_MADDNESS_KERNELS_LAYOUT_H_

#include <cstddef>
#include <cstdint>

namespace jax_maddness {

constexpr int64_t kLevels = 4;                 // of a split tree
constexpr int64_t kNodes = 15;                 // inner nodes of a tree
constexpr int64_t kLeaves = 16;                // codes of a codebook
constexpr int64_t kMaxWidth = 100'000;         // of oblique trees; features and rank of factors
constexpr int64_t kSideBySide = 64;            // vectors of a block of codes at rest
constexpr int64_t kMaxCodebooks = 256;         // of codes at rest: sums fit 16 bits, as 256 * 127 < 2^15
constexpr int64_t kMostAdded = (1 << 23) - 1;  // to the sums of a list: with them below 2^24, exact in f32
constexpr int64_t kTileOutputs = 64;           // of float tables, at most
constexpr int64_t kTileCodebooks = 128;
constexpr int64_t kTilePieces = 64;  // rows of which pieces are added to, or from, a tile together, at most

enum class FloatType : uint8_t { kF32, kBF16, kF16 };

struct Rows {
  const void* data;
  FloatType type;
  int64_t count;
  int64_t features;  // also the distance between rows, in elements
};

// Rows that stand feature by feature. A task may own some of the rows.
struct ByFeature {
  const void* data;
  FloatType type;
  int64_t count;   // of rows
  int64_t stride;  // distance between features, in elements: >= count
};

struct Trees {
  const int32_t* indices;
  const float* thresholds;
  int64_t codebooks;
};

struct ObliqueTrees {
  const int32_t* features;
  const int8_t* projections;
  const int32_t* thresholds;
  const float* center;
  const float* scale;
  int64_t codebooks;
  int64_t width;
};

struct Tables {
  const uint8_t* values;
  const float* scale;   // null for `aggregate`, which does not rescale
  const float* offset;  // null for `aggregate`
  int64_t outputs;
  int64_t codebooks;
  int64_t stride = 0;  // tables by code only: bytes from one code's entries to the next one's. It is >= outputs, as a
                       // task may own some of the columns
};

struct Output {
  void* data;
  FloatType type;
  int64_t stride;        // distance between rows, in elements: >= outputs, so that a task may own some of the columns;
                         // of y by output, the distance between outputs: >= rows
  bool streams = false;  // advice: write whole lines past the cache
};

// Functions of one number, as jax.nn has them: gelu is the one by tanh, exact gelu the one by erf.
enum class Activation : uint8_t { kNone, kRelu, kRelu6, kHardSwish, kGelu, kExactGelu, kSilu, kSigmoid, kTanh };

// What follows a product before it reaches memory.
struct Epilogue {
  Activation activation;
  const void* residual;  // of the type of y; or null
  int64_t stride;        // of the residual: distance between rows, in elements
};

// From features to u.
struct Down {
  const float* center;
  const float* scale;
  const int8_t* values;  // null for the int8 product: u are the rounded features
  const float* steps;    // null there
  int64_t rank;          // 0 there
  bool by_row = false;   // of the int8 product only
};

// From u to outputs. A task may own some of the outputs.
struct Up {
  const int8_t* values;
  const uint8_t* shift;  // null where there are no tables
  const float* scale;
  const float* offset;
  int64_t rank;  // of the int8 product, the number of features
  int64_t outputs;
  int64_t stride;  // distance between groups, in outputs: >= outputs
};

struct Factors {
  Down down;
  Up up;
};

// Codes of rows, as the kernels of float tables take them. A task may own some of the rows and some of the codebooks.
struct RowCodes {
  const uint8_t* data;
  int64_t rows;
  int64_t codebooks;
  int64_t stride;  // distance between rows
};

// Float tables, or their gradient. They have as many codebooks as the codes that go with them.
template <typename Float>
struct FloatTables {
  Float* values;
  int64_t outputs;
  int64_t stride;  // distance between outputs, in elements
};

// Rows of float outputs, or of their gradient. They have as many columns as the tables have outputs.
template <typename Float>
struct FloatRows {
  Float* data;
  int64_t stride;  // distance between rows, in elements
};

// Codes at rest. A task may own some of the blocks.
struct Database {
  const uint8_t* codes;  // starts at the first block of the task
  int64_t pairs;
  int64_t first;  // position of the first vector
  int64_t count;  // of vectors: >= 1; the last block may have room for more
};

struct QueryTables {
  const uint8_t* values;
  int64_t queries;
  int64_t codebooks;
};

struct Best {
  int32_t* sums;
  int32_t* positions;
  int64_t k;
};

// The lists that queries scan, `probe` of them each. A task may own some of these, by their order.
struct Lists {
  const int32_t* ranges;  // clipped to the blocks of the database, and to `longest` blocks
  const int32_t* levels;
  int64_t count, longest;
  int64_t probe;       // <= count
  int64_t begin, end;  // of those that the task scans: 0 <= begin <= end <= probe
};

// The sum of every vector of a database: [queries][stride], of which the first `count` of each query are written.
struct AllSums {
  int16_t* sums;
  int64_t stride;
};

// The rows of a block of sums, among all rows of an example.
struct RowRange {
  const uint8_t* skipped;  // one for each row of the example: where it is not zero, the row does not count
  int64_t first, count;
};

constexpr int64_t kMaxGreatest = 16;

// The k greatest sums of each output, [k][outputs], the greatest first, and the rows that have them.
struct Greatest {
  int32_t* sums;
  int32_t* positions;
  int64_t k;
  int64_t stride;    // distance from the greatest sums to the second ones: >= outputs
  int64_t row_bits;  // bits of a row's number, if that and any sum fit into 31 bits together; 0: they may not fit
};

// Positions of vectors and their exact scores. A task may own some of the positions of each query.
struct Candidates {
  const int32_t* positions;
  float* scores;
  int64_t count;   // positions of each query
  int64_t stride;  // distance between queries
};

}  // namespace jax_maddness

#endif  // JAX_MADDNESS_KERNELS_LAYOUT_H_
