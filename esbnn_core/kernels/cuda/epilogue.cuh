// From the sums of a block to y and its packed signs, in the contract's order (esbnn_core/kernels/__init__.py). Every
// step is rounded on its own (__fmul_rn, __fadd_rn never contract), because a sign follows. The sums pass through
// shared memory once, so that a thread keeps 8 channels and their parameters in registers and loops over pixels
// (directly from the fragments, the unrolled steps took twice the code and spilled). Copies are made from there, and no
// sum is ever written to global memory.
#pragma once
#include "product.cuh"
#include "values.cuh"

// Eight channels of one copy: what a thread keeps.
struct Channels {
  int first, count; // in y; how many of them there are
  float scale[8], bias[8], prelu[8], shift_in[8], slope[8], shift_out[8], sign_shift[8];
};

__device__ __forceinline__ void take(Channels &c, const Conv &p, int steps, int copy, int group, int filter) {
  const bool wide = steps & WIDE_STEP;
  const int left = p.own - filter;
  c.count = left < 0 ? 0 : left > 8 ? 8 : left;
  c.first = (copy * p.groups + group) * p.own + filter;
  if ((steps >> OUT_TYPE & 3) != INT32) {
    load8(c.scale, p.scale, FLOAT32, c.first, c.count, wide);
    load8(c.bias, p.bias, FLOAT32, c.first, c.count, wide);
  }
  if (steps & PRELU_STEP) load8(c.prelu, p.prelu, FLOAT32, c.first, c.count, wide);
  if (steps & RPRELU_STEP) {
    const int channels = p.groups * p.own * p.copies;
    load8(c.shift_in, p.rprelu, FLOAT32, c.first, c.count, wide);
    load8(c.slope, p.rprelu + channels, FLOAT32, c.first, c.count, wide);
    load8(c.shift_out, p.rprelu + 2 * channels, FLOAT32, c.first, c.count, wide);
  }
  if (steps & SIGN_SHIFT_STEP) load8(c.sign_shift, p.sign_shift, FLOAT32, c.first, c.count, wide);
}

// sum += weight * 1-bits of 8 filters in all taps above `row` and left of `column`.
__device__ __forceinline__ void add_corner(const Conv &p, int (&sum)[8], int weight, int row, int column, int filter) {
  const i64 at = i64(row * (p.kernel_w + 1) + column) * p.groups * p.own_pad + filter;
  const int4 low = __ldg(reinterpret_cast<const int4 *>(p.corners + at));
  const int4 high = __ldg(reinterpret_cast<const int4 *>(p.corners + at) + 1);
  sum[0] += weight * low.x, sum[1] += weight * low.y, sum[2] += weight * low.z, sum[3] += weight * low.w;
  sum[4] += weight * high.x, sum[5] += weight * high.y, sum[6] += weight * high.z, sum[7] += weight * high.w;
}

// sum += values inside the window - 2 * 1-bits of the weight in it.
__device__ __forceinline__ void add_window(const Conv &p, int (&sum)[8], int window, int filter) {
  const int top = window & 255, bottom = window >> 8 & 255, left = window >> 16 & 255, right = window >> 24 & 255;
#pragma unroll
  for (int i = 0; i < 8; i++) sum[i] += (bottom - top) * (right - left) * p.per_tap;
#pragma unroll 1
  for (int corner = 0; corner < 4; corner++) {
    const int row = corner & 1 ? top : bottom, column = corner & 2 ? left : right;
    if (row && column) add_corner(p, sum, corner == 0 || corner == 3 ? -2 : 2, row, column, filter);
  }
}

__device__ __forceinline__ void add(float (&v)[8], const float (&by)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = __fadd_rn(v[i], by[i]);
}

__device__ __forceinline__ void bend(float (&v)[8], const float (&slopes)[8]) {
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = v[i] > 0.0f ? v[i] : __fmul_rn(v[i], slopes[i]);
}

// Packed signs of 8 channels, where 32 columns are not a word: bit by bit, with the bits of one word joined.
__device__ __forceinline__ void scatter_signs(const Conv &p, u32 byte, i64 pixel, const Channels &c) {
  const int per = p.groups * p.own * p.copies / p.sign_groups;
  u32 *bits = p.bits + pixel * (p.sign_groups * p.sign_words), run = 0;
  int group = c.first / per, place = c.first - group * per;
  for (int i = 0; i < c.count; i++) {
    run |= (byte >> i & 1u) << place % 32;
    const bool last = place + 1 == per;
    if (last || place % 32 == 31 || i + 1 == c.count) {
      if (run) atomicOr(bits + group * p.sign_words + place / 32, run);
      run = 0;
    }
    place = last ? 0 : place + 1, group += last;
  }
}

