// The machine's instructions under names: asynchronous copies, matrix fragments, tensor-core products, conversions.
//
// The host simulator (tests/kernels/simulator) puts its own functions in the place of this file's first half; all
// other files are compiled unmodified there.
#pragma once

#include <cstdint>

#ifdef CRISS_CROSS_SIMULATOR
#include "simulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace criss_cross {

__device__ __forceinline__ unsigned char* dynamic_shared_memory() {
  extern __shared__ __align__(16) unsigned char shared_memory[];
  return shared_memory;
}

__device__ __forceinline__ uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// The smaller number, or NaN if one is.
__device__ __forceinline__ float minimum_or_nan(float left, float right) {
  float smaller;
  asm("min.NaN.f32 %0, %1, %2;\n" : "=f"(smaller) : "f"(left), "f"(right));
  return smaller;
}

// Starts a copy of 16 bytes from device to shared memory that passes the registers and the first-level cache by;
// where not `valid` it reads nothing and writes zeros.
__device__ __forceinline__ void copy16_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void copy4_async(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(shared)), "l"(global),
               "r"(valid ? 4 : 0)
               : "memory");
}

// Closes the group of copies that this thread has started since the last call.
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits until at most kPending of this thread's groups are under way; other threads need a barrier besides.
template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Four 8x8 matrices of 16-bit numbers; lane 8 i + r gives the address of row r of matrix i. Lane l receives elements
// 2 (l % 4) and 2 (l % 4) + 1 of row l / 4, or, transposed, of column l / 4.
__device__ __forceinline__ void load_matrices(uint32_t (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(shared_address(row))
               : "memory");
}

__device__ __forceinline__ void load_matrices_transposed(uint32_t (&matrices)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(shared_address(row))
               : "memory");
}

// sums (16x8, fp32) += left (16x16) right (16x8), fragments as PTX lays them out for mma.m16n8k16: lane l holds of the
// sums row l / 4 and, in its last two numbers, row l / 4 + 8, columns 2 (l % 4) and 2 (l % 4) + 1.
template <typename T>
__device__ void multiply_matrices(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0, uint32_t right1);

template <>
__device__ __forceinline__ void multiply_matrices<__half>(float (&sums)[4], const uint32_t (&left)[4], uint32_t right0,
                                                          uint32_t right1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

template <>
__device__ __forceinline__ void multiply_matrices<__nv_bfloat16>(float (&sums)[4], const uint32_t (&left)[4],
                                                                 uint32_t right0, uint32_t right1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "r"(right0), "r"(right1));
}

}  // namespace criss_cross
#endif  // CRISS_CROSS_SIMULATOR

namespace criss_cross {

constexpr unsigned kWholeWarp = 0xffffffffu;

__device__ __forceinline__ float to_float(float number) { return number; }
__device__ __forceinline__ float to_float(__half number) { return __half2float(number); }
__device__ __forceinline__ float to_float(__nv_bfloat16 number) { return __bfloat162float(number); }

// Two numbers as one register, rounded to nearest even.
template <typename T>
__device__ uint32_t pack(float low, float high);

template <>
__device__ __forceinline__ uint32_t pack<__half>(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

template <>
__device__ __forceinline__ uint32_t pack<__nv_bfloat16>(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

template <typename T>
__device__ float2 unpack(uint32_t pair);

template <>
__device__ __forceinline__ float2 unpack<__half>(uint32_t pair) {
  return __half22float2(reinterpret_cast<const __half2&>(pair));
}

template <>
__device__ __forceinline__ float2 unpack<__nv_bfloat16>(uint32_t pair) {
  return __bfloat1622float2(reinterpret_cast<const __nv_bfloat162&>(pair));
}

// Eight neighbouring channels, the unit in which results are written: 16 bytes, or 32 in fp32.
template <typename T>
__device__ __forceinline__ void read_channels(float (&channels)[8], const T* source) {
  const uint4 words = *reinterpret_cast<const uint4*>(source);
  const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = unpack<T>(pairs[i]);
    channels[2 * i] = pair.x;
    channels[2 * i + 1] = pair.y;
  }
}

template <>
__device__ __forceinline__ void read_channels<float>(float (&channels)[8], const float* source) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float4 four = reinterpret_cast<const float4*>(source)[i];
    channels[4 * i] = four.x;
    channels[4 * i + 1] = four.y;
    channels[4 * i + 2] = four.z;
    channels[4 * i + 3] = four.w;
  }
}

template <typename T>
__device__ __forceinline__ void write_channels(T* target, const float (&channels)[8]) {
  uint4 words;
  words.x = pack<T>(channels[0], channels[1]);
  words.y = pack<T>(channels[2], channels[3]);
  words.z = pack<T>(channels[4], channels[5]);
  words.w = pack<T>(channels[6], channels[7]);
  *reinterpret_cast<uint4*>(target) = words;
}

template <>
__device__ __forceinline__ void write_channels<float>(float* target, const float (&channels)[8]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float4 four;
    four.x = channels[4 * i];
    four.y = channels[4 * i + 1];
    four.z = channels[4 * i + 2];
    four.w = channels[4 * i + 3];
    reinterpret_cast<float4*>(target)[i] = four;
  }
}

}  // namespace criss_cross
