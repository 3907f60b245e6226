// The product of packed bits: rows and columns of a block are gathered into shared memory, in stages of panels.
#pragma once
#include "conv.cuh"

__device__ __forceinline__ int steps_up(int distance, int step) { // rounded up
  return step == 1 ? distance : int(u32(distance + step - 1) / u32(step));
}

// Taps k of [0, kernel) with 0 <= start + k * dilation < size, as first | last << 8.
__device__ __forceinline__ int taps_inside(int start, int dilation, int size, int kernel) {
  const int first = start >= 0 ? 0 : steps_up(-start, dilation);
  const int last = start >= size ? 0 : steps_up(size - start, dilation);
  const int low = first < kernel ? first : kernel, high = last < kernel ? last : kernel;
  return low | (high > low ? high : low) << 8;
}

__device__ __forceinline__ u32 taps_mask(int taps) {
  const int first = taps & 255, last = taps >> 8 & 255; // up to 32
  return last > first ? ((2u << (last - 1)) - 1) & ~0u << first : 0u;
}

template <class T> __device__ __forceinline__ void fill_rows(const Conv &p, Row *rows, int first) {
  const int thread = threadIdx.x;
  if (thread >= T::ROWS) return;
  const u32 pixel = first + thread;
  Row row = {0, 0, 0, 0}; // after the last pixel: no tap is inside
  if (pixel < u32(p.pixels)) {
    const u32 line = pixel / u32(p.out_w), image = line / u32(p.out_h);
    const int top = int(line - image * p.out_h) * p.stride_h - p.pad_h;
    const int left = int(pixel - line * p.out_w) * p.stride_w - p.pad_w;
    const int down = taps_inside(top, p.dilation_h, p.in_h, p.kernel_h);
    const int right = taps_inside(left, p.dilation_w, p.in_w, p.kernel_w);
    row = {(int(image) * p.in_h + top) * p.in_w + left, taps_mask(down), taps_mask(right), down | right << 16};
  }
  rows[thread] = row;
}

// Windows of the block's pixels for the panels starting at `first`, WIDTH words a copy; a thread stays in one column.
template <class T, int WIDTH>
__device__ __forceinline__ void gather_rows(const Conv &p, const Row *rows, u32 *to, int group, int first) {
  constexpr int ACROSS = PANEL / WIDTH, COPIES = T::ROWS * ACROSS;
  constexpr int SHARE = COPIES < T::THREADS ? COPIES : T::THREADS; // threads that copy one panel
  const int thread = threadIdx.x, column = thread % ACROSS * WIDTH, row0 = thread % SHARE / ACROSS;
#pragma unroll 1
  for (int turn = 0; turn < T::PANELS; turn += T::THREADS / SHARE) {
    const int panel = turn + thread / SHARE;
    if (first + panel >= p.panels) return;
    const u32 k = (first + panel) * PANEL + column, tap = k / u32(p.words), i = tap / u32(p.kernel_w);
    const u32 j = tap - i * p.kernel_w, down = i < u32(p.kernel_h) ? 1u << i : 0u, right = 1u << j;
    const i64 step = p.groups * p.words;
    const int beside = i * p.dilation_h * p.in_w + j * p.dilation_w; // pixels from a window's first tap to this one
    const u32 *x = p.x + group * p.words + (k - tap * p.words) + step * beside;
#pragma unroll
    for (int part = 0; part < COPIES / SHARE; part++) {
      const int row = row0 + part * (SHARE / ACROSS);
      const Row r = rows[row];
      copy_async<WIDTH * 4>(to + (panel * T::ROWS + row) * PANEL + column, x + r.start * step,
                            r.down & down && r.right & right);
    }
  }
}

template <class T>
__device__ __forceinline__ void gather_columns(const Conv &p, u32 *to, int group, int column0, int first) {
  constexpr int COPIES = T::COLUMNS * 2; // of 4 words
  static_assert(T::PANELS * COPIES % T::THREADS == 0, "");
#pragma unroll
  for (int turn = 0; turn < T::PANELS * COPIES / T::THREADS; turn++) {
    const int at = turn * T::THREADS + threadIdx.x, panel = at / COPIES, column = at % COPIES / 2, word = at % 2 * 4;
    const bool inside = column0 + column < p.own_pad && first + panel < p.panels;
    const i64 row = i64(group * p.panels + first + panel) * p.own_pad + column0 + column;
    copy_async<16>(to + at * 4, inside ? p.lanes + row * PANEL + word : p.lanes, inside);
  }
}

template <class T>
__device__ __forceinline__ void gather(const Conv &p, Memory<T> &memory, int steps, int stage, int group, int column0,
                                       int first) {
  u32 *to = memory.words + stage * T::STAGE_WORDS;
  const int copy_words = steps >> COPY_WORDS;
  if (copy_words == 2)
    gather_rows<T, 4>(p, memory.rows, to, group, first);
  else if (copy_words == 1)
    gather_rows<T, 2>(p, memory.rows, to, group, first);
  else
    gather_rows<T, 1>(p, memory.rows, to, group, first);
  gather_columns<T>(p, to + T::PANELS * T::ROWS * PANEL, group, column0, first);
}

