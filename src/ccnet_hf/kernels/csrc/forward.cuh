// Criss-cross attention, forward (Huang et al., "CCNet", TPAMI 2020, section 3.2).
//
// Position u = (i, j) with query q_u attends to the H + W - 1 positions of its column and its row:
//     output_u = sum_v softmax_v(q_u . k_v) value_v,    v in column j without u, and in row i with u.
// The affinity map (H + W - 1 numbers per position) is never written to memory. One pass takes every line of one axis
// for itself, as attention of a line's places among each other with an online softmax: first the columns, where a
// place does not see itself, then the rows. The second pass merges the two: with denominators z_c and z_r of column
// and row, output = (z_c output_c + z_r output_r) / (z_c + z_r). Strides say what a line is: columns and rows are both
// read in place.
#pragma once

#include "criss_cross_attention.h"
#include "tiles.cuh"

namespace criss_cross {

// Channels of the value that one block sums: 64 of a thread's registers. Twice as many would halve how often scores
// are computed again (D multiply-adds for every 128) but also the number of warps that fit on a multiprocessor, and at
// B = 1 there are few blocks as it is.
constexpr int kChunk = 128;

// Places of the line in one step: short steps, since the lines are short and the first step waits for its copies.
template <typename T>
constexpr int kStep = 64 / sizeof(T);

// Copies under way are two steps long: one step's products are shorter than the way to device memory.
constexpr int kStages = 3;

template <typename T>
struct ForwardArguments {
  Lines<const T> query, key, value;
  Lines<T> output;                 // merged in place: the second pass reads what the first one wrote
  // The softmax' maximum x and denominator y = sum of exp(score - x) for the columns alone: the first pass writes them
  // and the second reads them. Not their log-sum-exp: beside a score of 1e10 it cannot hold the logarithm of y.
  Lines<float2> columns;
  Lines<float> logsumexp;          // written by the pass over rows
  Lines<const T> residual;         // null without one
  const void* gamma;
  DataType gamma_type;
  int lines, length;               // of one image
  int query_channels, value_channels;
  bool skip_self;                  // the pass over columns
  bool merge;                      // with what that pass wrote
};

// Shared memory: the block's queries, then for every stage a step of keys and of values.
template <typename T, int kDepth>
struct ForwardShared {
  static constexpr int kKeys = kStep<T> * kPitch<T, kDepth>;
  static constexpr int kStage = kKeys + kStep<T> * kPitch<T, kChunk>;

  static constexpr int bytes(int warps) {
    return (warps * kWarpRows * kPitch<T, kDepth> + kStages * kStage) * static_cast<int>(sizeof(T));
  }
};

// What a block does: consecutive blocks take the chunks of the same rows of one line, so that they find the line's
// queries and keys in the second-level cache.
struct Work {
  int image, line, first_row, first_channel;

  __device__ __forceinline__ Work(int lines, int length, int channels, int chunk) {
    const int rows = blockDim.x / kWarpThreads * kWarpRows;
    const int chunks = ceil_divide(channels, chunk), tiles = ceil_divide(length, rows);
    first_channel = blockIdx.x % chunks * chunk;
    first_row = blockIdx.x / chunks % tiles * rows;
    const int number = blockIdx.x / chunks / tiles;
    line = number % lines;
    image = number / lines;
  }
};

// The softmax of a warp's 16 rows while their scores come in: of each lane's two rows the maximum and the sum so far.
struct OnlineSoftmax {
  float maximum[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};

  // Turns scores into weights exp(score - maximum) and brings the sums of earlier weights to the new maximum.
  //
  // The difference is taken before the factor log2(e) of the base-2 exponential: folded into one multiply-add with the
  // maximum, the factor's rounding alone would be thousands at scores of 1e10. A line's first step has an unmasked
  // place for every row, so the maximum is finite from there on.
  template <int kTiles, int kSums>
  __device__ __forceinline__ void weigh(float (&scores)[kTiles][4], float (&sums)[kSums][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float found = maximum[half];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        found = fmaxf(found, fmaxf(scores[tile][2 * half], scores[tile][2 * half + 1]));
      }
      found = fmaxf(found, __shfl_xor_sync(kWholeWarp, found, 1));
      found = fmaxf(found, __shfl_xor_sync(kWholeWarp, found, 2));
      const float correction = __expf(maximum[half] - found);
      float added = 0.0f;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          float& score = scores[tile][2 * half + side];
          score = __expf(score - found);
          added += score;
        }
      }
      // Each lane keeps the sum of its own columns; the quad adds them up once, in finish().
      sum[half] = sum[half] * correction + added;
      maximum[half] = found;
#pragma unroll
      for (int tile = 0; tile < kSums; ++tile) {
        sums[tile][2 * half] *= correction;
        sums[tile][2 * half + 1] *= correction;
      }
    }
  }

  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      sum[half] += __shfl_xor_sync(kWholeWarp, sum[half], 1);
      sum[half] += __shfl_xor_sync(kWholeWarp, sum[half], 2);
    }
  }
};

