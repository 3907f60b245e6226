// The steps of a unit after its sums: affine -> [PReLU] -> [+ residual] -> [activation], forward and backward, and how
// the batch's statistics act on the sums. Copies are the outer loop of a thread, so that the parameters of four
// channels stay in registers; the sums are read again for each copy, from the cache, and no copy of them is written.
#pragma once
#include "training.cuh"

enum Activation { NO_ACT, PRELU_ACT, HARDTANH };
enum Total { OFFSET, FACTOR, INNER_SLOPE, SHIFT_IN, SLOPE, SHIFT_OUT, TOTALS };

// In the order of TAIL in training.py. A null pointer leaves a step out; channel j of copies * filters takes sum j mod
// filters.
struct Tail {
  Rows rows;
  const void *sums;
  const float *centre;                                                 // (filters)
  const float *factor, *offset, *inner, *shift_in, *slope, *shift_out; // (copies * filters)
  const void *residual;
  void *y; // forward: the result; backward: its gradient, which is read alone
  float *sums_grad, *residual_grad, *partials;
  int copies, sums_type, act, residual_type, y_type;
  int used; // bits of Total: those that these steps have
  float low, high; // of the hardtanh
};

// Of four channels.
struct Parameters {
  float factor[4], offset[4], inner[4], shift_in[4], slope[4], shift_out[4];
};

__device__ __forceinline__ void take(Parameters &c, const Tail &p, int channel, int count, bool wide) {
  vector4(c.factor, p.factor, channel, count, wide);
  vector4(c.offset, p.offset, channel, count, wide);
  vector4(c.inner, p.inner, channel, count, wide);
  vector4(c.shift_in, p.shift_in, channel, count, wide);
  vector4(c.slope, p.slope, channel, count, wide);
  vector4(c.shift_out, p.shift_out, channel, count, wide);
}

// Steps of four channels; a condition that all threads share is asked once for the four.
__device__ __forceinline__ void add4(float (&v)[4], const float (&by)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) v[i] = __fadd_rn(v[i], by[i]);
}

__device__ __forceinline__ void bend4(float (&z)[4], const float (&slope)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) z[i] = z[i] > 0.0f ? z[i] : __fmul_rn(slope[i], z[i]);
}

__device__ __forceinline__ void affine4(float (&z)[4], const float (&d)[4], const Parameters &c) {
#pragma unroll
  for (int i = 0; i < 4; i++) z[i] = __fadd_rn(__fmul_rn(d[i], c.factor[i]), c.offset[i]);
}

__device__ __forceinline__ void centred4(float (&d)[4], const u32 (&raw)[4], int type, const float (&centre)[4]) {
  widen4(d, raw, type);
#pragma unroll
  for (int i = 0; i < 4; i++) d[i] = __fsub_rn(d[i], centre[i]);
}

// From the affine to what the activation is given.
__device__ __forceinline__ void before_act4(float (&z)[4], const Tail &p, const Parameters &c,
                                            const u32 (&residual)[4]) {
  if (p.inner) bend4(z, c.inner);
  if (p.residual) {
    float other[4];
    widen4(other, residual, p.residual_type);
    add4(z, other);
  }
  add4(z, c.shift_in);
}

constexpr int TOGETHER = 2; // rows whose loads are in flight at once

