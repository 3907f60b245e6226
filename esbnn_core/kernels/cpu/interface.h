// The C interface of driver.cpp, for esbnn_core.kernels.cpu (through ctypes) and for the operators of ONNX Runtime.
#pragma once
#include <cstddef>
#include <cstdint>

#define API extern "C" __attribute__((visibility("default")))

namespace esbnn {

// A convolution as its caller gives it, checked: whole numbers, then addresses, null for a step that is left out.
enum Shape {
  IMAGES, IN_H, IN_W, OUT_H, OUT_W, KERNEL_H, KERNEL_W, STRIDE_H, STRIDE_W, PAD_H, PAD_W, DILATION_H, DILATION_W,
  GROUPS, WORDS, FILTERS, PER_TAP, SKIP_RING, COPIES, SIGN_GROUPS, SIGN_WORDS, // of the operator
  X_REAL, X_KIND, X_IMAGE_STEP, X_PIXEL_STEP, X_CHANNEL_STEP, RESIDUAL_KIND, Y_KIND, THREADS, // of this call's tensors
  SHAPE_LENGTH
};
enum Pointer { X, SHIFT, LANES_OF, SCALE, BIAS, PRELU, RESIDUAL, RPRELU, SIGN_SHIFT, Y, SUMS, BITS, POINTER_LENGTH };

// The kinds of steps in a program, with their numbers and addresses.
enum Step {
  BINARY_CONV,  // as esbnn_conv
  CLEAR,        // bytes; to
  REAL_CONV,    // shape of esbnn_real_conv; x, y, weights, bias
  AVERAGE_POOL, // shape of esbnn_max_pool; x, y
  MEANS,        // images, pixels, channels; x, y
  TILED_AFFINE  // images, pixels, channels, copies, shares; x, y, scale, offset
};

} // namespace esbnn

// Calls share(of, i) for every i below `shares`, on threads of `pool`, and returns when all are done.
typedef void (*esbnn_run)(void *pool, void (*share)(void *of, size_t i), size_t shares, void *of);

// Name of path i in the order of preference, or null past the last; *usable: whether this processor has it.
API const char *esbnn_path(int i, int *usable);

// Lengths of the two arguments of esbnn_conv: of the shape, or (which: 1) of the pointers.
API int esbnn_lengths(int which);

// Whether the library was built with OpenMP; without it every call runs on one thread.
API int esbnn_has_threads();

// int32 words of a path's layout of a weight (O, taps, words): the lanes, the 1-bits of every tap, the nibbles.
API int64_t esbnn_lane_words(int path, int64_t groups, int64_t filters, int64_t taps, int64_t words);
API void esbnn_lanes(int path, const uint32_t *weight, int64_t groups, int64_t filters, int64_t taps, int64_t words,
                     uint32_t *out);

// 0, or 1 where memory is short. The work is done by THREADS threads of OpenMP, or in shares for that many by `run`.
API int esbnn_conv(int path, const int64_t *shape, void *const *pointers);
API int esbnn_conv_in(int path, const int64_t *shape, void *const *pointers, esbnn_run run, void *pool);

// Steps one after the other, 0 or 1 as esbnn_conv. A program is: threads, how many steps; then for each its kind, how many
// numbers and addresses it has, the numbers, and for each address which of `bases` it starts from and how many bytes
// after that it is. The threads of a BINARY_CONV are those of its own numbers.
API int esbnn_program(int path, const int64_t *program, void *const *bases);

// Images of `pixels` pixels each; steps in values.
API void esbnn_pack(int path, const void *x, int kind, const float *shift, int64_t images, int64_t pixels,
                    int64_t channels, int64_t groups, int64_t image_step, int64_t pixel_step, int64_t channel_step,
                    uint32_t *bits, int threads);

// Runs the innermost loop of a path alone, on data that stays in the first cache; returns the +-1 products that it
// made, 0 for a path without such a loop.
API int64_t esbnn_spin(int path, int64_t words, int64_t times);

// Real float32 maps with their channels last; shape: images, in h, w, channels, out h, w, kernel h, w, stride h, w,
// padding h, w, filters. Weights and bias as in real_kernels.h, the taps in the order (kernel h, kernel w, channels).
// 0, or 1 where memory is short.
API int esbnn_real_conv(int path, const int64_t *shape, const float *x, const float *weights, const float *bias,
                        float *y, int threads);
API void esbnn_max_pool(int path, const int64_t *shape, const float *x, float *y, int threads);

// A max-pooling of what the norm of as many copies of x will be applied to, in place of a max-pooling after the norm: y has
// copies * channels channels. 1, or 0 where the two orders might differ in a bit; y is then not to be used. The norm's
// vectors (copies * channels), weight and bias null where it has none. Channels are a multiple of 16.
API int esbnn_pool_before_norm(int path, const int64_t *shape, const float *x, int64_t copies, const float *weight,
                               const float *bias, const float *mean, const float *variance, double eps, float *y,
                               int threads);

