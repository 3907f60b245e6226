// Bits spread to bytes for AMX tiles (included by amx.cpp inside namespace esbnn::ISA): weights to -1 and +1,
// activations to -1 and +1, and to 0 outside the image and past the last channel. So a tile's sum is the exact sum, and
// borders need no correction.

constexpr int64_t SIDE = 16, DEPTH = 64; // of a tile: pixels or filters, values of the sum
static_assert(SIDE == LANES, "a block of filters is the side of a tile");

static thread_local Scratch weight_bytes, pixel_bytes;

static int64_t parts_of(int64_t whole, int64_t part) { return (whole + part - 1) / part; }

// A rectangle of output pixels: the bytes that it reads, and its division into runs of evenly spaced pixels. It is a
// single run through all its rows, with unused places between them, where that takes fewer tiles.
struct Part {
  int64_t row0, rows, column0, columns;  // of the output
  int64_t span, width, in_rows;          // of the padded image: columns read, columns of a line of bytes, rows read
  int64_t runs = rows, length = columns; // length: pixels of a run, unused ones too
  int64_t period = columns;              // pixels until the next output row

  Part(const Conv &c, int64_t row0, int64_t rows, int64_t column0, int64_t columns)
      : row0(row0), rows(rows), column0(column0), columns(columns) {
    span = (columns - 1) * c.stride_w + (c.kernel_w - 1) * c.dilation_w + 1;
    in_rows = (rows - 1) * c.stride_h + (c.kernel_h - 1) * c.dilation_h + 1;
    // the right ring of a line is the left ring of the next
    width = column0 ? span : std::min(span, c.in_w + c.pad_w);
    width = parts_of(width, c.stride_w) * c.stride_w;
    const int64_t next = c.stride_h * width / c.stride_w, joined = (rows - 1) * next + columns;
    if (next >= columns && parts_of(joined, SIDE) < rows * parts_of(columns, SIDE))
      runs = 1, length = joined, period = next;
  }

  int64_t tiles() const { return runs * parts_of(length, SIDE); }
};

// Lines of bytes, c.words * 32 a pixel, starting at `to`, with memory for the surplus pixels of a last tile.
static int8_t *spread_pixels(const Conv &c, const Part &part, int64_t image, int64_t group) {
  const int64_t steps = c.words / 2, pixel_words = c.groups * c.words, last = std::max(part.width, part.span);
  const int64_t pixels = (part.in_rows - 1) * part.width + last + SIDE * c.stride_w;
  int8_t *const bytes = pixel_bytes.need<int8_t>(pixels * steps * DEPTH), *to = bytes;
  if (!bytes) return nullptr;
  const int64_t tail = c.per_tap - (steps - 1) * DEPTH; // channels of the last step
  const __m512i plus = _mm512_set1_epi8(1), minus = _mm512_set1_epi8(-1), zero = _mm512_setzero_si512();
  const __m512i tail_minus = _mm512_maskz_mov_epi8(~uint64_t(0) >> (DEPTH - tail), minus);
  for (int64_t i = 0; i < part.in_rows; i++) {
    const int64_t y = part.row0 * c.stride_h + i, x0 = part.column0 * c.stride_w;
    const uint32_t *row = c.activations + (image * c.padded_h + y) * c.padded_w * pixel_words + group * c.words;
    const bool above = y < c.pad_h || y >= c.pad_h + c.in_h;
    for (int64_t x = x0; x < x0 + (i + 1 < part.in_rows ? part.width : last); x++) {
      const bool ring = above || x < c.pad_w || x >= c.pad_w + c.in_w;
      if (x >= c.padded_w || (ring && c.skip_ring)) {
        for (int64_t s = 0; s < steps; s++, to += DEPTH) _mm512_store_si512(to, zero);
        continue;
      }
      for (int64_t s = 0; s < steps; s++, to += DEPTH) {
        uint64_t bits;
        std::memcpy(&bits, row + x * pixel_words + 2 * s, sizeof(bits));
        _mm512_store_si512(to, _mm512_mask_blend_epi8(bits, s + 1 < steps ? minus : tail_minus, plus));
      }
    }
  }
  return bytes;
}

// Tiles of blocks [block0, block1): a row has four neighbours of the sum of every filter. A vector of lanes, which has
// a word of each filter, becomes eight rows.
static int8_t *spread_weights(const Conv &c, int64_t block0, int64_t block1) {
  const int64_t vectors = (block1 - block0) * c.taps() * c.words;
  int8_t *const bytes = weight_bytes.need<int8_t>(vectors * 8 * DEPTH), *to = bytes;
  if (!bytes) return nullptr;
  const uint32_t *lanes = c.lanes + block0 * c.taps() * c.words * LANES;
  const __m512i plus = _mm512_set1_epi8(1), minus = _mm512_set1_epi8(-1);
  const __m512i low = _mm512_set1_epi32(0x08040201), high = _mm512_slli_epi32(low, 4);
  __m512i byte[4]; // byte i of every word, four times
  for (int i = 0; i < 4; i++)
    byte[i] = _mm512_setr4_epi32(0x01010101 * i, 0x01010101 * (4 + i), 0x01010101 * (8 + i), 0x01010101 * (12 + i));
  for (int64_t v = 0; v < vectors; v++, lanes += LANES) {
    const __m512i words = _mm512_loadu_si512(lanes);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++, to += 2 * DEPTH) {
      const __m512i eight = _mm512_shuffle_epi8(words, byte[i]);
      _mm512_store_si512(to, _mm512_mask_blend_epi8(_mm512_test_epi8_mask(eight, low), minus, plus));
      _mm512_store_si512(to + DEPTH, _mm512_mask_blend_epi8(_mm512_test_epi8_mask(eight, high), minus, plus));
    }
  }
  return bytes;
}