// One pixel's 8 channels, `count` of them, starting at value `at` of y; the whole warp gets here together, with or
// without a pixel.
__device__ __forceinline__ void finish(const Conv &p, int steps, const int (&sums)[8], const u32 (&residual)[8],
                                       const Channels &c, i64 pixel, i64 at, int count) {
  const int type = steps >> OUT_TYPE & 3;
  const bool wide = steps & WIDE_STEP;
  float v[8];
  if (type == INT32) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = __int_as_float(sums[i]);
    store8(v, p.y, type, at, count, wide);
    return;
  }
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = __fadd_rn(__fmul_rn(__int2float_rn(sums[i]), c.scale[i]), c.bias[i]);
  if (steps & PRELU_STEP) bend(v, c.prelu);
  if (steps & RESIDUAL_STEP) {
    float other[8];
    widen8(other, residual, steps >> RESIDUAL_TYPE & 3);
    add(v, other);
  }
  if (steps & RPRELU_STEP) {
    add(v, c.shift_in);
    bend(v, c.slope);
    add(v, c.shift_out);
  }
  store8(v, p.y, type, at, count, wide);
  if (!(steps & SIGNS_STEP)) return;
  if (steps & SIGN_SHIFT_STEP) add(v, c.sign_shift);
  const u32 byte = signs8(v);
  if (steps & WORDS_STEP) {
    const u32 word = quad_word(byte, threadIdx.x);
    if (threadIdx.x % 4 == 0 && count) p.bits[at / 32] = word;
  } else if (count) {
    scatter_signs(p, byte, pixel, c);
  }
}

// Which of the two halves of 8 sums comes first in shared memory: swapped for every other four of the eights that eight
// threads read at once, so that they use each bank once.
template <class T> __device__ __forceinline__ int turned(int row, int unit) {
  return T::UNITS >= 8 ? unit >> 2 & 1 : row & 1;
}

// Fragments to rows of sums in shared memory, one plane for each warp along the depth.
template <class T, class Path>
__device__ __forceinline__ void put_sums(Memory<T> &memory, const int (&sums)[T::M16][T::N8][4],
                                         const int (&ones)[T::M16][4]) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int warp_n = warp % T::WARPS_N, warp_m = warp / T::WARPS_N % T::WARPS_M;
  const int warp_k = warp / T::WARPS_N / T::WARPS_M;
  const int row = warp_m * T::M16 * 16 + lane / 4; // the others are even numbers of rows away
  int *to = reinterpret_cast<int *>(memory.words) + (warp_k * T::ROWS + row) * T::STEP + warp_n * T::N8 * 8;
#pragma unroll
  for (int n = 0; n < T::N8; n++) {
    int *place = to + n * 8 + (lane % 4 * 2 ^ 4 * turned<T>(row, warp_n * T::N8 + n));
#pragma unroll
    for (int m = 0; m < T::M16; m++)
#pragma unroll
      for (int half = 0; half < 2; half++)
        *reinterpret_cast<int2 *>(place + (m * 16 + half * 8) * T::STEP) =
            make_int2(Path::COMMON * sums[m][n][2 * half] + Path::OWN * ones[m][2 * half],
                      Path::COMMON * sums[m][n][2 * half + 1] + Path::OWN * ones[m][2 * half]);
  }
}

// All pixels of the block in all copies.
template <class T, int WHICH>
__device__ __forceinline__ void finish_block(const Conv &p, const Memory<T> &memory, int steps, int pixel0, int group,
                                             int column0) {
  constexpr int TURNS = T::ROWS / T::TURN, TOGETHER = TURNS < together_for(WHICH) ? TURNS : together_for(WHICH);
  const int unit = threadIdx.x % T::UNITS, row0 = threadIdx.x / T::UNITS, filter = column0 + unit * 8;
  const int whole = p.kernel_h << 8 | p.kernel_w << 24, place = group * p.own_pad + filter;
  const int channels = p.groups * p.own * p.copies;
  const int left = p.pixels - pixel0 - row0; // pixels from this thread's first on
  const int first = 4 * turned<T>(row0, unit); // of all its rows: they are even numbers apart
  const int *sums_at = reinterpret_cast<const int *>(memory.words) + row0 * T::STEP + unit * 8;
  int base[8] = {};
  if (filter < p.own) add_window(p, base, whole, place);
#pragma unroll 1
  for (int copy = 0; copy < p.copies; copy++) {
    Channels c;
    take(c, p, steps, copy, group, filter);
    const i64 start = i64(pixel0 + row0) * channels + c.first;
#pragma unroll 1
    for (int turn = 0; turn < TURNS; turn += TOGETHER) {
      u32 residual[TOGETHER][8];
      if (steps & RESIDUAL_STEP)
#pragma unroll
        for (int k = 0; k < TOGETHER; k++) {
          const int more = (turn + k) * T::TURN;
          fetch8(residual[k], p.residual, steps >> RESIDUAL_TYPE & 3, start + more * channels,
                 more < left ? c.count : 0, steps & WIDE_STEP);
        }
#pragma unroll
      for (int k = 0; k < TOGETHER; k++) {
        const int more = (turn + k) * T::TURN, window = memory.rows[row0 + more].window;
        int sums[8];
#pragma unroll
        for (int i = 0; i < 8; i++) sums[i] = base[i];
#pragma unroll
        for (int plane = 0; plane < T::WARPS_K; plane++) {
          const int *from = sums_at + (plane * T::ROWS + more) * T::STEP;
          const int4 low = *reinterpret_cast<const int4 *>(from + first);
          const int4 high = *reinterpret_cast<const int4 *>(from + (4 - first));
          sums[0] += low.x, sums[1] += low.y, sums[2] += low.z, sums[3] += low.w;
          sums[4] += high.x, sums[5] += high.y, sums[6] += high.z, sums[7] += high.w;
        }
        if (steps & RING_STEP && window != whole && c.count) {
#pragma unroll
          for (int i = 0; i < 8; i++) sums[i] -= base[i];
          add_window(p, sums, window, place);
        }
        finish(p, steps, sums, residual[k], c, i64(pixel0) + row0 + more, start + more * channels,
               more < left ? c.count : 0);
      }
    }
  }
}