// A convolution and the max-pooling of its output; scale and offset (copies * filters), or null for one plain copy.
API int esbnn_real_conv_pool(int path, const int64_t *conv_shape, const int64_t *pool_shape, const float *x,
                             const float *weights, const float *bias, int64_t copies, const float *scale,
                             const float *offset, float *y, int threads);

// Steps after a layer: x, scale, bias, slope, gate (images, channels), factor and residual (maps), null for those that are
// left out (real_kernels.h); and the mean of each channel (images, channels).
API void esbnn_tail(int path, int64_t images, int64_t pixels, int64_t channels, int64_t copies, const float *const *given,
                    float *y, int64_t shares, esbnn_run run, void *pool);
API void esbnn_means(int path, int64_t images, int64_t pixels, int64_t channels, const float *x, float *y, esbnn_run run,
                     void *pool);

// Means over windows without the padding; shape as esbnn_max_pool.
API void esbnn_average_pool(int path, const int64_t *shape, const float *x, float *y, esbnn_run run, void *pool);

// The steps of training on bits beside the sums (training.cpp), on rows of channels. Whole numbers, then addresses, null
// for a step that is left out. Kinds of real tensors are those of conv.h, 0 int32 and 1 int16 those of sums.

// numbers: rows, filters, copies, kind of the sums, activation, kinds of the residual and of y, threads.
// pointers: sums, centre, factor, offset, inner slope, shift_in, slope, shift_out, two limits, residual, y, gradient of
// the sums, of the residual. Backward reads the gradient of y in its place; totals (6, channels) are the gradients of
// offset, factor, inner slope, shift_in, slope and shift_out. 0, or 1 where memory is short.
API int esbnn_train_tail(int path, const int64_t *numbers, void *const *pointers);
API int esbnn_train_tail_backward(int path, const int64_t *numbers, void *const *pointers, double *totals);

// to = from + constant + slope * (sums - centre). numbers: rows, filters, kind of the sums, kind of `to`, threads.
// pointers: sums, centre, constant, slope, from (float32), to.
API void esbnn_statistics(int path, const int64_t *numbers, void *const *pointers);

// to = grad * estimator(x + shift) + onto, and total (channels) or null, the sum over the rows of its first term. numbers: rows,
// channels, groups, words of a group, rule, kinds of grad, x, onto and `to`, threads. pointers: grad, x, shift, mask,
// onto, to. 0, or 1 where memory is short.
API int esbnn_estimator(int path, const int64_t *numbers, void *const *pointers, float clip, double *total);

// +-1: the signs of x + shift, or those of packed bits. numbers: rows, channels, groups, words of a group, kinds of x and
// of the result, threads. pointers: x, shift, bits, result.
API void esbnn_signs(int path, const int64_t *numbers, void *const *pointers);

// both (2, filters): sums over the rows, and sums of squares. numbers: rows, filters, kind of the sums, the largest
// |sum| that can be, at most 46340, threads. 0, or 1 where memory is short.
API int esbnn_moments(int path, const int64_t *numbers, const void *sums, int64_t *both);

// A step between maps and tiles (struct Winograd of training.h): 0 the input, 1 the gradient of the sums to tiles, 2 tiles
// to the gradient of the input, 3 the weight (filters, 3, 3, channels of a group) to tiles, 4 tiles to its gradient.
// numbers: first row of tiles of all images, and one more than the last one, height, width and channels of the map,
// groups, rows and columns of an image's tiles (of weights: filters of a group, 1), padding of rows and columns, numbers
// between two of a tile's, step, rule of an estimator or -1, stride of the convolution, threads. reals: what the input
// has outside, clip. pointers: map, tiles, shift (0: null where the map is signs; 2: never null with a rule), for 2 with
// a rule x and onto, maps, as esbnn_estimator has them, and for 2 two times (2, 2 * columns + 2, channels + 16) numbers,
// at stride 2 (1, 4 * columns + 1, channels + 16): what the call for the rows before these left, and what this one
// leaves. Adds to totals (channels) as its, or null without a rule. 0, or 1 where memory is short.
API int esbnn_winograd(int path, const int64_t *numbers, const float *reals, void *const *pointers, double *totals);

// The norm over these moments (norm.cpp). numbers: filters, copies, rows. pointers: moments, scale (filters) or null,
// gamma, beta and shift_in (channels) or null, running mean and variance (channels), to be updated, or null, result:
// centre (filters), factor, offset (channels). reals: eps, momentum.
API void esbnn_norm(const int64_t *numbers, void *const *pointers, const double *reals);

// Its gradients. numbers as above; pointers: moments, scale, gamma, totals (6, channels) of esbnn_train_tail_backward,
// result: constant and slope of esbnn_statistics, gradient of scale (filters), those of gamma, of the offset, the inner
// slope, shift_in, slope and shift_out (channels).
API void esbnn_norm_gradients(const int64_t *numbers, void *const *pointers, double eps);
