// Criss-cross attention, backward, one axis at a time as forward.cuh.
//
// With P_uv = exp(q_u . k_v - logsumexp_u), computed again from the saved log-sum-exp over both axes, and delta_u =
// grad_u . output_u (the softmax' own term, one number a position):
//     grad_value_v = sum_u P_uv grad_u
//     grad_query_u = sum_v S_uv k_v,  grad_key_v = sum_u S_uv q_u,  S_uv = P_uv (grad_u . value_v - delta_u).
// Each sum is a block's own: rows are what is summed for, steps go along the line. So nothing is added by two blocks,
// results are the same in every run, and no atomics or fp32 copies of the gradients are needed. The price is that the
// scores are computed once for every sum; what one block would save by making all three is more than undone by the
// accumulators of C channels it would have to hold. The rows' pass adds to what the columns' pass wrote.
#pragma once

#include "criss_cross_attention.h"
#include "forward.cuh"
#include "tiles.cuh"

namespace criss_cross {

template <typename T>
struct BackwardArguments {
  Lines<const T> grad, query, key, value;
  Lines<T> grad_query, grad_key, grad_value;
  Lines<const float> logsumexp, delta;
  int lines, length;
  int query_channels, value_channels;
  bool skip_self;
  bool add;  // to what the other axis' pass wrote
};

template <typename T>
struct DeltaArguments {
  Lines<const T> grad, output;
  float* delta;
  int height, width, channels;
  int64_t positions;
};

// delta: one warp a position, 16 bytes a lane at a time.
// Budget in registers: half 40, float 40.
template <typename T>
__global__ void __launch_bounds__(256) delta_kernel(const DeltaArguments<T> arguments) {
  const int64_t position = int64_t{blockIdx.x} * (blockDim.x / kWarpThreads) + threadIdx.x / kWarpThreads;
  if (position >= arguments.positions) return;
  const int column = position % arguments.width;
  const int row = position / arguments.width % arguments.height;
  const int image = position / arguments.width / arguments.height;
  const T* grad = arguments.grad.at(image, row) + column * arguments.grad.place;
  const T* output = arguments.output.at(image, row) + column * arguments.output.place;
  float sum = 0.0f;
  for (int channel = Lane().number * 8; channel < arguments.channels; channel += kWarpThreads * 8) {
    float left[8], right[8];
    read_channels(left, grad + channel);
    read_channels(right, output + channel);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(left[i], right[i], sum);
  }
#pragma unroll
  for (int distance = 1; distance < kWarpThreads; distance *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, distance);
  if (Lane().number == 0) arguments.delta[position] = sum;
}

// The weight of a score, at most 1 also where the log-sum-exp of huge scores was rounded; NaN stays NaN.
__device__ __forceinline__ float weight_of(float score, float logsumexp) {
  return __expf(minimum_or_nan(score - logsumexp, 0.0f));
}

template <typename T>
__device__ __forceinline__ void write_gradient(T* target, float (&gradient)[8], bool add) {
  if (add) {
    float other[8];
    read_channels(other, target);
#pragma unroll
    for (int i = 0; i < 8; ++i) gradient[i] += other[i];
  }
  write_channels(target, gradient);
}

// Shared memory: the block's keys, then for every stage a step of queries, of gradients and of their log-sum-exp.
template <typename T, int kDepth>
struct GradValueShared {
  static constexpr int kQueries = kStep<T> * kPitch<T, kDepth>;
  static constexpr int kGrads = kStep<T> * kPitch<T, kChunk>;
  static constexpr int kNumbers = kStep<T> * static_cast<int>(sizeof(float) / sizeof(T));
  static constexpr int kStage = kQueries + kGrads + kNumbers;

