// Criss-cross attention on a CUDA device (sm_80 and up), without any PyTorch type.
//
// All tensors are images (batch, height, width, channels) with dense channels and any strides between pixels, so
// that a channels_last tensor or a slice of one is read without a copy. Everything runs on `stream` and returns at
// once.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef CRISS_CROSS_SIMULATOR
#include "simulator.h"  // tests/kernels/simulator: the same kernels on the host
#else
#include <cuda_runtime_api.h>
#endif

namespace criss_cross {

enum class DataType { kFloat, kHalf, kBFloat16 };

// Strides in elements. Every pixel's channels start at a multiple of 16 bytes: `data` and, in bytes, the strides are.
struct View {
  const void* data;
  int64_t batch, row, column;
};

struct MutableView {
  void* data;
  int64_t batch, row, column;
};

struct Problem {
  DataType type;           // of every View
  int batch;               // may be 0: nothing is launched
  int height, width;       // 1 to 4096
  int query_channels;      // D: 8 to 128, a multiple of 8
  int value_channels;      // C: at least 8, a multiple of 8
};

// output = gamma * attention + residual, where gamma is one number in device memory.
struct Residual {
  const void* gamma;
  DataType gamma_type;
  View residual;           // of value_channels; must not overlap the output
};

// Bytes of device memory that a call needs beside its tensors, aligned to 16 bytes; its content does not matter.
size_t forward_workspace(const Problem& problem);
size_t backward_workspace(const Problem& problem);

// Writes output (B, H, W, C) and logsumexp (B, H, W), dense fp32: the natural logarithm of the softmax' denominator.
// `residual` is null for the plain attention. Returns cudaErrorInvalidValue for a problem outside the ranges above.
cudaError_t forward(const Problem& problem, const View& query, const View& key, const View& value,
                    const Residual* residual, const MutableView& output, float* logsumexp, void* workspace,
                    cudaStream_t stream);

// Gradients of query, key and value from `grad`, the gradient of the plain attention's output. `output` and
// `logsumexp` are what `forward` wrote without a residual. Deterministic: no atomics.
cudaError_t backward(const Problem& problem, const View& grad, const View& query, const View& key, const View& value,
                     const View& output, const float* logsumexp, const MutableView& grad_query,
                     const MutableView& grad_key, const MutableView& grad_value, void* workspace, cudaStream_t stream);

// Kernels launched by this process so far: what shows that the compiled operator was the one that ran.
int64_t launches();

}  // namespace criss_cross
