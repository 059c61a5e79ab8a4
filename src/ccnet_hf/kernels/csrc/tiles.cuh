// Tiles: how a block of threads reads lines of an image, multiplies them and writes results. Every kernel is made of
// these parts; what a warp holds in registers is always 16 rows of a matrix, in the layout of mma.m16n8k16's sums.
#pragma once

#include "instructions.cuh"

namespace criss_cross {

constexpr int kWarpRows = 16;
constexpr int kWarpThreads = 32;

template <typename Integer>
__host__ __device__ constexpr Integer ceil_divide(Integer number, int by) {
  return (number + by - 1) / by;
}

// An image seen as lines of one axis, columns or rows: element strides between images, lines and places on a line.
template <typename T>
struct Lines {
  T* data;
  int64_t batch, line, place;

  __device__ __forceinline__ T* at(int image, int number) const { return data + image * batch + number * line; }
};

// Elements of one 16-byte copy.
template <typename T>
constexpr int kVector = 16 / sizeof(T);

// Rows in shared memory are 16 bytes longer than their content: an odd number of 16-byte units, so that eight
// consecutive rows, which one ldmatrix (or eight quads of threads in fp32) reads at once, lie in different banks.
template <typename T, int kColumns>
constexpr int kPitch = kColumns + kVector<T>;

// Threads a, b, c, d of a quad hold neighbouring pairs of columns, so a quad holds eight columns of a row.
struct Lane {
  int number = threadIdx.x % kWarpThreads;
  int row = number / 4;
  int pair = number % 4;
};

// Starts the copies of `rows` rows of kColumns numbers to shared memory; zeros where rows or columns are not valid.
template <int kColumns, typename T>
__device__ __forceinline__ void load_tile(T* tile, const T* source, int64_t stride, int rows, int valid_rows,
                                          int valid_columns) {
  constexpr int kVectors = kColumns / kVector<T>;
  for (int i = threadIdx.x; i < rows * kVectors; i += blockDim.x) {
    const int row = i / kVectors, column = i % kVectors * kVector<T>;
    const bool valid = row < valid_rows && column < valid_columns;
    copy16_async(tile + row * kPitch<T, kColumns> + column, valid ? source + row * stride + column : source, valid);
  }
}

// Starts the copies of one number per place; zeros beyond the valid ones.
__device__ __forceinline__ void load_numbers(float* numbers, const float* source, int64_t stride, int count,
                                             int valid) {
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    copy4_async(numbers + i, i < valid ? source + i * stride : source, i < valid);
  }
}

// Runs compute(0), ..., compute(steps - 1), each after the copies that load(step) started have arrived; up to
// kStages - 1 steps of copies are under way meanwhile. One barrier a step does for both: behind it, everyone sees the
// copies of this step, and everyone has done with the stage of the step before, which the next copies overwrite.
template <int kStages, typename Load, typename Compute>
__device__ __forceinline__ void pipeline(int steps, Load load, Compute compute) {
#pragma unroll
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < steps) load(step);
    commit_copies();
  }
  for (int step = 0; step < steps; ++step) {
    wait_copies<kStages - 2>();
    __syncthreads();
    if (step + kStages - 1 < steps) load(step + kStages - 1);
    commit_copies();
    compute(step);
  }
}

// products (16 rows x 8 kTiles) += left right^T for tiles in shared memory, kDepth deep: this warp's 16 rows of the
// left tile, 8 kTiles rows of the right one.
template <int kDepth, typename T, int kTiles>
__device__ __forceinline__ void add_product_transposed(float (&products)[kTiles][4], const T* left, const T* right) {
  const Lane lane;
  // ldmatrix instead of gathering fragments: four times fewer shared memory instructions.
  const T* left_row = left + lane.number % 16 * kPitch<T, kDepth> + lane.number / 16 * 8;
  const T* right_row = right + (lane.number / 16 * 8 + lane.number % 8) * kPitch<T, kDepth> + lane.number / 8 % 2 * 8;
#pragma unroll
  for (int depth = 0; depth < kDepth; depth += 16) {
    uint32_t left_matrices[4];
    load_matrices(left_matrices, left_row + depth);
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      uint32_t right_matrices[4];
      load_matrices(right_matrices, right_row + tile * 8 * kPitch<T, kDepth> + depth);
      multiply_matrices<T>(products[tile], left_matrices, right_matrices[0], right_matrices[1]);
      multiply_matrices<T>(products[tile + 1], left_matrices, right_matrices[2], right_matrices[3]);
    }
  }
}

__device__ __forceinline__ void add_dot(float& sum, const float4& left, const float4& right) {
  sum = fmaf(left.x, right.x, sum);
  sum = fmaf(left.y, right.y, sum);
  sum = fmaf(left.z, right.z, sum);
  sum = fmaf(left.w, right.w, sum);
}

