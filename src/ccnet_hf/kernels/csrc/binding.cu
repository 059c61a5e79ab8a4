// The operator's CUDA implementation as PyTorch sees it: checks, views, padding, streams. Stable ABI only, so that one
// library serves every PyTorch from TORCH_TARGET_VERSION on. Schema, autograd and the PyTorch implementation are
// Python's (criss_cross_attention.py).
#ifndef TORCH_TARGET_VERSION
#define TORCH_TARGET_VERSION 0x020b000000000000ULL  // 2.11
#endif
#ifndef USE_CUDA
#define USE_CUDA  // the stream and the error messages of the stable headers
#endif

// Every build of the kernel-builder has operators of its own; it passes their namespace as TORCH_EXTENSION_NAME.
#ifdef TORCH_EXTENSION_NAME
#define CCNET_NAMESPACE TORCH_EXTENSION_NAME
#else
#define CCNET_NAMESPACE ccnet_hf
#endif

#include "criss_cross_attention.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <array>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#ifdef CRISS_CROSS_SIMULATOR
#define CCNET_DEVICE CPU  // tests/kernels: the same binding over the simulated kernels
#else
#define CCNET_DEVICE CUDA
#endif
#define CCNET_LIBRARY_IMPL(space, key, library) STABLE_TORCH_LIBRARY_IMPL(space, key, library)

namespace {

using criss_cross::DataType;
using criss_cross::MutableView;
using criss_cross::Problem;
using criss_cross::View;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kMaximumLength = 4096;  // positions along an axis
constexpr int64_t kMaximumQueryChannels = 128;
constexpr int64_t kMaximumValueChannels = 1 << 20;
constexpr int64_t kChannelMultiple = 8;  // 16 bytes in half precision
constexpr int64_t kAlignment = 16;

// --- what was given, in words ---------------------------------------------------------------------------------------

struct Named {
  const char* name;
  const Tensor& tensor;
};

template <typename Numbers>
void print(std::ostream& stream, const char* open, const Numbers& numbers, const char* close) {
  stream << open;
  for (size_t i = 0; i < numbers.size(); ++i) stream << (i ? ", " : "") << numbers[i];
  stream << close;
}

std::string describe(std::initializer_list<Named> tensors) {
  std::ostringstream stream;
  const char* separator = "";
  for (const auto& [name, tensor] : tensors) {
    stream << separator << name << ' ';
    print(stream, "(", tensor.sizes(), ")");
    print(stream, " with strides (", tensor.strides(), ")");
    stream << ' ' << torch::headeronly::toString(tensor.scalar_type()) << " on ";
    if (tensor.is_cuda()) {
      stream << "cuda:" << tensor.get_device_index();
    } else {
      stream << (tensor.is_cpu() ? "cpu" : "another device");
    }
    separator = ", ";
  }
  return stream.str();
}

bool same_sizes(const Tensor& left, const Tensor& right, int64_t from_axis = 0) {
  if (left.dim() != right.dim()) return false;
  for (int64_t axis = from_axis; axis < left.dim(); ++axis) {
    if (left.size(axis) != right.size(axis)) return false;
  }
  return true;
}

bool on_this_device(const Tensor& tensor, const Tensor& first) {
#ifdef CRISS_CROSS_SIMULATOR
  return tensor.is_cpu();
#else
  return tensor.is_cuda() && tensor.get_device_index() == first.get_device_index();
#endif
}

// The functional form has checked its inputs already; this is for callers of torch.ops.
void check(const char* requirement, bool holds, std::initializer_list<Named> tensors) {
  if (!holds) {
    throw std::runtime_error(std::string("criss_cross_attention needs ") + requirement + ", got " + describe(tensors));
  }
}

void check_attention(const Tensor& query, const Tensor& key, const Tensor& value, std::initializer_list<Named> all) {
  check("(batch, channels, 1 to 3 spatial axes)", query.dim() >= 3 && query.dim() <= 5, all);
  check("query and key of one shape and a value of the same batch and spatial sizes",
        same_sizes(query, key) && same_sizes(query, value, 2) && query.size(0) == value.size(0), all);
  check("one dtype", key.scalar_type() == query.scalar_type() && value.scalar_type() == query.scalar_type(), all);
}

void check_devices(std::initializer_list<Named> all) {
  const Tensor& first = all.begin()->tensor;
  for (const auto& named : all) check("one CUDA device", on_this_device(named.tensor, first), all);
}

// --- what the kernels take ------------------------------------------------------------------------------------------

bool data_type(const Tensor& tensor, DataType* type) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: *type = DataType::kFloat; return true;
    case ScalarType::Half: *type = DataType::kHalf; return true;
    case ScalarType::BFloat16: *type = DataType::kBFloat16; return true;
    default: return false;
  }
}

