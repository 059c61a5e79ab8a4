// The forward entry points of criss_cross_attention.h.
#include "forward.cuh"

#include <atomic>

#include "launch.cuh"

namespace criss_cross {

namespace {

std::atomic<int64_t> launch_count{0};

}  // namespace

void count_launch() { ++launch_count; }

int64_t launches() { return launch_count; }

size_t forward_workspace(const Problem& problem) {
  return sizeof(float2) * problem.batch * problem.height * problem.width;
}

cudaError_t forward(const Problem& problem, const View& query, const View& key, const View& value,
                    const Residual* residual, const MutableView& output, float* logsumexp, void* workspace,
                    cudaStream_t stream) {
  if (!is_valid(problem)) return cudaErrorInvalidValue;
  if (problem.batch == 0) return cudaSuccess;
  return dispatch(problem, [&](auto number, auto depth) {
    using T = decltype(number);
    using Shared = ForwardShared<T, depth>;
    const auto pass = [&](bool columns, bool merge) {
      ForwardArguments<T> arguments{};
      arguments.query = lines_of<T>(query, columns);
      arguments.key = lines_of<T>(key, columns);
      arguments.value = lines_of<T>(value, columns);
      arguments.output = lines_of<T>(output, columns);
      arguments.columns = lines_of(static_cast<float2*>(workspace), problem, columns);
      arguments.logsumexp = lines_of(logsumexp, problem, columns);
      if (residual && !columns) {
        arguments.residual = lines_of<T>(residual->residual, columns);
        arguments.gamma = residual->gamma;
        arguments.gamma_type = residual->gamma_type;
      }
      arguments.lines = columns ? problem.width : problem.height;
      arguments.length = columns ? problem.height : problem.width;
      arguments.query_channels = problem.query_channels;
      arguments.value_channels = problem.value_channels;
      arguments.skip_self = columns;
      arguments.merge = merge;
      const int warps = warps_for(arguments.length, most_warps<Shared>());
      const int64_t blocks = blocks_for(problem, columns, warps, ceil_divide(problem.value_channels, kChunk));
      return launch(forward_kernel<T, depth>, blocks, 1, warps * kWarpThreads, Shared::bytes(warps), stream,
                    arguments);
    };
    // A column of one place holds only the place itself, which counts in its row: nothing to do, nothing to merge.
    const bool has_columns = problem.height > 1;
    const cudaError_t error = has_columns ? pass(true, false) : cudaSuccess;
    return error == cudaSuccess ? pass(false, has_columns) : error;
  });
}

}  // namespace criss_cross
