// What training on bits reads of signs: their estimators, +-1 from values or packed bits, and the moments of sums.
#pragma once
#include "training.cuh"

// Where four channels have their bits in a row of packed words.
struct Packed {
  int group, group_words, row_words; // channels and words of a group, words of a row
};

__device__ __forceinline__ u32 bit_at(const u32 *words, const Packed &p, int channel) {
  const int group = channel / p.group, place = channel - group * p.group;
  return words[group * p.group_words + place / 32] >> place % 32 & 1u;
}

struct BitPlace {
  int word, shift; // of the four, where they have one word
  bool together;
};

__device__ __forceinline__ BitPlace bit_place(const Packed &p, int channel) {
  const int group = channel / p.group, place = channel - group * p.group;
  return {group * p.group_words + place / 32, place % 32, p.group % 4 == 0};
}

__device__ __forceinline__ u32 bits4(const u32 *words, const Packed &p, const BitPlace &b, i64 row, int channel,
                                     int count) {
  if (count == 0) return 0;
  words += row * p.row_words;
  if (b.together) return __ldg(words + b.word) >> b.shift;
  u32 bits = 0;
#pragma unroll 1
  for (int i = 0; i < count; i++) bits |= bit_at(words, p, channel + i) << i;
  return bits;
}

enum Rule { IDENTITY, CLIP, POLY2, MASKED };

// y = grad * estimator(x + shift) [+ onto]; y may be grad or onto. In the order of ESTIMATOR in training.py.
struct Estimator {
  Rows rows;
  const void *grad, *x;
  const float *shift; // or null
  const u32 *mask;
  const void *onto; // or null
  void *y;
  float *partials; // or null
  Packed packed;
  int rule;
  float clip;
  int grad_type, x_type, onto_type, y_type;
};

struct LineMemory {
  alignas(16) Lines lines[1];
};

__device__ __forceinline__ float estimated(int rule, float clip, float g, float a) {
  const float far = fabsf(a);
  if (rule == CLIP) return clip >= far ? g : 0.0f;
  const float slope = __fsub_rn(2.0f, __fmul_rn(far, 2.0f));
  return __fmul_rn(g, slope < 0.0f ? 0.0f : slope); // a NaN stays one
}

__device__ __forceinline__ void through_estimator(const Estimator &p, LineMemory &memory) {
  constexpr int TOGETHER = 2;
  const Place at = place_of(p.rows);
  const bool wide = p.rows.wide, reads = p.rule == CLIP || p.rule == POLY2;
  float shift[4], total[4] = {};
  vector4(shift, p.shift, at.column, at.count, wide);
  BitPlace bit = {};
  if (p.rule == MASKED) bit = bit_place(p.packed, at.column);
#pragma unroll 1
  for (int turn = 0; turn < at.turns; turn += TOGETHER) {
    u32 grad[TOGETHER][4], x[TOGETHER][4], onto[TOGETHER][4], bits[TOGETHER];
#pragma unroll
    for (int k = 0; k < TOGETHER; k++) {
      const i64 row = at.row + i64(turn + k) * at.step, place = row * p.rows.channels + at.column;
      const int count = turn + k < at.turns ? at.count : 0;
      fetch4(grad[k], p.grad, p.grad_type, place, count, wide);
      if (reads) fetch4(x[k], p.x, p.x_type, place, count, wide);
      if (p.onto) fetch4(onto[k], p.onto, p.onto_type, place, count, wide);
      bits[k] = p.rule == MASKED ? bits4(p.mask, p.packed, bit, row, at.column, count) : 0;
    }
#pragma unroll
    for (int k = 0; k < TOGETHER; k++) {
      if (turn + k >= at.turns) break;
      float g[4], a[4] = {}, other[4] = {};
      widen4(g, grad[k], p.grad_type);
      if (reads) widen4(a, x[k], p.x_type);
      if (p.onto) widen4(other, onto[k], p.onto_type);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        if (reads) g[i] = estimated(p.rule, p.clip, g[i], __fadd_rn(a[i], shift[i]));
        if (p.rule == MASKED) g[i] = bits[k] >> i & 1 ? g[i] : 0.0f;
        total[i] = __fadd_rn(total[i], g[i]);
        if (p.onto) g[i] = __fadd_rn(g[i], other[i]);
      }
      const i64 place = (at.row + i64(turn + k) * at.step) * p.rows.channels + at.column;
      store4(g, p.y, p.y_type, place, at.count, wide);
    }
  }
  if (!p.partials) return; // all threads
  put_lines(memory.lines[0], total);
  __syncthreads();
  add_lines(p.rows, memory.lines, 1u, 0, p.rows.channels, p.partials);
}