int64_t padded(int64_t channels) { return (channels + kChannelMultiple - 1) / kChannelMultiple * kChannelMultiple; }

// One spatial axis is an image of one row: along its columns there is only the position itself, which is masked.
int64_t height(const Tensor& tensor) { return tensor.dim() == 3 ? 1 : tensor.size(2); }
int64_t width(const Tensor& tensor) { return tensor.size(tensor.dim() - 1); }

// Fills `problem`, or says that the kernels do not take it: float64, three axes, very long axes, nothing at all.
bool kernels_take(const Tensor& query, const Tensor& value, Problem* problem) {
  if (query.dim() > 4 || query.numel() == 0 || value.numel() == 0 || !data_type(query, &problem->type)) return false;
  if (query.size(0) > INT32_MAX || height(query) > kMaximumLength || width(query) > kMaximumLength) return false;
  if (query.size(1) > kMaximumQueryChannels || value.size(1) > kMaximumValueChannels) return false;
  problem->batch = static_cast<int>(query.size(0));
  problem->height = static_cast<int>(height(query));
  problem->width = static_cast<int>(width(query));
  problem->query_channels = static_cast<int>(padded(query.size(1)));
  problem->value_channels = static_cast<int>(padded(value.size(1)));
  return true;
}

Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides,
             int32_t dtype) {
  int32_t device_type = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  AtenTensorHandle handle = nullptr;
  if (aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), dtype, device_type,
                               like.get_device_index(), &handle)) {
    // The stable interface loses the cause. Nearly always it is this one, in the words others look for in a message.
    std::ostringstream message;
    message << "CUDA out of memory. criss_cross_attention could not allocate memory for a tensor of sizes ";
    print(message, "(", sizes, ")");
    message << " on cuda:" << like.get_device_index();
    throw std::runtime_error(message.str());
  }
  return Tensor(handle);
}

// (B, channels, *spatial of `like`) with the channels innermost.
Tensor empty_image(const Tensor& like, int64_t channels) {
  const auto given = like.sizes();
  std::vector<int64_t> sizes(given.begin(), given.end()), strides(sizes.size());
  sizes[1] = channels;
  strides[1] = 1;
  int64_t stride = channels;
  for (size_t axis = sizes.size() - 1; axis > 1; --axis) {
    strides[axis] = stride;
    stride *= sizes[axis];
  }
  strides[0] = stride;
  int32_t dtype = 0;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  return empty(like, sizes, strides, dtype);
}

// (B, *spatial), dense.
Tensor empty_logsumexp(const Tensor& like) {
  std::vector<int64_t> sizes{like.size(0)};
  for (int64_t axis = 2; axis < like.dim(); ++axis) sizes.push_back(like.size(axis));
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t axis = sizes.size() - 1; axis > 0; --axis) strides[axis - 1] = strides[axis] * sizes[axis];
  return empty(like, sizes, strides, aoti_torch_dtype_float32());
}

Tensor workspace(const Tensor& like, size_t bytes) {
  return empty(like, {static_cast<int64_t>(bytes)}, {1}, aoti_torch_dtype_uint8());
}

int64_t stride(const Tensor& tensor, int64_t axis) { return tensor.size(axis) == 1 ? 0 : tensor.stride(axis); }

template <typename ViewType>
ViewType view_of(const Tensor& tensor) {
  const int64_t last = tensor.dim() - 1;
  return {tensor.data_ptr(), stride(tensor, 0), last == 2 ? 0 : stride(tensor, 2), stride(tensor, last)};
}

