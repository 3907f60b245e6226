// What training on bits computes beside the sums (cpu/training.h says what each step is): how a launch is divided, four
// channels side by side, and sums over rows.
//
// Maps are rows of channels, contiguous. A thread has four neighbouring channels, 16 bytes of float32 and int32, 8 of
// narrower types (eight channels would take the registers of half the threads), in up to `turns` rows. Neighbouring
// threads, `lanes` of them, have neighbouring channels, and the next ones the next rows. Everything is decided at run
// time, alike for all threads: memory, not instructions, limits these steps, and one compilation has all of them. Every
// step is rounded on its own, as on the CPU.
#pragma once
#include "values.cuh"

typedef unsigned long long u64;

constexpr int INT16 = 4; // a Type of sums beside those of conv.cuh
constexpr int ROW_THREADS = 128, VECTOR = 4;

// How rows are divided among threads and blocks, (blocks, tiles) of them. In the order of ROWS in division.py.
struct Rows {
  i64 rows;
  int channels;     // of a row; of a tail its filters
  int lanes, turns; // threads across a tile of channels, rows of a thread
  int blocks;       // along the rows
  int wide;         // channels come in fours, and all that is read and written is aligned to four
};

// The rows row, row + step, .., `turns` of them, and channels of a thread; count 0 and no turns for a thread too many.
struct Place {
  i64 row;
  int step, turns, column, count;
};

__device__ __forceinline__ Place place_of(const Rows &r) {
  const int lines = ROW_THREADS / r.lanes, line = threadIdx.x / r.lanes, lane = threadIdx.x - line * r.lanes;
  Place p;
  p.step = lines, p.row = i64(blockIdx.x) * lines * r.turns + line;
  p.column = (blockIdx.y * r.lanes + lane) * VECTOR;
  const int left = line < lines ? r.channels - p.column : 0;
  p.count = left < 0 ? 0 : left > VECTOR ? VECTOR : left;
  const i64 rows = r.rows - p.row, most = i64(lines) * r.turns;
  p.turns = p.count == 0 || rows <= 0 ? 0 : rows < most ? int((rows + lines - 1) / lines) : r.turns;
  return p;
}

// Four values at `at` as in memory, zeros from `count` on; wide: count is 0 or 4. Widening is another function, so that
// many loads can be in flight. These are ordinary loads: some maps are written over.
__device__ __forceinline__ void fetch4(u32 (&raw)[4], const void *from, int type, i64 at, int count, bool wide) {
  raw[0] = raw[1] = raw[2] = raw[3] = 0;
  if (type == FLOAT32 || type == INT32) {
    const u32 *x = static_cast<const u32 *>(from) + at;
    if (!wide) {
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (i < count) raw[i] = x[i];
    } else if (count) {
      const uint4 all = read_words<uint4>(x);
      raw[0] = all.x, raw[1] = all.y, raw[2] = all.z, raw[3] = all.w;
    }
    return;
  }
  const u16 *x = static_cast<const u16 *>(from) + at;
  if (!wide) {
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < count) raw[i / 2] |= u32(x[i]) << 16 * (i % 2);
  } else if (count) {
    const uint2 both = read_words<uint2>(x);
    raw[0] = both.x, raw[1] = both.y;
  }
}

__device__ __forceinline__ void widen4(float (&v)[4], const u32 (&raw)[4], int type) {
#pragma unroll
  for (int i = 0; i < 4; i++) {
    const u32 half = raw[i / 2] >> 16 * (i % 2);
    if (type == FLOAT32)
      v[i] = __uint_as_float(raw[i]);
    else if (type == INT32)
      v[i] = __int2float_rn(int(raw[i]));
    else if (type == INT16)
      v[i] = __int2float_rn(short(half));
    else
      v[i] = widened(half, type);
  }
}

