// From a Problem to kernel launches: checks, views as lines, block sizes, the choice of the template instance.
#pragma once

#include <algorithm>
#include <type_traits>

#include "criss_cross_attention.h"
#include "tiles.cuh"

namespace criss_cross {

// Budget of every kernel's shared memory, all of it dynamic: what the smallest multiprocessors since sm_80 give.
constexpr int kSharedLimit = 99 * 1024;

void count_launch();

inline bool is_valid(const Problem& problem) {
  const auto channels_fit = [](int channels, int most) {
    return channels >= 8 && channels <= most && channels % 8 == 0;
  };
  return problem.batch >= 0 && problem.height >= 1 && problem.height <= 4096 && problem.width >= 1 &&
         problem.width <= 4096 && channels_fit(problem.query_channels, 128) &&
         channels_fit(problem.value_channels, 1 << 20);
}

// The image's columns, or its rows.
template <typename T>
Lines<T> lines_of(T* data, int64_t batch, int64_t row, int64_t column, bool columns) {
  return columns ? Lines<T>{data, batch, column, row} : Lines<T>{data, batch, row, column};
}

template <typename T>
Lines<const T> lines_of(const View& view, bool columns) {
  return lines_of(static_cast<const T*>(view.data), view.batch, view.row, view.column, columns);
}

template <typename T>
Lines<T> lines_of(const MutableView& view, bool columns) {
  return lines_of(static_cast<T*>(view.data), view.batch, view.row, view.column, columns);
}

// Numbers (B, H, W), dense.
template <typename T>
Lines<T> lines_of(T* numbers, const Problem& problem, bool columns) {
  const int64_t row = problem.width;
  return lines_of(numbers, row * problem.height, row, int64_t{1}, columns);
}

// Warps per block, each with 16 of a line's places: as few blocks as `most` allows, then as few warps as these need. A
// line of 97 is one block of 7 warps, where two blocks of 64 rows would read the line twice and idle for 31 rows.
inline int warps_for(int length, int most) {
  const int needed = ceil_divide(length, kWarpRows);
  return ceil_divide(needed, ceil_divide(needed, most));
}

// The most warps, at most 8, with which the kernel's shared memory stays within what every device has.
template <typename Shared>
constexpr int most_warps() {
  int warps = 8;
  while (Shared::bytes(warps) > kSharedLimit) --warps;
  return warps;
}

// Blocks of one pass over the columns, or the rows: each line in tiles of its places, each tile in chunks of channels.
inline int64_t blocks_for(const Problem& problem, bool columns, int warps, int chunks) {
  const int lines = columns ? problem.width : problem.height, length = columns ? problem.height : problem.width;
  return int64_t{problem.batch} * lines * ceil_divide(length, warps * kWarpRows) * chunks;
}

template <typename Arguments>
cudaError_t launch(void (*kernel)(Arguments), int64_t blocks, int sides, int threads, int shared_bytes,
                   cudaStream_t stream, const Arguments& arguments) {
  if (blocks > INT32_MAX) return cudaErrorInvalidValue;
  if (shared_bytes > 0) {
    // Always the limit and not what this launch needs: another thread may launch the same kernel with more.
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedLimit);
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t configuration{};
  configuration.gridDim = dim3(static_cast<unsigned>(blocks), sides);
  configuration.blockDim = dim3(threads);
  configuration.dynamicSmemBytes = shared_bytes;
  configuration.stream = stream;
  count_launch();
  return cudaLaunchKernelEx(&configuration, kernel, arguments);
}

// Calls run(T{}, integral constant of the depth) for the problem's type and the next larger compiled depth; the
// missing channels are zeros in shared memory.
template <typename T, typename Run>
cudaError_t dispatch_depth(const Problem& problem, Run run) {
  if (problem.query_channels <= 32) return run(T{}, std::integral_constant<int, 32>{});
  if (problem.query_channels <= 64) return run(T{}, std::integral_constant<int, 64>{});
  return run(T{}, std::integral_constant<int, 128>{});
}

template <typename Run>
cudaError_t dispatch(const Problem& problem, Run run) {
  switch (problem.type) {
    case DataType::kFloat:
      return dispatch_depth<float>(problem, run);
    case DataType::kHalf:
      return dispatch_depth<__half>(problem, run);
    case DataType::kBFloat16:
      return dispatch_depth<__nv_bfloat16>(problem, run);
  }
  return cudaErrorInvalidValue;
}

}  // namespace criss_cross