// Products on the 1-bit matrix instruction: sums of popc(a & w), and of popc(a) from a column of 1-bits kept in two
// registers. That column costs one matrix instruction beside N8 (an eighth in the large tiles) and leaves popc(a) where
// the epilogue needs it. Counting with POPC, a sixteenth as wide as the plain units, would take half the time of the
// whole product and a sum across threads.
struct Bits {
  static constexpr int COMMON = 4, OWN = -2; // weights of popc(a & w) and popc(a) in the sum

  template <int M16, int N8>
  static __device__ __forceinline__ void multiply(int (&sums)[M16][N8][4], int (&ones)[M16][4], const u32 (&a)[M16][4],
                                                  const u32 (&b)[N8][2]) {
    const u32 all[2] = {~0u, ~0u};
#pragma unroll
    for (int m = 0; m < M16; m++) {
      mma_bits(ones[m], a[m], all);
#pragma unroll
      for (int n = 0; n < N8; n++) mma_bits(sums[m][n], a[m], b[n]);
    }
  }
};

// The same on bytes, for devices without a 1-bit instruction: a as 0 and 1, w as -1 and 1, so that the sums are
// popc(a & w) - popc(a & ~w) = 2 popc(a & w) - popc(a), and no count of a is needed. Bit i of each byte of a word goes
// into register i: the order of the depth is free as long as a and w agree.
struct Bytes {
  static constexpr int COMMON = 2, OWN = 0;

  template <int M16, int N8>
  static __device__ __forceinline__ void multiply(int (&sums)[M16][N8][4], int (&ones)[M16][4], const u32 (&a)[M16][4],
                                                  const u32 (&b)[N8][2]) {
#pragma unroll 2 // more at once would need more registers than there are
    for (int i = 0; i < 8; i++) {
      u32 w[N8][2], v[4];
#pragma unroll
      for (int n = 0; n < N8; n++)
#pragma unroll
        for (int k = 0; k < 2; k++) w[n][k] = ~((b[n][k] >> i & 0x01010101u) * 0xFEu);
#pragma unroll
      for (int m = 0; m < M16; m++) {
#pragma unroll
        for (int k = 0; k < 4; k++) v[k] = a[m][k] >> i & 0x01010101u;
#pragma unroll
        for (int n = 0; n < N8; n++) mma_bytes(sums[m][n], v, w[n]);
      }
    }
  }
};

// All panels of one block: sums[m][n] and ones[m] in the layout of mma_bits.
template <class T, class Path>
__device__ __forceinline__ void multiply_panels(const Conv &p, Memory<T> &memory, int steps, int group, int column0,
                                                int (&sums)[T::M16][T::N8][4], int (&ones)[T::M16][4]) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int warp_n = warp % T::WARPS_N, warp_m = warp / T::WARPS_N % T::WARPS_M;
  const int warp_k = warp / T::WARPS_N / T::WARPS_M;
  // a thread reads words 2t and 2t + 1 at once, in place of t and t + 4; rows are 32 bytes apart, free of conflicts
  const int row = warp_m * T::M16 * 16 + lane / 4, column = warp_n * T::N8 * 8 + lane / 4, quarter = lane % 4;
#pragma unroll
  for (int stage = 0; stage < T::STAGES - 1; stage++) {
    if (stage * T::PANELS < p.panels) gather<T>(p, memory, steps, stage, group, column0, stage * T::PANELS);
    copies_commit();
  }
  int stage = 0, free = T::STAGES - 1;
  for (int first = 0; first < p.panels; first += T::PANELS) {
    copies_wait<T::STAGES - 2>();
    __syncthreads(); // this stage has arrived for all threads, and all have finished the one before, which is free now
    const int next = first + (T::STAGES - 1) * T::PANELS;
    if (next < p.panels) gather<T>(p, memory, steps, free, group, column0, next);
    copies_commit(); // empty ones too: the number of groups in flight stays the same
    const uint2 *from = reinterpret_cast<const uint2 *>(memory.words + stage * T::STAGE_WORDS);
#pragma unroll
    for (int panel = warp_k; panel < T::PANELS; panel += T::WARPS_K) {
      if (first + panel >= p.panels) break;
      u32 a[T::M16][4], b[T::N8][2];
#pragma unroll
      for (int m = 0; m < T::M16; m++) {
        const uint2 upper = from[(panel * T::ROWS + row + m * 16) * 4 + quarter];
        const uint2 lower = from[(panel * T::ROWS + row + m * 16 + 8) * 4 + quarter];
        a[m][0] = upper.x, a[m][1] = lower.x, a[m][2] = upper.y, a[m][3] = lower.y;
      }
#pragma unroll
      for (int n = 0; n < T::N8; n++) {
        const uint2 both = from[(T::PANELS * T::ROWS + panel * T::COLUMNS + column + n * 8) * 4 + quarter];
        b[n][0] = both.x, b[n][1] = both.y;
      }
      Path::multiply(sums, ones, a, b);
    }
    free = stage;
    stage = stage == T::STAGES - 1 ? 0 : stage + 1;
  }
}
