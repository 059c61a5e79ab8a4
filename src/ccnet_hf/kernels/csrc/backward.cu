// The backward entry points of criss_cross_attention.h.
#include "backward.cuh"

#include "launch.cuh"

namespace criss_cross {

namespace {

constexpr int kDeltaThreads = 256;

template <typename T>
cudaError_t launch_delta(const Problem& problem, const View& grad, const View& output, float* delta,
                         cudaStream_t stream) {
  DeltaArguments<T> arguments{};
  arguments.grad = lines_of<T>(grad, false);
  arguments.output = lines_of<T>(output, false);
  arguments.delta = delta;
  arguments.height = problem.height;
  arguments.width = problem.width;
  arguments.channels = problem.value_channels;
  arguments.positions = int64_t{problem.batch} * problem.height * problem.width;
  const int64_t blocks = ceil_divide(arguments.positions, kDeltaThreads / kWarpThreads);
  return launch(delta_kernel<T>, blocks, 1, kDeltaThreads, 0, stream, arguments);
}

}  // namespace

size_t backward_workspace(const Problem& problem) {
  return sizeof(float) * problem.batch * problem.height * problem.width;
}

cudaError_t backward(const Problem& problem, const View& grad, const View& query, const View& key, const View& value,
                     const View& output, const float* logsumexp, const MutableView& grad_query,
                     const MutableView& grad_key, const MutableView& grad_value, void* workspace,
                     cudaStream_t stream) {
  if (!is_valid(problem)) return cudaErrorInvalidValue;
  if (problem.batch == 0) return cudaSuccess;
  float* delta = static_cast<float*>(workspace);
  return dispatch(problem, [&](auto number, auto depth) {
    using T = decltype(number);
    const auto pass = [&](bool columns, bool add) {
      BackwardArguments<T> arguments{};
      arguments.grad = lines_of<T>(grad, columns);
      arguments.query = lines_of<T>(query, columns);
      arguments.key = lines_of<T>(key, columns);
      arguments.value = lines_of<T>(value, columns);
      arguments.grad_query = lines_of<T>(grad_query, columns);
      arguments.grad_key = lines_of<T>(grad_key, columns);
      arguments.grad_value = lines_of<T>(grad_value, columns);
      arguments.logsumexp = lines_of(logsumexp, problem, columns);
      arguments.delta = lines_of<const float>(delta, problem, columns);
      arguments.lines = columns ? problem.width : problem.height;
      arguments.length = columns ? problem.height : problem.width;
      arguments.query_channels = problem.query_channels;
      arguments.value_channels = problem.value_channels;
      arguments.skip_self = columns;
      arguments.add = add;

      using Value = GradValueShared<T, depth>;
      int warps = warps_for(arguments.length, most_warps<Value>());
      const int chunks = ceil_divide(problem.value_channels, kChunk);
      const cudaError_t error = launch(grad_value_kernel<T, depth>, blocks_for(problem, columns, warps, chunks), 1,
                                       warps * kWarpThreads, Value::bytes(warps), stream, arguments);
      if (error != cudaSuccess) return error;

      using Scores = GradScoresShared<T, depth>;
      warps = warps_for(arguments.length, most_warps<Scores>());
      return launch(grad_scores_kernel<T, depth>, blocks_for(problem, columns, warps, 1), 2, warps * kWarpThreads,
                    Scores::bytes(warps), stream, arguments);
    };
    const bool has_columns = problem.height > 1;
    cudaError_t error = launch_delta<T>(problem, grad, output, delta, stream);
    if (error == cudaSuccess && has_columns) error = pass(true, false);
    return error == cudaSuccess ? pass(false, has_columns) : error;
  });
}

}  // namespace criss_cross
