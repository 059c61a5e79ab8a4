// Runs the CUDA kernels on the host, unmodified, to prove them right without a GPU.
//
// One fiber per CUDA thread, one block at a time. Threads run one after another and change places only where they wait
// for each other, so what differs from the machine is chosen to be as unkind as the machine may be:
// - a seed decides which warp runs, each as far ahead of the others as barriers let it;
// - shared memory holds NaN until it is written;
// - an asynchronous copy turns its target into NaN at once and arrives when its thread waits for it;
// - vectors that are not aligned, and warp-wide instructions that not all 32 threads reach, are errors.
// Built with -fsanitize=address it finds accesses outside of tensors and of shared memory.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)

// --- types of CUDA that the kernels use -----------------------------------------------------------------------------

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct __half {
  uint16_t bits;
};
struct __nv_bfloat16 {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

template <typename To, typename From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float __half2float(__half number) { return static_cast<float>(bits_as<_Float16>(number.bits)); }
inline __half2 __floats2half2_rn(float low, float high) {
  return {{bits_as<uint16_t>(static_cast<_Float16>(low))}, {bits_as<uint16_t>(static_cast<_Float16>(high))}};
}
inline float2 __half22float2(__half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }

inline float __bfloat162float(__nv_bfloat16 number) { return bits_as<float>(uint32_t{number.bits} << 16); }
inline __nv_bfloat16 float_to_bfloat16(float number) {
  const uint32_t bits = bits_as<uint32_t>(number);
  if (number != number) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};  // to nearest, ties to even
}
inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high) {
  return {float_to_bfloat16(low), float_to_bfloat16(high)};
}
inline float2 __bfloat1622float2(__nv_bfloat162 pair) { return {__bfloat162float(pair.x), __bfloat162float(pair.y)}; }

inline float __expf(float number) { return std::exp(number); }

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorUnknown = 999 };
using cudaStream_t = void*;
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

// --- threads --------------------------------------------------------------------------------------------------------

struct ThreadPlace {
  unsigned x, y;
};
inline ThreadPlace threadIdx, blockIdx;
inline dim3 blockDim;

namespace simulator {

constexpr int kWarp = 32;
constexpr size_t kLargestShared = 99 * 1024;

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  bool valid;
};

// A warp-wide instruction: what it is called, and this lane's operands.
using Execute = void (*)(void* const* lanes);

inline uint64_t seed = 0;
inline std::string error;
inline unsigned char* shared_memory = nullptr;

void run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel);
void block_barrier();
void warp_instruction(const char* name, void* operands, Execute execute);
std::deque<std::vector<Copy>>& copy_groups();  // of the running thread; the last one is open
[[noreturn]] void fail(const std::string& message);

inline void check_aligned(const void* address, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % bytes) fail(std::string(what) + ": address is not aligned");
}

}  // namespace simulator

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel*, cudaFuncAttribute, int bytes) {
  return static_cast<size_t>(bytes) <= simulator::kLargestShared ? cudaSuccess : cudaErrorInvalidValue;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* configuration, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  simulator::run(configuration->gridDim, configuration->blockDim, configuration->dynamicSmemBytes,
                 [&] { kernel(arguments...); });
  return simulator::error.empty() ? cudaSuccess : cudaErrorUnknown;
}

inline void __syncthreads() { simulator::block_barrier(); }

inline float exchange(float number, int source) {
  struct Operands {
    float number, result;
    int source;
  } operands{number, 0.0f, source};
  simulator::warp_instruction("shuffle", &operands, [](void* const* lanes) {
    for (int lane = 0; lane < simulator::kWarp; ++lane) {
      auto* own = static_cast<Operands*>(lanes[lane]);
      own->result = static_cast<Operands*>(lanes[own->source])->number;
    }
  });
  return operands.result;
}

inline float __shfl_xor_sync(unsigned, float number, int mask) {
  return exchange(number, static_cast<int>(threadIdx.x) % simulator::kWarp ^ mask);
}

inline float __shfl_sync(unsigned, float number, int source, int width) {
  const int lane = static_cast<int>(threadIdx.x) % simulator::kWarp;
  return exchange(number, lane / width * width + source);
}

// --- what instructions.cuh gives on a GPU ---------------------------------------------------------------------------