bool is_aligned(const Tensor& tensor) {
  const auto element = static_cast<int64_t>(tensor.element_size());
  if (tensor.size(1) > 1 && tensor.stride(1) != 1) return false;
  if (reinterpret_cast<uintptr_t>(tensor.data_ptr()) % kAlignment != 0) return false;
  for (int64_t axis = 0; axis < tensor.dim(); ++axis) {
    if (axis != 1 && stride(tensor, axis) * element % kAlignment != 0) return false;
  }
  return true;
}

// The tensor itself where the kernels can read it, else a copy with dense channels and zeros in the added ones: they
// add nothing to a score, and what they add to a result is cut off again.
Tensor readable(const Tensor& tensor) {
  const int64_t channels = tensor.size(1), wanted = padded(channels);
  if (channels == wanted && is_aligned(tensor)) return tensor;
  Tensor copy = empty_image(tensor, wanted);
  if (channels == wanted) {
    torch::stable::copy_(copy, tensor);
  } else {
    torch::stable::zero_(copy);
    Tensor part = torch::stable::narrow(copy, 1, 0, channels);
    torch::stable::copy_(part, tensor);
  }
  return copy;
}

// A result of `padded` channels to be written, and what is handed out of it.
Tensor writable(const Tensor& like) { return empty_image(like, padded(like.size(1))); }

Tensor without_padding(Tensor& result, const Tensor& like) {
  if (result.size(1) == like.size(1)) return result;
  Tensor cut = empty_image(like, like.size(1));
  torch::stable::copy_(cut, torch::stable::narrow(result, 1, 0, like.size(1)));
  return cut;
}

cudaStream_t current_stream([[maybe_unused]] const Tensor& tensor) {
  void* stream = nullptr;
#ifndef CRISS_CROSS_SIMULATOR
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
#endif
  return static_cast<cudaStream_t>(stream);
}

struct CurrentDevice {
#ifdef CRISS_CROSS_SIMULATOR
  explicit CurrentDevice(const Tensor&) {}
#else
  explicit CurrentDevice(const Tensor& tensor) : guard(tensor.get_device_index()) {}
  torch::stable::accelerator::DeviceGuard guard;
#endif
};

void check_launch(cudaError_t error, std::initializer_list<Named> all) {
  if (error == cudaSuccess) return;
#ifdef CRISS_CROSS_SIMULATOR
  const std::string cause = simulator::error;
#else
  cudaGetLastError();  // or the next launch of somebody else would find it
  const std::string cause = std::string(cudaGetErrorName(error)) + ", " + cudaGetErrorString(error);
#endif
  throw std::runtime_error("criss_cross_attention: " + cause + ", with " + describe(all));
}

// --- what the kernels do not take goes to PyTorch -------------------------------------------------------------------

#define CCNET_STRING(name) C10_STRINGIZE(name)