// The same in true fp32, in the same register layout: 16 multiply-adds for two reads of 16 bytes.
template <int kDepth, int kTiles>
__device__ __forceinline__ void add_product_transposed(float (&products)[kTiles][4], const float* left,
                                                       const float* right) {
  constexpr int kRow = kPitch<float, kDepth>;
  const Lane lane;
#pragma unroll 2
  for (int depth = 0; depth < kDepth; depth += 4) {
    float4 rows[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      rows[half] = *reinterpret_cast<const float4*>(left + (lane.row + 8 * half) * kRow + depth);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        const float* row = right + (tile * 8 + 2 * lane.pair + side) * kRow + depth;
        const float4 column = *reinterpret_cast<const float4*>(row);
        add_dot(products[tile][side], rows[0], column);
        add_dot(products[tile][2 + side], rows[1], column);
      }
    }
  }
}

// products (16 rows x 8 kTiles) += weights right, where the weights (16 x 8 kInner) are in registers, as another
// product left them, and the right tile is 8 kInner rows of kColumns = 8 kTiles numbers in shared memory.
template <typename T, int kTiles, int kInner>
__device__ __forceinline__ void add_product(float (&products)[kTiles][4], const float (&weights)[kInner][4],
                                            const T* right) {
  constexpr int kRow = kPitch<T, kTiles * 8>;
  const Lane lane;
  const T* right_row = right + lane.number % 16 * kRow + lane.number / 16 * 8;
#pragma unroll
  for (int inner = 0; inner < kInner; inner += 2) {
    // Two neighbouring 16x8 tiles of sums are, rounded, one 16x16 operand: no exchange between threads.
    uint32_t left[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = &weights[inner + i / 2][i % 2 * 2];
      left[i] = pack<T>(pair[0], pair[1]);
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; tile += 2) {
      uint32_t right_matrices[4];
      load_matrices_transposed(right_matrices, right_row + inner * 8 * kRow + tile * 8);
      multiply_matrices<T>(products[tile], left, right_matrices[0], right_matrices[1]);
      multiply_matrices<T>(products[tile + 1], left, right_matrices[2], right_matrices[3]);
    }
  }
}

// The same in true fp32: the quad's threads pass the weights of their columns around.
template <int kTiles, int kInner>
__device__ __forceinline__ void add_product(float (&products)[kTiles][4], const float (&weights)[kInner][4],
                                            const float* right) {
  constexpr int kRow = kPitch<float, kTiles * 8>;
  const Lane lane;
#pragma unroll
  for (int inner = 0; inner < kInner * 8; ++inner) {
    const float low = __shfl_sync(kWholeWarp, weights[inner / 8][inner % 2], inner % 8 / 2, 4);
    const float high = __shfl_sync(kWholeWarp, weights[inner / 8][2 + inner % 2], inner % 8 / 2, 4);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const float2 columns = *reinterpret_cast<const float2*>(right + inner * kRow + tile * 8 + 2 * lane.pair);
      products[tile][0] = fmaf(low, columns.x, products[tile][0]);
      products[tile][1] = fmaf(low, columns.y, products[tile][1]);
      products[tile][2] = fmaf(high, columns.x, products[tile][2]);
      products[tile][3] = fmaf(high, columns.y, products[tile][3]);
    }
  }
}

// Calls finish(half, row, column, eight numbers) for everything this warp's sums hold within the valid rows and
// columns: row = lane's row + 8 half, counted from the warp's first. Four tiles at a time are transposed within the
// quads, so that a thread has eight neighbouring columns and reads and writes whole 16-byte vectors, a quad 64 bytes.
template <int kTiles, typename Finish>
__device__ __forceinline__ void finish_rows(const float (&sums)[kTiles][4], int valid_rows, int valid_columns,
                                            Finish finish) {
  const Lane lane;
#pragma unroll
  for (int first = 0; first < kTiles; first += 4) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float2 pairs[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) pairs[i] = {sums[first + i][2 * half], sums[first + i][2 * half + 1]};
      // Pair i of thread j changes places with pair j of thread i, one bit of i and j after the other.
#pragma unroll
      for (int bit = 1; bit < 4; bit *= 2) {
        const bool upper = lane.pair & bit;
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if (i & bit) continue;
          const float2 sent = upper ? pairs[i] : pairs[i + bit];
          const float2 received = {__shfl_xor_sync(kWholeWarp, sent.x, bit), __shfl_xor_sync(kWholeWarp, sent.y, bit)};
          pairs[i] = upper ? received : pairs[i];
          pairs[i + bit] = upper ? pairs[i + bit] : received;
        }
      }
      const int row = lane.row + 8 * half, column = (first + lane.pair) * 8;
      if (row < valid_rows && column < valid_columns) {
        float numbers[8];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          numbers[2 * i] = pairs[i].x;
          numbers[2 * i + 1] = pairs[i].y;
        }
        finish(half, row, column, numbers);
      }
    }
  }
}

}  // namespace criss_cross
