// What training on bits computes beside the sums (esbnn_core.training.on_bits): the structs that training.cpp fills from
// its C interface, and the loops that a build for one instruction set provides (training_body.h).
//
// Maps are rows of channels, contiguous. A loop does rows [row0, row1) of a call; sums over rows are added up in float32
// over at most FLUSH rows, then in float64, in an order that depends on the shape alone.
#pragma once
#include "conv.h"

namespace esbnn {

constexpr int GROUP = 8;   // rows that are walked together, so that a channel's vectors are loaded once for them
constexpr int FLUSH = 256; // rows, a multiple of GROUP

enum SumsKind { INT32, INT16, CENTRED }; // CENTRED: float32, the centre is off already
enum Activation { NO_ACT, PRELU_ACT, HARDTANH };
enum Total { OFFSET, FACTOR, INNER_SLOPE, SHIFT_IN, SLOPE, SHIFT_OUT, TOTALS }; // sums over rows, by channel

// affine -> [PReLU] -> [+ residual] -> [activation], forward and backward; a null pointer leaves a step out.
// Channel j of copies * filters takes sum j mod filters.
struct Tail {
  int64_t filters, copies;
  const void *sums; // (rows, filters)
  SumsKind sums_kind;
  const float *centre;                                                // (filters)
  const float *factor, *offset, *inner, *shift_in, *slope, *shift_out; // (copies * filters), none of them null but inner
  Activation act;
  float low, high; // of the hardtanh
  const void *residual;
  void *y; // forward: the result; backward: its gradient, which is read alone
  Kind residual_kind, y_kind;
  float *sums_grad;     // (rows, filters), of the centred sums
  float *residual_grad; // (rows, copies * filters) or null

  int64_t channels() const { return copies * filters; }
};

// y = sums_grad + constant + slope * (sums - centre), rows of filters; y may be sums_grad itself.
struct Statistics {
  int64_t filters;
  const void *sums;
  SumsKind sums_kind;
  const float *centre, *constant, *slope, *sums_grad;
  void *y;
  Kind y_kind;
};

// y = grad * estimator(x + shift) [+ onto], rows of channels; y may be grad or onto. MASKED reads the estimator from
// bits in the order of packed signs.
enum Rule { IDENTITY, CLIP, POLY2, MASKED };
struct Estimator {
  int64_t channels, groups, words; // words of a group
  Rule rule;
  float clip;
  const void *grad, *x;
  const float *shift; // never null
  const uint32_t *mask;
  const void *onto;
  void *y;
  Kind grad_kind, x_kind, onto_kind, y_kind;
};

// y = +-1, the sign of x + shift or, without x, of packed bits; rows of channels.
struct Signs {
  int64_t channels, groups, words;
  const void *x;
  const float *shift; // never null with x
  const uint32_t *bits;
  void *y;
  Kind x_kind, y_kind;
};

// Between maps and tiles of Winograd's F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308), transposed, for the gradients of
// a 3x3 convolution. At stride 1 a tile has 2x2 values of the gradient g of the sums and the 4x4 values d of the input
// that they saw. With that paper's B, G and A, and the weight k, the gradient of the weight is the sum over tiles of
// G' ((B' d B) * (A g A')) G, that of the input B ((G k G') * (A g A')) B', added up where tiles overlap. * goes number
// by number: 16 products in place of 36 for 2x2 values. Of signs B' d B are whole numbers, of +-1 G k G' are quarters.
// Of stride 2 the values d are 5x5. Its pixels of one parity see two taps of a side, by F(2, 2), the others one: 25
// products in place of 36, of whole numbers alone.
struct Winograd {
  int64_t height, width, channels, groups; // of the map (images, height, width, channels); LANES divides a group's
  int64_t stride;                          // of the convolution, 1 or 2
  int64_t tile_rows, tile_columns;         // of an image
  int64_t padding_rows, padding_columns;   // of the input
  int64_t apart;                           // numbers from one of a tile's to the next
  int64_t first, last;                     // rows of tiles over all images, those of `tiles`
  float pad_value;                         // what the input has outside
  float *map, *tiles;                      // tiles (groups, numbers(), tiles, channels of a group)
  // X_TO_TILES takes sign(map + shift) where there is a shift. With a rule, none of them MASKED, TILES_TO_X writes what
  // struct Estimator has for its gradient, and sums without `onto`; without one, -1, the gradient itself.
  const float *shift, *x, *onto; // x and onto, which may be `map` or null, are maps as `map`
  int rule;
  float clip;
  // Of TILES_TO_X: what the rows before `first` add to the map, and those before `last`, carry_floats() numbers each; and
  // the sums of each row of tiles (last - first, channels), with a rule.
  const float *carry_in;
  float *carry_out, *sums;

  int64_t side() const { return stride == 1 ? 4 : 5; } // of a tile, in numbers as in pixels
  int64_t numbers() const { return side() * side(); }
  int64_t overlap() const { return side() - 2 * stride; } // pixels of two tiles side by side
  int64_t pixel_columns() const { return 2 * stride * tile_columns + overlap(); }
  // From one pixel of a carry to the next: a cache has few places for pixels that are a power of two apart.
  int64_t pixel_floats() const { return channels + LANES; }
  int64_t carry_floats() const { return overlap() * pixel_columns() * pixel_floats(); }
  int64_t scratch_floats() const { return carry_floats() + (side() * overlap() + 1) * pixel_floats(); }
};
enum WinogradStep { X_TO_TILES, GRAD_TO_TILES, TILES_TO_X, WEIGHT_TO_TILES, TILES_TO_WEIGHT, WINOGRAD_STEPS };

struct Training {
  void (*forward)(const Tail &, int64_t row0, int64_t row1, float *scratch);
  // adds to totals (TOTALS, channels); both need scratch_floats(channels) numbers of scratch
  void (*backward)(const Tail &, int64_t row0, int64_t row1, double *totals, float *scratch);
  void (*statistics)(const Statistics &, int64_t row0, int64_t row1);
  // adds to total (channels), or null; scratch as long
  void (*estimator)(const Estimator &, int64_t row0, int64_t row1, double *total, float *scratch);
  void (*signs)(const Signs &, int64_t row0, int64_t row1);
  // adds sums and sums of squares of rows of filters; |sum| <= largest <= 46340
  void (*moments)(const void *sums, SumsKind kind, int64_t filters, int64_t largest, int64_t row0, int64_t row1,
                  int64_t *total, int64_t *squares);
  // rows of tiles from `first` to `last`, of the weights filters; TILES_TO_X needs scratch_floats() numbers of scratch
  void (*winograd[WINOGRAD_STEPS])(const Winograd &, int64_t row0, int64_t row1, float *scratch);
};

inline int64_t scratch_floats(int64_t channels) { return (TOTALS + 2 * GROUP) * channels; }

extern const Training portable_training;
#ifdef ESBNN_X86
extern const Training avx2_training, avx512_training;
#endif

} // namespace esbnn