__device__ __forceinline__ void tail_forward(const Tail &p) {
  const Place at = place_of(p.rows);
  const bool wide = p.rows.wide;
  const i64 filters = p.rows.channels, channels = filters * p.copies;
  float centre[4];
  vector4(centre, p.centre, at.column, at.count, wide);
#pragma unroll 1
  for (int copy = 0; copy < p.copies; copy++) {
    const int channel = copy * p.rows.channels + at.column;
    Parameters c;
    take(c, p, channel, at.count, wide);
#pragma unroll 1
    for (int turn = 0; turn < at.turns; turn += TOGETHER) {
      u32 sums[TOGETHER][4], residual[TOGETHER][4];
#pragma unroll
      for (int k = 0; k < TOGETHER; k++) {
        const i64 row = at.row + i64(turn + k) * at.step;
        const int count = turn + k < at.turns ? at.count : 0;
        fetch4(sums[k], p.sums, p.sums_type, row * filters + at.column, count, wide);
        if (p.residual) fetch4(residual[k], p.residual, p.residual_type, row * channels + channel, count, wide);
      }
#pragma unroll
      for (int k = 0; k < TOGETHER; k++) {
        float d[4], z[4];
        centred4(d, sums[k], p.sums_type, centre);
        affine4(z, d, c);
        before_act4(z, p, c, residual[k]);
        if (p.act == PRELU_ACT) {
          bend4(z, c.slope);
          add4(z, c.shift_out);
        } else if (p.act == HARDTANH) {
#pragma unroll
          for (int i = 0; i < 4; i++) z[i] = z[i] < p.low ? p.low : p.high < z[i] ? p.high : z[i];
        }
        const i64 row = at.row + i64(turn + k) * at.step;
        store4(z, p.y, p.y_type, row * channels + channel, turn + k < at.turns ? at.count : 0, wide);
      }
    }
  }
}

// Where there are copies, a thread adds up the gradients of its sums in slots of its own, at most TURNS rows of them.
constexpr int TURNS = 8;

struct TailMemory {
  alignas(16) float sums_grad[TURNS][ROW_THREADS][VECTOR];
  alignas(16) Lines totals[TOTALS];
};

// Back through z -> z > 0 ? z : slope * z; adds to the total of the slope's gradient.
__device__ __forceinline__ void through_bend4(float (&g)[4], const float (&z)[4], const float (&slope)[4],
                                              float (&total)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const bool above = z[i] > 0.0f;
    total[i] = __fadd_rn(total[i], above ? 0.0f : __fmul_rn(g[i], z[i]));
    g[i] = above ? g[i] : __fmul_rn(g[i], slope[i]);
  }
}

// One row of four channels: from the gradient of y, in g, to that before the activation.
__device__ __forceinline__ void through_act4(float (&g)[4], const Tail &p, const Parameters &c,
                                             const float (&affine)[4], const u32 (&residual)[4],
                                             float (&total)[TOTALS][4]) {
  float z[4];
#pragma unroll
  for (int i = 0; i < 4; i++) z[i] = affine[i];
  before_act4(z, p, c, residual);
  add4(total[SHIFT_OUT], g);
  if (p.act == PRELU_ACT) {
    through_bend4(g, z, c.slope, total[SLOPE]);
  } else {
#pragma unroll
    for (int i = 0; i < 4; i++) g[i] = p.low < z[i] && z[i] < p.high ? g[i] : 0.0f; // strictly inside, as in torch
  }
  if (p.inner) add4(total[SHIFT_IN], g);
}

// The gradient of a row's sums, from that of one more copy.
__device__ __forceinline__ void through_factor(const Tail &p, TailMemory &memory, const Parameters &c, int copy,
                                               int turn, const float (&g)[4], i64 at, int count, bool wide) {
  float sum[4] = {};
  if (copy) {
    const float4 before = read_words<float4>(memory.sums_grad[turn][threadIdx.x]);
    sum[0] = before.x, sum[1] = before.y, sum[2] = before.z, sum[3] = before.w;
  }
#pragma unroll
  for (int i = 0; i < 4; i++) sum[i] = __fadd_rn(sum[i], __fmul_rn(g[i], c.factor[i]));
  if (copy + 1 == p.copies)
    store4(sum, p.sums_grad, FLOAT32, at, count, wide);
  else
    write_words(memory.sums_grad[turn][threadIdx.x], make_float4(sum[0], sum[1], sum[2], sum[3]));
}

