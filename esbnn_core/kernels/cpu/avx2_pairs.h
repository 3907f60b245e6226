// Activations for the tables of avx2.cpp (included by it inside namespace esbnn::ISA): of every nibble of a pixel and of
// the next output's, one row of the table.

// TABLE[a | b << 4][w]: how many bits of the nibble w differ from a, and in the high four bits how many from b
struct Table {
  alignas(64) uint8_t of[256][16];
};
static constexpr Table made_table() {
  constexpr uint8_t ones[16] = {0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4};
  Table table{};
  for (int i = 0; i < 256; i++)
    for (int w = 0; w < 16; w++) table.of[i][w] = uint8_t(ones[(i & 15) ^ w] | ones[(i >> 4) ^ w] << 4);
  return table;
}
static constexpr Table TABLE = made_table();

static thread_local Scratch pair_scratch;

// Bytes of the rows of TABLE for two words of a pixel and of the pixel beside it: 16 units.
static inline void pair_words(__m128i a, __m128i b, Unit *to) {
  const __m128i low = _mm_set1_epi8(15), high = _mm_set1_epi8(char(0xF0));
  const __m128i even = _mm_or_si128(_mm_and_si128(a, low), _mm_and_si128(_mm_slli_epi16(b, 4), high));
  const __m128i odd = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(a, 4), low), _mm_and_si128(b, high));
  const __m256i rows = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(even, odd));
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm256_slli_epi16(rows, 4));
}

// A row of pixels, `count` words of them, each beside the word that is `beside` further, or zeros past the end.
static void pair_row(const uint32_t *from, int64_t count, int64_t beside, Unit *to) {
  const auto two = [](const uint32_t *at) { return _mm_loadl_epi64(reinterpret_cast<const __m128i *>(at)); };
  for (int64_t i = 0; i < count; i += 2, to += 2 * UNITS)
    pair_words(two(from + i), i + beside < count ? two(from + i + beside) : _mm_setzero_si128(), to);
}

// The task in parts whose pairs stay in the second cache; a part is whole rows, or a piece of a single row.
template <typename Use> static bool each_part(const Conv &c, const Task &t, const Use &use) {
  constexpr int64_t BYTES = 128 << 10;
  const int64_t pixel = c.groups * c.words, reach_h = (c.kernel_h - 1) * c.dilation_h + 1;
  const int64_t reach_w = (c.kernel_w - 1) * c.dilation_w + 1, fit = BYTES / (pixel * UNITS * int64_t(sizeof(Unit)));
  const bool one_row = t.row1 - t.row0 == 1;
  const int64_t columns = one_row ? std::max<int64_t>(MAX_PIXELS, (fit / reach_h - reach_w) / c.stride_w / MAX_PIXELS * MAX_PIXELS)
                                  : t.column1 - t.column0;
  const int64_t width = (std::min(columns, t.column1 - t.column0) - 1) * c.stride_w + reach_w;
  const int64_t rows = std::max<int64_t>(1, (fit / width - reach_h) / c.stride_h + 1);
  for (int64_t row = t.row0; row < t.row1; row += rows)
    for (int64_t column = t.column0; column < t.column1; column += columns) {
      Task part = t;
      part.row0 = row, part.row1 = std::min(row + rows, t.row1);
      part.column0 = column, part.column1 = std::min(column + columns, t.column1);
      const int64_t y0 = part.row0 * c.stride_h, x0 = part.column0 * c.stride_w;
      const int64_t high = (part.row1 - part.row0 - 1) * c.stride_h + reach_h;
      const int64_t wide = (part.column1 - part.column0 - 1) * c.stride_w + reach_w;
      Unit *const units = pair_scratch.need<Unit>(high * wide * pixel * UNITS);
      if (!units) return false;
      for (int64_t y = 0; y < high; y++)
        pair_row(c.activations + ((t.image * c.padded_h + y0 + y) * c.padded_w + x0) * pixel, wide * pixel,
                 c.stride_w * pixel, units + y * wide * pixel * UNITS);
      use(part, Seen{units, y0, x0, wide});
    }
  return true;
}