__device__ __forceinline__ void store4(const float (&v)[4], void *to, int type, i64 at, int count, bool wide) {
  if (type == FLOAT32) {
    float *y = static_cast<float *>(to) + at;
    if (!wide) {
#pragma unroll
      for (int i = 0; i < 4; i++)
        if (i < count) y[i] = v[i];
    } else if (count) {
      write_words(y, make_float4(v[0], v[1], v[2], v[3]));
    }
    return;
  }
  u32 pairs[2];
#pragma unroll
  for (int i = 0; i < 2; i++)
    pairs[i] = type == FLOAT16 ? to_halves(v[2 * i], v[2 * i + 1]) : to_bfloats(v[2 * i], v[2 * i + 1]);
  u16 *y = static_cast<u16 *>(to) + at;
  if (!wide) {
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < count) y[i] = u16(pairs[i / 2] >> 16 * (i % 2));
  } else if (count) {
    write_words(y, make_uint2(pairs[0], pairs[1]));
  }
}

// Four numbers of a vector of parameters, or zeros without one.
__device__ __forceinline__ void vector4(float (&v)[4], const float *from, int at, int count, bool wide) {
  u32 raw[4] = {};
  if (from) fetch4(raw, from, FLOAT32, at, count, wide);
  widen4(v, raw, FLOAT32);
}

// The sum of rows of `count` totals, of which the bits of `used` say which: each block adds up its rows in float32 and
// writes (count, blocks, channels), then another launch (totals) adds the blocks in float64, both in an order that
// depends on the shape alone.
typedef float Lines[ROW_THREADS][VECTOR];

__device__ __forceinline__ void put_lines(Lines &memory, const float (&sum)[4]) {
  write_words(memory[threadIdx.x], make_float4(sum[0], sum[1], sum[2], sum[3]));
}

// The sums of a block's lines; `first` is where its tile begins among all `channels`. Between two barriers.
template <int COUNT>
__device__ __forceinline__ void add_lines(const Rows &r, const Lines (&memory)[COUNT], u32 used, int first,
                                          int channels, float *partials) {
  const int across = r.lanes * VECTOR, lines = ROW_THREADS / r.lanes, tile = blockIdx.y * across;
#pragma unroll 1
  for (int which = 0; which < COUNT; which++) {
    if (!(used >> which & 1)) continue;
    for (int at = threadIdx.x; at < across; at += ROW_THREADS) {
      if (tile + at >= r.channels) break;
      double sum = 0;
      for (int line = 0; line < lines; line++) sum += memory[which][line * r.lanes + at / VECTOR][at % VECTOR];
      partials[(i64(which) * r.blocks + blockIdx.x) * channels + first + tile + at] = float(sum);
    }
  }
}

// In the order of TOTALS in division.py.
struct Totals {
  const float *partials;
  double *totals; // (count, channels), zeros where not used
  int blocks, channels, used;
};

constexpr int TOTAL_COLUMNS = 16, TOTAL_LINES = 32, TOTAL_THREADS = TOTAL_COLUMNS * TOTAL_LINES;
typedef double BlockLines[TOTAL_LINES][TOTAL_COLUMNS];

__device__ __forceinline__ void add_blocks(const Totals &p, BlockLines &memory) {
  const int column = threadIdx.x % TOTAL_COLUMNS, line = threadIdx.x / TOTAL_COLUMNS;
  const int channel = blockIdx.x * TOTAL_COLUMNS + column, which = blockIdx.y;
  double sum = 0;
  if (channel < p.channels && p.used >> which & 1) {
    const float *from = p.partials + i64(which) * p.blocks * p.channels + channel;
#pragma unroll 8
    for (int block = line; block < p.blocks; block += TOTAL_LINES) sum += from[i64(block) * p.channels];
  }
  memory[line][column] = sum;
  __syncthreads();
  if (line || channel >= p.channels) return;
  for (int other = 1; other < TOTAL_LINES; other++) sum += memory[other][column];
  p.totals[i64(which) * p.channels + channel] = sum;
}