__device__ __forceinline__ void tail_backward(const Tail &p, TailMemory &memory) {
  const Place at = place_of(p.rows);
  const bool wide = p.rows.wide, reads = p.residual && p.act != NO_ACT;
  const i64 filters = p.rows.channels, channels = filters * p.copies;
  float centre[4];
  vector4(centre, p.centre, at.column, at.count, wide);
#pragma unroll 1
  for (int copy = 0; copy < p.copies; copy++) {
    const int channel = copy * p.rows.channels + at.column;
    Parameters c;
    take(c, p, channel, at.count, wide);
    float total[TOTALS][4] = {};
#pragma unroll 1
    for (int turn = 0; turn < at.turns; turn += TOGETHER) {
      u32 grad[TOGETHER][4], sums[TOGETHER][4], residual[TOGETHER][4];
#pragma unroll
      for (int k = 0; k < TOGETHER; k++) {
        const i64 row = at.row + i64(turn + k) * at.step;
        const int count = turn + k < at.turns ? at.count : 0;
        fetch4(grad[k], p.y, p.y_type, row * channels + channel, count, wide);
        fetch4(sums[k], p.sums, p.sums_type, row * filters + at.column, count, wide);
        if (reads) fetch4(residual[k], p.residual, p.residual_type, row * channels + channel, count, wide);
      }
#pragma unroll
      for (int k = 0; k < TOGETHER; k++) {
        if (turn + k >= at.turns) break;
        const i64 row = at.row + i64(turn + k) * at.step;
        float d[4], affine[4], g[4];
        centred4(d, sums[k], p.sums_type, centre);
        affine4(affine, d, c);
        widen4(g, grad[k], p.y_type);
        if (p.act != NO_ACT) through_act4(g, p, c, affine, residual[k], total);
        if (p.residual_grad) store4(g, p.residual_grad, FLOAT32, row * channels + channel, at.count, wide);
        if (p.inner) through_bend4(g, affine, c.inner, total[INNER_SLOPE]);
        add4(total[OFFSET], g);
#pragma unroll
        for (int i = 0; i < 4; i++) total[FACTOR][i] = __fadd_rn(total[FACTOR][i], __fmul_rn(g[i], d[i]));
        through_factor(p, memory, c, copy, turn + k, g, row * filters + at.column, at.count, wide);
      }
    }
    if (copy) __syncthreads(); // the totals of the copy before have been read
#pragma unroll
    for (int which = 0; which < TOTALS; which++)
      if (p.used >> which & 1) put_lines(memory.totals[which], total[which]);
    __syncthreads();
    add_lines(p.rows, memory.totals, p.used, copy * p.rows.channels, int(channels), p.partials);
  }
}

// y = grad + constant + slope * (sums - centre); y may be grad. In the order of STATISTICS in training.py.
struct Statistics {
  Rows rows;
  const void *sums;
  const float *centre, *constant, *slope, *grad;
  void *y;
  int sums_type, y_type;
};

__device__ __forceinline__ void add_statistics(const Statistics &p) {
  const Place at = place_of(p.rows);
  const bool wide = p.rows.wide;
  float centre[4], constant[4], slope[4];
  vector4(centre, p.centre, at.column, at.count, wide);
  vector4(constant, p.constant, at.column, at.count, wide);
  vector4(slope, p.slope, at.column, at.count, wide);
#pragma unroll 1
  for (int turn = 0; turn < at.turns; turn += TOGETHER) {
    u32 sums[TOGETHER][4], grad[TOGETHER][4];
#pragma unroll
    for (int k = 0; k < TOGETHER; k++) {
      const i64 place = (at.row + i64(turn + k) * at.step) * p.rows.channels + at.column;
      const int count = turn + k < at.turns ? at.count : 0;
      fetch4(sums[k], p.sums, p.sums_type, place, count, wide);
      fetch4(grad[k], p.grad, FLOAT32, place, count, wide);
    }
#pragma unroll
    for (int k = 0; k < TOGETHER; k++) {
      const i64 place = (at.row + i64(turn + k) * at.step) * p.rows.channels + at.column;
      float d[4], g[4];
      centred4(d, sums[k], p.sums_type, centre);
      widen4(g, grad[k], FLOAT32);
#pragma unroll
      for (int i = 0; i < 4; i++) g[i] = __fadd_rn(__fadd_rn(g[i], constant[i]), __fmul_rn(d[i], slope[i]));
      store4(g, p.y, p.y_type, place, turn + k < at.turns ? at.count : 0, wide);
    }
  }
}