template <size_t Outputs, typename... Tensors>
std::array<Tensor, Outputs> call(const char* name, const Tensors&... tensors) {
  std::array<StableIValue, sizeof...(tensors)> stack{torch::stable::detail::from(tensors)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
  std::array<Tensor, Outputs> outputs;
  for (size_t i = 0; i < Outputs; ++i) outputs[i] = torch::stable::detail::to<Tensor>(stack[i]);
  return outputs;
}

// --- the operators --------------------------------------------------------------------------------------------------

std::tuple<Tensor, Tensor> run_forward(const Problem& problem, const Tensor& query, const Tensor& key,
                                       const Tensor& value, const criss_cross::Residual* residual,
                                       std::initializer_list<Named> all) {
  Tensor readable_query = readable(query), readable_key = readable(key), readable_value = readable(value);
  Tensor output = writable(value), logsumexp = empty_logsumexp(value);
  Tensor scratch = workspace(value, criss_cross::forward_workspace(problem));
  const cudaError_t error = criss_cross::forward(
      problem, view_of<View>(readable_query), view_of<View>(readable_key), view_of<View>(readable_value), residual,
      view_of<MutableView>(output), static_cast<float*>(logsumexp.data_ptr()), scratch.data_ptr(),
      current_stream(value));
  check_launch(error, all);
  return {without_padding(output, value), logsumexp};
}

std::tuple<Tensor, Tensor> forward(const Tensor& query, const Tensor& key, const Tensor& value) {
  const std::initializer_list<Named> all{{"query", query}, {"key", key}, {"value", value}};
  check_attention(query, key, value, all);
  Problem problem;
  if (!kernels_take(query, value, &problem)) {
    auto [output, logsumexp] =
        call<2>(CCNET_STRING(CCNET_NAMESPACE) "::criss_cross_attention_torch", query, key, value);
    return {output, logsumexp};
  }
  check_devices(all);
  const CurrentDevice device(query);
  return run_forward(problem, query, key, value, nullptr, all);
}

std::tuple<Tensor, Tensor> forward_residual(const Tensor& query, const Tensor& key, const Tensor& value,
                                            const Tensor& gamma, const Tensor& residual) {
  const std::initializer_list<Named> all{
      {"query", query}, {"key", key}, {"value", value}, {"gamma", gamma}, {"residual", residual}};
  check_attention(query, key, value, all);
  check("a residual of the value's shape", same_sizes(residual, value), all);
  check("a gamma of one element", gamma.numel() == 1, all);
  Problem problem;
  DataType gamma_type;
  // A residual of another dtype is PyTorch's to convert.
  if (!kernels_take(query, value, &problem) || residual.scalar_type() != value.scalar_type() ||
      !data_type(gamma, &gamma_type)) {
    auto [output, logsumexp] = call<2>(CCNET_STRING(CCNET_NAMESPACE) "::criss_cross_attention_residual_torch", query,
                                       key, value, gamma, residual);
    return {output, logsumexp};
  }
  check_devices(all);
  const CurrentDevice device(query);
  Tensor readable_residual = readable(residual);
  const criss_cross::Residual fused{gamma.data_ptr(), gamma_type, view_of<View>(readable_residual)};
  return run_forward(problem, query, key, value, &fused, all);
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& query, const Tensor& key,
                                            const Tensor& value, const Tensor& output, const Tensor& logsumexp) {
  const std::initializer_list<Named> all{{"query", query}, {"key", key},       {"value", value},
                                         {"grad", grad},   {"output", output}, {"logsumexp", logsumexp}};
  check_attention(query, key, value, all);
  check("a grad and an output of the value's shape", same_sizes(grad, value) && same_sizes(output, value), all);
  Problem problem;
  const bool taken = kernels_take(query, value, &problem) && grad.scalar_type() == value.scalar_type() &&
                     output.scalar_type() == value.scalar_type() && logsumexp.scalar_type() == ScalarType::Float;
  if (!taken) {
    auto [grad_query, grad_key, grad_value] = call<3>(
        CCNET_STRING(CCNET_NAMESPACE) "::criss_cross_attention_backward_torch", grad, query, key, value, output,
        logsumexp);
    return {grad_query, grad_key, grad_value};
  }
  check_devices(all);
  const int64_t positions = int64_t{problem.batch} * problem.height * problem.width;
  check("the logsumexp of the forward pass", logsumexp.is_contiguous() && logsumexp.numel() == positions, all);
  const CurrentDevice device(query);
  Tensor readable_grad = readable(grad), readable_query = readable(query), readable_key = readable(key);
  Tensor readable_value = readable(value), readable_output = readable(output);
  Tensor grad_query = writable(query), grad_key = writable(key), grad_value = writable(value);
  Tensor scratch = workspace(value, criss_cross::backward_workspace(problem));
  const cudaError_t error = criss_cross::backward(
      problem, view_of<View>(readable_grad), view_of<View>(readable_query), view_of<View>(readable_key),
      view_of<View>(readable_value), view_of<View>(readable_output), static_cast<const float*>(logsumexp.data_ptr()),
      view_of<MutableView>(grad_query), view_of<MutableView>(grad_key), view_of<MutableView>(grad_value),
      scratch.data_ptr(), current_stream(value));
  check_launch(error, all);
  return {without_padding(grad_query, query), without_padding(grad_key, key), without_padding(grad_value, value)};
}

}  // namespace

CCNET_LIBRARY_IMPL(CCNET_NAMESPACE, CCNET_DEVICE, library) {
  library.impl("criss_cross_attention", TORCH_BOX(&forward));
  library.impl("criss_cross_attention_residual", TORCH_BOX(&forward_residual));
  library.impl("criss_cross_attention_backward", TORCH_BOX(&backward));
}

// Kernels launched so far, for ctypes.
extern "C" __attribute__((visibility("default"))) int64_t ccnet_hf_launches() { return criss_cross::launches(); }