namespace criss_cross {

inline unsigned char* dynamic_shared_memory() { return simulator::shared_memory; }

inline float minimum_or_nan(float left, float right) { return std::isnan(left) ? left : std::fmin(left, right); }

inline void copy_async(void* shared, const void* global, size_t bytes, bool valid) {
  simulator::check_aligned(shared, bytes, "copy to shared memory");
  simulator::check_aligned(global, bytes, "copy from global memory");
  std::memset(shared, 0xff, bytes);
  simulator::copy_groups().back().push_back({shared, global, bytes, valid});
}

inline void copy16_async(void* shared, const void* global, bool valid) { copy_async(shared, global, 16, valid); }
inline void copy4_async(void* shared, const void* global, bool valid) { copy_async(shared, global, 4, valid); }
inline void commit_copies() { simulator::copy_groups().emplace_back(); }

template <int kPending>
inline void wait_copies() {
  auto& groups = simulator::copy_groups();
  while (groups.size() > kPending + 1) {  // the open group does not count
    for (const simulator::Copy& copy : groups.front()) {
      if (copy.valid) {
        std::memcpy(copy.to, copy.from, copy.bytes);
      } else {
        std::memset(copy.to, 0, copy.bytes);
      }
    }
    groups.pop_front();
  }
}

struct MatrixOperands {
  const uint16_t* row;
  uint32_t* matrices;
};

template <bool kTransposed>
void execute_load_matrices(void* const* lanes) {
  for (int lane = 0; lane < simulator::kWarp; ++lane) {
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint32_t pair = 0;
      for (int side = 0; side < 2; ++side) {
        const int along = 2 * (lane % 4) + side, across = lane / 4;
        const int row = kTransposed ? along : across, column = kTransposed ? across : along;
        const auto* owner = static_cast<MatrixOperands*>(lanes[8 * matrix + row]);
        pair |= static_cast<uint32_t>(owner->row[column]) << 16 * side;
      }
      static_cast<MatrixOperands*>(lanes[lane])->matrices[matrix] = pair;
    }
  }
}

inline void load_matrices(uint32_t (&matrices)[4], const void* row) {
  simulator::check_aligned(row, 16, "ldmatrix");
  MatrixOperands operands{static_cast<const uint16_t*>(row), matrices};
  simulator::warp_instruction("ldmatrix", &operands, execute_load_matrices<false>);
}

inline void load_matrices_transposed(uint32_t (&matrices)[4], const void* row) {
  simulator::check_aligned(row, 16, "ldmatrix");
  MatrixOperands operands{static_cast<const uint16_t*>(row), matrices};
  simulator::warp_instruction("ldmatrix.trans", &operands, execute_load_matrices<true>);
}

struct ProductOperands {
  float* sums;
  const uint32_t* left;
  uint32_t right[2];
};

inline float number_of(__half, uint32_t bits) { return __half2float({static_cast<uint16_t>(bits)}); }
inline float number_of(__nv_bfloat16, uint32_t bits) { return __bfloat162float({static_cast<uint16_t>(bits)}); }

template <typename T>
void execute_multiply_matrices(void* const* lanes) {
  float left[16][16], right[16][8];
  for (int lane = 0; lane < simulator::kWarp; ++lane) {
    const auto* operands = static_cast<ProductOperands*>(lanes[lane]);
    const int group = lane / 4, pair = 2 * (lane % 4);
    for (int side = 0; side < 2; ++side) {
      for (int i = 0; i < 4; ++i) {
        left[group + i % 2 * 8][pair + i / 2 * 8 + side] = number_of(T{}, operands->left[i] >> 16 * side & 0xffff);
      }
      for (int i = 0; i < 2; ++i) {
        right[pair + i * 8 + side][group] = number_of(T{}, operands->right[i] >> 16 * side & 0xffff);
      }
    }
  }
  float products[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int inner = 0; inner < 16; ++inner) {
      for (int column = 0; column < 8; ++column) products[row][column] += left[row][inner] * right[inner][column];
    }
  }
  for (int lane = 0; lane < simulator::kWarp; ++lane) {
    float* sums = static_cast<ProductOperands*>(lanes[lane])->sums;
    for (int i = 0; i < 4; ++i) sums[i] += products[lane / 4 + i / 2 * 8][2 * (lane % 4) + i % 2];
  }
}

template <typename T>
void multiply_matrices(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1) {
  ProductOperands operands{sums, left, {right0, right1}};
  simulator::warp_instruction("mma", &operands, execute_multiply_matrices<T>);
}

}  // namespace criss_cross
