// The steps of struct Winograd (training.h) for one instruction set; training_body.h includes this.
#pragma once
#include "training_winograd_side.h"
#include "training_winograd_back.h"

// Of sign(map + shift) where there is a shift.
template <int STRIDE> static void x_to_tiles(const Winograd &given, int64_t row0, int64_t row1, float *) {
  using S = Side<STRIDE>;
  constexpr int N = S::NUMBERS;
  const Winograd w = given;
  const Part outside = Part{} + w.pad_value;
  for (int64_t row = row0; row < row1; row++) {
    const float *image = w.map + row / w.tile_rows * w.height * w.width * w.channels;
    const int64_t top = S::MOVE * (row % w.tile_rows) - w.padding_rows;
    for (int64_t column = 0; column < w.tile_columns; column++) {
      const int64_t left = S::MOVE * column - w.padding_columns;
      const bool inside = top >= 0 && left >= 0 && top + N <= w.height && left + N <= w.width;
      each_vector(w, row, column, [&](int64_t channel, int64_t place) {
        const Part shift = w.shift ? read_part(w.shift + channel) : Part{};
        Part half[N][N]; // B' d
        ESBNN_UNROLL
        for (int j = 0; j < N; j++) {
          Part d[N], numbers[N];
          ESBNN_UNROLL
          for (int i = 0; i < N; i++) {
            const int64_t y = top + i, x = left + j;
            d[i] = outside;
            if (inside || (y >= 0 && x >= 0 && y < w.height && x < w.width)) {
              d[i] = read_part(image + (y * w.width + x) * w.channels + channel);
              if (w.shift) d[i] = sign_of(d[i] + shift);
            }
          }
          S::of_pixels(d, numbers);
          ESBNN_UNROLL
          for (int i = 0; i < N; i++) half[i][j] = numbers[i];
        }
        ESBNN_UNROLL
        for (int i = 0; i < N; i++) {
          Part numbers[N];
          S::of_pixels(half[i], numbers);
          ESBNN_UNROLL
          for (int j = 0; j < N; j++) write_part(w.tiles + place + (N * i + j) * w.apart, numbers[j]);
        }
      });
    }
  }
}

template <int STRIDE> static void grad_to_tiles(const Winograd &given, int64_t row0, int64_t row1, float *) {
  using S = Side<STRIDE>;
  constexpr int N = S::NUMBERS;
  const Winograd w = given;
  for (int64_t row = row0; row < row1; row++) {
    const int64_t y = 2 * (row % w.tile_rows);
    const float *rows = w.map + (row / w.tile_rows * w.height + y) * w.width * w.channels;
    const bool lower = y + 1 < w.height;
    for (int64_t column = 0; column < w.tile_columns; column++) {
      const bool right = 2 * column + 1 < w.width;
      each_vector(w, row, column, [&](int64_t channel, int64_t place) {
        const float *from = rows + 2 * column * w.channels + channel;
        Part g[2][2] = {}, half[N][2]; // A g
        g[0][0] = read_part(from);
        if (right) g[0][1] = read_part(from + w.channels);
        if (lower) g[1][0] = read_part(from + w.width * w.channels);
        if (lower && right) g[1][1] = read_part(from + (w.width + 1) * w.channels);
        ESBNN_UNROLL
        for (int j = 0; j < 2; j++) {
          Part numbers[N];
          S::of_grad(g[0][j], g[1][j], numbers);
          ESBNN_UNROLL
          for (int i = 0; i < N; i++) half[i][j] = numbers[i];
        }
        ESBNN_UNROLL
        for (int i = 0; i < N; i++) {
          Part numbers[N];
          S::of_grad(half[i][0], half[i][1], numbers);
          ESBNN_UNROLL
          for (int j = 0; j < N; j++) write_part(w.tiles + place + (N * i + j) * w.apart, numbers[j]);
        }
      });
    }
  }
}

// For weights the "tiles" are the filters of a group, and the map has 3x3 taps for each.
static inline int64_t weight_tile(const Winograd &w, int64_t filter) {
  return filter / w.tile_rows * w.numbers() * w.apart + filter % w.tile_rows * w.channels;
}

template <int STRIDE> static void weight_to_tiles(const Winograd &given, int64_t filter0, int64_t filter1, float *) {
  constexpr int N = Side<STRIDE>::NUMBERS;
  const Winograd w = given;
  for (int64_t filter = filter0; filter < filter1; filter++)
    for (int64_t at = 0; at < w.channels; at += WIDE) {
      Part half[N][3]; // G k
      ESBNN_UNROLL
      for (int j = 0; j < 3; j++) {
        Part k[3], numbers[N];
        ESBNN_UNROLL
        for (int i = 0; i < 3; i++) k[i] = read_part(w.map + (filter * 9 + 3 * i + j) * w.channels + at);
        Side<STRIDE>::of_taps(k, numbers);
        ESBNN_UNROLL
        for (int i = 0; i < N; i++) half[i][j] = numbers[i];
      }
      float *to = w.tiles + weight_tile(w, filter) + at;
      ESBNN_UNROLL
      for (int i = 0; i < N; i++) {
        Part numbers[N];
        Side<STRIDE>::of_taps(half[i], numbers);
        ESBNN_UNROLL
        for (int j = 0; j < N; j++) write_part(to + (N * i + j) * w.apart, numbers[j]);
      }
    }
}

template <int STRIDE> static void tiles_to_weight(const Winograd &given, int64_t filter0, int64_t filter1, float *) {
  constexpr int N = Side<STRIDE>::NUMBERS;
  const Winograd w = given;
  for (int64_t filter = filter0; filter < filter1; filter++)
    for (int64_t at = 0; at < w.channels; at += WIDE) {
      const float *from = w.tiles + weight_tile(w, filter) + at;
      Part half[3][N]; // G' t
      ESBNN_UNROLL
      for (int j = 0; j < N; j++) {
        Part t[N], taps[3];
        ESBNN_UNROLL
        for (int i = 0; i < N; i++) t[i] = read_part(from + (N * i + j) * w.apart);
        Side<STRIDE>::to_taps(t, taps);
        ESBNN_UNROLL
        for (int i = 0; i < 3; i++) half[i][j] = taps[i];
      }
      ESBNN_UNROLL
      for (int i = 0; i < 3; i++) {
        Part taps[3];
        Side<STRIDE>::to_taps(half[i], taps);
        ESBNN_UNROLL
        for (int j = 0; j < 3; j++) write_part(w.map + (filter * 9 + 3 * i + j) * w.channels + at, taps[j]);
      }
    }
}

// Each by its stride.
#define ESBNN_CHOICE(STEP) \
  static void STEP(const Winograd &w, int64_t row0, int64_t row1, float *scratch) { \
    (w.stride == 1 ? STEP<1> : STEP<2>)(w, row0, row1, scratch); \
  }
ESBNN_CHOICE(x_to_tiles)
ESBNN_CHOICE(grad_to_tiles)
ESBNN_CHOICE(tiles_to_x)
ESBNN_CHOICE(weight_to_tiles)
ESBNN_CHOICE(tiles_to_weight)
#undef ESBNN_CHOICE
#undef ESBNN_UNROLL