  static constexpr int bytes(int warps) {
    return (warps * kWarpRows * kPitch<T, kDepth> + kStages * kStage) * static_cast<int>(sizeof(T));
  }
};

// grad_value: the forward kernel with the parts of queries and keys exchanged, and weights that are known.
// Budget in registers: half 128, float 168.
template <typename T, int kDepth>
__global__ void __launch_bounds__(256, sizeof(T) == 2 ? 2 : 1)
    grad_value_kernel(const BackwardArguments<T> arguments) {
  using Shared = GradValueShared<T, kDepth>;
  const int warp = threadIdx.x / kWarpThreads, rows = blockDim.x / kWarpThreads * kWarpRows;
  const Work work(arguments.lines, arguments.length, arguments.value_channels, kChunk);
  const int length = arguments.length, channels = arguments.value_channels - work.first_channel;

  T* keys = reinterpret_cast<T*>(dynamic_shared_memory());
  T* stages = keys + rows * kPitch<T, kDepth>;
  const T* query = arguments.query.at(work.image, work.line);
  const T* grad = arguments.grad.at(work.image, work.line) + work.first_channel;
  const float* logsumexp = arguments.logsumexp.at(work.image, work.line);

  load_tile<kDepth>(keys, arguments.key.at(work.image, work.line) + work.first_row * arguments.key.place,
                    arguments.key.place, rows, length - work.first_row, arguments.query_channels);
  const auto load = [&](int step) {
    T* stage = stages + step % kStages * Shared::kStage;
    const int first = step * kStep<T>;
    load_tile<kDepth>(stage, query + first * arguments.query.place, arguments.query.place, kStep<T>, length - first,
                      arguments.query_channels);
    load_tile<kChunk>(stage + Shared::kQueries, grad + first * arguments.grad.place, arguments.grad.place, kStep<T>,
                      length - first, channels);
    load_numbers(reinterpret_cast<float*>(stage + Shared::kQueries + Shared::kGrads),
                 logsumexp + first * arguments.logsumexp.place, arguments.logsumexp.place, kStep<T>, length - first);
  };

  float sums[kChunk / 8][4] = {};
  const int first_row = work.first_row + warp * kWarpRows;
  pipeline<kStages>(ceil_divide(length, kStep<T>), load, [&](int step) {
    const T* stage = stages + step % kStages * Shared::kStage;
    const float* step_logsumexp = reinterpret_cast<const float*>(stage + Shared::kQueries + Shared::kGrads);
    float weights[kStep<T> / 8][4] = {};
    add_product_transposed<kDepth>(weights, keys + warp * kWarpRows * kPitch<T, kDepth>, stage);
    mask_scores(weights, first_row, step * kStep<T>, length, arguments.skip_self);
#pragma unroll
    for (int tile = 0; tile < kStep<T> / 8; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weights[tile][i] = weight_of(weights[tile][i], step_logsumexp[tile * 8 + 2 * Lane().pair + i % 2]);
      }
    }
    add_product(sums, weights, stage + Shared::kQueries);
  });

  T* target = arguments.grad_value.at(work.image, work.line) + first_row * arguments.grad_value.place +
              work.first_channel;
  finish_rows(sums, length - first_row, channels, [&](int, int row, int channel, float (&gradient)[8]) {
    write_gradient(target + row * arguments.grad_value.place + channel, gradient, arguments.add);
  });
}

// Places of the line and channels of the value in one step of grad_query and grad_key. All C channels of a place are
// needed for one gradient of a score, so they stream through shared memory on both sides of the product; wide steps
// read the rows' side less often.
template <typename T>
constexpr int kWideStep = 128 / sizeof(T);
template <typename T>
constexpr int kSlice = 128 / sizeof(T);

// Two stages: with 64 channels of up to 128 + 64 places each, a third would leave room for one block only.
constexpr int kSliceStages = 2;

// Shared memory: the block's rows of query channels; two buffers of a step's, with log-sum-exp and delta; two stages
// of value channels, for the block's rows and the step's places.
template <typename T, int kDepth>
struct GradScoresShared {
  static constexpr int kNumbers = kWideStep<T> * static_cast<int>(sizeof(float) / sizeof(T));
  static constexpr int kVectors = kWideStep<T> * kPitch<T, kDepth>;
  static constexpr int kBuffer = kVectors + 2 * kNumbers;

  __host__ __device__ static constexpr int stage(int warps) {
    return (warps * kWarpRows + kWideStep<T>) * kPitch<T, kSlice<T>>;
  }

  static constexpr int bytes(int warps) {
    return (warps * kWarpRows * kPitch<T, kDepth> + 2 * kBuffer + kSliceStages * stage(warps)) *
           static_cast<int>(sizeof(T));
  }
};