// Scores of places beyond the line's end become -inf, and in the columns' pass every place's score with itself.
template <int kTiles>
__device__ __forceinline__ void mask_scores(float (&scores)[kTiles][4], int first_row, int first_place, int length,
                                            bool skip_self) {
  const int end = first_place + 8 * kTiles;
  const bool on_diagonal = skip_self && first_place < first_row + kWarpRows && first_row < end;
  if (end <= length && !on_diagonal) return;
  const Lane lane;
#pragma unroll
  for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = first_row + lane.row + i / 2 * 8, place = first_place + tile * 8 + 2 * lane.pair + i % 2;
      if (place >= length || (skip_self && place == row)) scores[tile][i] = -INFINITY;
    }
  }
}

__device__ __forceinline__ float read_number(const void* number, DataType type) {
  if (type == DataType::kHalf) return to_float(*static_cast<const __half*>(number));
  if (type == DataType::kBFloat16) return to_float(*static_cast<const __nv_bfloat16*>(number));
  return *static_cast<const float*>(number);
}

// One axis: a block sums one chunk of channels for 16 rows per warp.
// Budget in registers: half 128, float 168. In half precision two blocks of 8 warps fit on a multiprocessor.
template <typename T, int kDepth>
__global__ void __launch_bounds__(256, sizeof(T) == 2 ? 2 : 1) forward_kernel(const ForwardArguments<T> arguments) {
  using Shared = ForwardShared<T, kDepth>;
  const int warp = threadIdx.x / kWarpThreads, rows = blockDim.x / kWarpThreads * kWarpRows;
  const Work work(arguments.lines, arguments.length, arguments.value_channels, kChunk);
  const int length = arguments.length, channels = arguments.value_channels - work.first_channel;

  T* queries = reinterpret_cast<T*>(dynamic_shared_memory());
  T* stages = queries + rows * kPitch<T, kDepth>;
  const T* key = arguments.key.at(work.image, work.line);
  const T* value = arguments.value.at(work.image, work.line) + work.first_channel;

  // Belongs to the first step's copies, since no group is closed in between.
  load_tile<kDepth>(queries,
                    arguments.query.at(work.image, work.line) + work.first_row * arguments.query.place,
                    arguments.query.place, rows, length - work.first_row, arguments.query_channels);
  const auto load = [&](int step) {
    T* stage = stages + step % kStages * Shared::kStage;
    const int first = step * kStep<T>;
    load_tile<kDepth>(stage, key + first * arguments.key.place, arguments.key.place, kStep<T>, length - first,
                      arguments.query_channels);
    load_tile<kChunk>(stage + Shared::kKeys, value + first * arguments.value.place, arguments.value.place, kStep<T>,
                      length - first, channels);
  };

  float sums[kChunk / 8][4] = {};
  OnlineSoftmax softmax;
  const int first_row = work.first_row + warp * kWarpRows;
  pipeline<kStages>(ceil_divide(length, kStep<T>), load, [&](int step) {
    const T* stage = stages + step % kStages * Shared::kStage;
    float scores[kStep<T> / 8][4] = {};
    add_product_transposed<kDepth>(scores, queries + warp * kWarpRows * kPitch<T, kDepth>, stage);
    mask_scores(scores, first_row, step * kStep<T>, length, arguments.skip_self);
    softmax.weigh(scores, sums);
    add_product(sums, scores, stage + Shared::kKeys);
  });
  softmax.finish();

  // Normalise and merge; one block of a row's chunks writes the statistics for all.
  const bool writes = work.first_channel == 0 && Lane().pair == 0;
  float weight[2], other_weight[2] = {0.0f, 0.0f};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + Lane().row + 8 * half;
    float maximum = softmax.maximum[half], sum = softmax.sum[half];
    weight[half] = 1.0f / sum;
    if (row >= length) continue;
    float2* columns = arguments.columns.at(work.image, work.line) + row * arguments.columns.place;
    if (arguments.skip_self) {
      if (writes) *columns = {maximum, sum};
      continue;
    }
    if (arguments.merge) {
      const float2 other = *columns;
      const float larger = fmaxf(maximum, other.x);
      const float scale = __expf(maximum - larger), other_sum = other.y * __expf(other.x - larger);
      sum = sum * scale + other_sum;
      maximum = larger;
      weight[half] = scale / sum;
      other_weight[half] = other_sum / sum;
    }
    if (writes) {
      arguments.logsumexp.at(work.image, work.line)[row * arguments.logsumexp.place] = maximum + logf(sum);
    }
  }

  const bool scaled = arguments.residual.data != nullptr;
  const float gamma = scaled ? read_number(arguments.gamma, arguments.gamma_type) : 1.0f;
  T* output = arguments.output.at(work.image, work.line) + work.first_channel;
  const T* residual = arguments.residual.at(work.image, work.line) + work.first_channel;
  finish_rows(sums, length - first_row, channels, [&](int half, int row, int channel, float (&result)[8]) {
    T* target = output + (first_row + row) * arguments.output.place + channel;
    float other[8] = {};
    if (arguments.merge) read_channels(other, target);
#pragma unroll
    for (int i = 0; i < 8; ++i) result[i] = result[i] * weight[half] + other[i] * other_weight[half];
    if (scaled) {
      read_channels(other, residual + (first_row + row) * arguments.residual.place + channel);
#pragma unroll
      for (int i = 0; i < 8; ++i) result[i] = gamma * result[i] + other[i];
    }
    write_channels(target, result);
  });
}

}  // namespace criss_cross
