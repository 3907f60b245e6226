// The binary convolution as one matrix product of packed bits: the host's arguments, the tiles, and the layouts.
//
//   rows     output pixels of all images, M = images * out_h * out_w
//   columns  filters of one group
//   depth    words of all taps, k = (tap_i * kernel_w + tap_j) * words + word, in panels of 8 words (256 bits)
//
// x        (N, H, W, groups, words)
// lanes    (groups, panels, own_pad, 8): the weight in panels; filters and words past the end are 0-bits
// corners  (kernel_h + 1, kernel_w + 1, groups * own_pad): 1-bits of a filter in all taps above and left of a corner
//
// The sum of +-1 products over n valid values with a, w as bits 0 and 1 is n - 2 popc(a) - 2 popc(w) + 4 popc(a & w).
// Words outside the image are copied in as 0, so popc(a) and popc(a & w) count only taps inside; n and popc(w) of a
// window at the border come from four corners.
#pragma once
#include "ptx.cuh"

enum Type { FLOAT32, FLOAT16, BFLOAT16, INT32 };

// What a launch needs, as bits of Conv::steps. A kernel compiled for one value of them (-DSTEPS) has no other code; -1
// decides at run time. INT32 out: the bare sums, and no step.
enum Steps {
  PRELU_STEP = 1,
  RPRELU_STEP = 2,
  SIGNS_STEP = 4,
  SIGN_SHIFT_STEP = 8,
  RING_STEP = 16, // a tap may be outside the image and counts 0 there, not -w
  RESIDUAL_STEP = 32,
  WIDE_STEP = 1 << 10,  // channels come in eights, and all that is read and written by eights is aligned
  WORDS_STEP = 1 << 11, // every 32 columns of a block are one word of the packed signs
};
constexpr int RESIDUAL_TYPE = 6, OUT_TYPE = 8; // bit positions of a Type
constexpr int COPY_WORDS = 12; // bit position of log2 of the words of x in one asynchronous copy: 0, 1 or 2

// Blocks that a multiprocessor should hold, which limits the registers of a thread: 4 allow 128, 3 allow 168.
__device__ constexpr int blocks_for(int steps, bool large, bool bits) {
  return large && bits && steps >= 0 && steps & WIDE_STEP && !(steps & RPRELU_STEP) ? 4 : 3;
}

// Rows of residuals that a thread loads at once.
__device__ constexpr int together_for(int steps) {
  return steps >= 0 && (!(steps & RESIDUAL_STEP) || (steps >> RESIDUAL_TYPE & 3) != FLOAT32) ? 4 : 2;
}

// In the order of CONV in launch.py.
struct Conv {
  const u32 *x, *lanes;
  const int *corners;
  const float *scale, *bias, *prelu, *rprelu, *sign_shift;
  const void *residual;
  void *y;
  u32 *bits;
  int pixels, in_h, in_w, out_h, out_w, kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
  int groups, words, panels, own, own_pad, per_tap; // words, filters and +-1 values of one group
  int copies, sign_groups, sign_words, steps;
};

constexpr int PANEL = 8; // words

// A block computes ROWS x COLUMNS; its warps divide rows, columns and, where there are few blocks, the depth.
template <int ROWS_, int COLUMNS_, int WARPS_M_, int WARPS_N_, int WARPS_K_, int PANELS_> struct Tile {
  static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, WARPS_M = WARPS_M_, WARPS_N = WARPS_N_, WARPS_K = WARPS_K_;
  static constexpr int PANELS = PANELS_, STAGES = 3; // panels of a stage; stages in turn
  static constexpr int THREADS = 32 * WARPS_M * WARPS_N * WARPS_K;
  static constexpr int M16 = ROWS / WARPS_M / 16, N8 = COLUMNS / WARPS_N / 8; // fragments of a warp
  static constexpr int UNITS = COLUMNS / 8, TURN = THREADS / UNITS;           // rows in a turn of the epilogue
  static constexpr int STEP = COLUMNS + 8; // of a row of sums: 8 banks more, so that stored rows do not conflict
  static constexpr int STAGE_WORDS = PANELS * (ROWS + COLUMNS) * PANEL, SUM_WORDS = WARPS_K * ROWS * STEP;
  static constexpr int WORDS = STAGES * STAGE_WORDS > SUM_WORDS ? STAGES * STAGE_WORDS : SUM_WORDS;
  static_assert(PANELS % WARPS_K == 0 && ROWS % TURN == 0 && ROWS <= THREADS && UNITS % 4 == 0, "");
};

// An output pixel: where its window starts in x, and which of its taps are inside the image.
struct Row {
  int start;       // pixels of x before the window's first tap, which may be outside
  u32 down, right; // a bit for each tap row and column inside
  int window;      // first and last tap row, first and last tap column, a byte each; the last are exclusive
};

template <class T> struct Memory {
  alignas(16) u32 words[T::WORDS]; // stages; after the product its sums
  alignas(16) Row rows[T::ROWS];
};

typedef Tile<128, 64, 4, 1, 1, 2> Large;
typedef Tile<32, 32, 1, 1, 4, 4> Small;