// grad_query (blockIdx.y = 0: rows are queries, steps go along the keys) and grad_key (1: the other way round). One
// launch for both: at B = 1 either alone would leave multiprocessors idle.
// Budget in registers: half 128, half/128 232, float 168, float/128 232. Up to 64 query channels in half precision two
// blocks of 8 warps fit on a multiprocessor with 228 KB (sm_90), one on an sm_80.
template <typename T, int kDepth>
__global__ void __launch_bounds__(256, sizeof(T) == 2 && kDepth <= 64 ? 2 : 1)
    grad_scores_kernel(const BackwardArguments<T> arguments) {
  using Shared = GradScoresShared<T, kDepth>;
  const bool of_keys = blockIdx.y == 1;
  const int warps = blockDim.x / kWarpThreads, warp = threadIdx.x / kWarpThreads, rows = warps * kWarpRows;
  const Work work(arguments.lines, arguments.length, kDepth, kDepth);
  const int length = arguments.length, slices = ceil_divide(arguments.value_channels, kSlice<T>);

  const Lines<const T> row_lines = of_keys ? arguments.key : arguments.query;
  const Lines<const T> step_lines = of_keys ? arguments.query : arguments.key;
  const Lines<const T> row_value_lines = of_keys ? arguments.value : arguments.grad;
  const Lines<const T> step_value_lines = of_keys ? arguments.grad : arguments.value;
  const T* step_vectors = step_lines.at(work.image, work.line);
  const T* row_values = row_value_lines.at(work.image, work.line) + work.first_row * row_value_lines.place;
  const T* step_values = step_value_lines.at(work.image, work.line);
  const float* logsumexp = arguments.logsumexp.at(work.image, work.line);
  const float* delta = arguments.delta.at(work.image, work.line);

  T* row_vectors = reinterpret_cast<T*>(dynamic_shared_memory());
  T* buffers = row_vectors + rows * kPitch<T, kDepth>;
  T* stages = buffers + 2 * Shared::kBuffer;

  load_tile<kDepth>(row_vectors, row_lines.at(work.image, work.line) + work.first_row * row_lines.place,
                    row_lines.place, rows, length - work.first_row, arguments.query_channels);
  const auto load = [&](int step) {
    const int slice = step % slices, first = step / slices * kWideStep<T>, channel = slice * kSlice<T>;
    T* stage = stages + step % kSliceStages * Shared::stage(warps);
    load_tile<kSlice<T>>(stage, row_values + channel, row_value_lines.place, rows, length - work.first_row,
                         arguments.value_channels - channel);
    load_tile<kSlice<T>>(stage + rows * kPitch<T, kSlice<T>>, step_values + first * step_value_lines.place + channel,
                         step_value_lines.place, kWideStep<T>, length - first, arguments.value_channels - channel);
    if (slice > 0) return;
    T* buffer = buffers + step / slices % 2 * Shared::kBuffer;
    load_tile<kDepth>(buffer, step_vectors + first * step_lines.place, step_lines.place, kWideStep<T>, length - first,
                      arguments.query_channels);
    if (!of_keys) return;
    float* numbers = reinterpret_cast<float*>(buffer + Shared::kVectors);
    load_numbers(numbers, logsumexp + first * arguments.logsumexp.place, arguments.logsumexp.place, kWideStep<T>,
                 length - first);
    load_numbers(numbers + kWideStep<T>, delta + first * arguments.delta.place, arguments.delta.place, kWideStep<T>,
                 length - first);
  };

  // The statistics belong to the query: to the row in grad_query's blocks, to the step's place in grad_key's.
  const int first_row = work.first_row + warp * kWarpRows;
  float row_logsumexp[2] = {}, row_delta[2] = {};
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first_row + Lane().row + 8 * half;
    if (of_keys || row >= length) continue;
    row_logsumexp[half] = logsumexp[row * arguments.logsumexp.place];
    row_delta[half] = delta[row * arguments.delta.place];
  }

  float sums[kDepth / 8][4] = {};
  float grad_weights[kWideStep<T> / 8][4] = {};
  pipeline<kSliceStages>(ceil_divide(length, kWideStep<T>) * slices, load, [&](int step) {
    const T* stage = stages + step % kSliceStages * Shared::stage(warps);
    add_product_transposed<kSlice<T>>(grad_weights, stage + warp * kWarpRows * kPitch<T, kSlice<T>>,
                                      stage + rows * kPitch<T, kSlice<T>>);
    if (step % slices < slices - 1) return;

    const T* buffer = buffers + step / slices % 2 * Shared::kBuffer;
    const float* numbers = reinterpret_cast<const float*>(buffer + Shared::kVectors);
    float scores[kWideStep<T> / 8][4] = {};
    add_product_transposed<kDepth>(scores, row_vectors + warp * kWarpRows * kPitch<T, kDepth>, buffer);
    mask_scores(scores, first_row, step / slices * kWideStep<T>, length, arguments.skip_self);
#pragma unroll
    for (int tile = 0; tile < kWideStep<T> / 8; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int place = tile * 8 + 2 * Lane().pair + i % 2;
        const float weight = weight_of(scores[tile][i], of_keys ? numbers[place] : row_logsumexp[i / 2]);
        const float place_delta = of_keys ? numbers[kWideStep<T> + place] : row_delta[i / 2];
        scores[tile][i] = weight * (grad_weights[tile][i] - place_delta);
        grad_weights[tile][i] = 0.0f;
      }
    }
    add_product(sums, scores, buffer);
  });

  const Lines<T> target_lines = of_keys ? arguments.grad_key : arguments.grad_query;
  T* target = target_lines.at(work.image, work.line) + first_row * target_lines.place;
  finish_rows(sums, length - first_row, arguments.query_channels,
              [&](int, int row, int channel, float (&gradient)[8]) {
                write_gradient(target + row * target_lines.place + channel, gradient, arguments.add);
              });
}

}  // namespace criss_cross