// y = +-1, the sign of x + shift or, without x, of packed bits. In the order of SIGNS in training.py.
struct Signs {
  Rows rows;
  const void *x;
  const float *shift; // or null
  const u32 *bits;
  void *y;
  Packed packed;
  int x_type, y_type;
};

__device__ __forceinline__ void read_signs(const Signs &p) {
  constexpr int TOGETHER = 2;
  const Place at = place_of(p.rows);
  const bool wide = p.rows.wide;
  float shift[4];
  vector4(shift, p.shift, at.column, at.count, wide);
  BitPlace bit = {};
  if (!p.x) bit = bit_place(p.packed, at.column);
#pragma unroll 1
  for (int turn = 0; turn < at.turns; turn += TOGETHER) {
    u32 x[TOGETHER][4], bits[TOGETHER];
#pragma unroll
    for (int k = 0; k < TOGETHER; k++) {
      const i64 row = at.row + i64(turn + k) * at.step;
      const int count = turn + k < at.turns ? at.count : 0;
      if (p.x)
        fetch4(x[k], p.x, p.x_type, row * p.rows.channels + at.column, count, wide);
      else
        bits[k] = bits4(p.bits, p.packed, bit, row, at.column, count);
    }
#pragma unroll
    for (int k = 0; k < TOGETHER; k++) {
      float v[4];
      if (p.x) widen4(v, x[k], p.x_type);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const bool positive = p.x ? __fadd_rn(v[i], shift[i]) >= 0.0f : bits[k] >> i & 1;
        v[i] = positive ? 1.0f : -1.0f;
      }
      const i64 place = (at.row + i64(turn + k) * at.step) * p.rows.channels + at.column;
      store4(v, p.y, p.y_type, place, turn + k < at.turns ? at.count : 0, wide);
    }
  }
}

// Sums and sums of squares over rows, added to both (2, channels): whole numbers, the same in any order. In the order
// of MOMENTS in training.py.
struct Moments {
  Rows rows;
  const void *sums;
  u64 *both;
  int sums_type;
};

struct MomentsMemory {
  i64 lines[2][ROW_THREADS][VECTOR];
};

__device__ __forceinline__ void add_moments(const Moments &p, MomentsMemory &memory) {
  constexpr int TOGETHER = 4;
  const Place at = place_of(p.rows);
  i64 total[4] = {}, squares[4] = {};
#pragma unroll 1
  for (int turn = 0; turn < at.turns; turn += TOGETHER) {
    u32 sums[TOGETHER][4];
#pragma unroll
    for (int k = 0; k < TOGETHER; k++) {
      const i64 place = (at.row + i64(turn + k) * at.step) * p.rows.channels + at.column;
      fetch4(sums[k], p.sums, p.sums_type, place, turn + k < at.turns ? at.count : 0, p.rows.wide);
    }
#pragma unroll
    for (int k = 0; k < TOGETHER; k++) // zeros after the last row
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int s = p.sums_type == INT32 ? int(sums[k][i]) : short(sums[k][i / 2] >> 16 * (i % 2));
        total[i] += s, squares[i] += i64(s) * s;
      }
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
    memory.lines[0][threadIdx.x][i] = total[i], memory.lines[1][threadIdx.x][i] = squares[i];
  __syncthreads();
  const int across = p.rows.lanes * VECTOR, lines = ROW_THREADS / p.rows.lanes, tile = blockIdx.y * across;
  for (int at = threadIdx.x; at < 2 * across; at += ROW_THREADS) {
    const int which = at / across, column = at - which * across;
    if (tile + column >= p.rows.channels) continue;
    i64 sum = 0;
    for (int line = 0; line < lines; line++)
      sum += memory.lines[which][line * p.rows.lanes + column / VECTOR][column % VECTOR];
    atomicAdd(p.both + i64(which) * p.rows.channels + tile + column, u64(sum));
  }
}
