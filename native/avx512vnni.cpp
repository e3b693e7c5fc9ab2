// AVX-512 with VNNI: Intel since Ice Lake, AMD since Zen 4.
#include <immintrin.h>

#include "vectors.hpp"

namespace shvit {
namespace avx512vnni {

// 14 rows of 2 panels use 28 registers for sums, 2 for weights and 1 for pixels, of 32.
constexpr int MAX_ROWS = 14;
constexpr int AHEAD = 2048;  // bytes of weights that are fetched before they are needed

// Write `channels` bytes of each row, or all if there are fewer in the registers. Four registers are packed at once.
template <int ROWS, int PANELS>
static inline __attribute__((always_inline)) void store_bytes(
    const __m512i (&sums)[ROWS][PANELS], char* out, ptrdiff_t stride, int channels) {
    constexpr int AT_ONCE = 4 / PANELS;  // rows
    // packing works inside quarters of registers: the parts of a row are 4 bytes of each quarter
    const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const bool all = channels >= PANELS * PANEL;
    const __mmask32 some = all ? ~0u : (1u << channels) - 1;
    each<(ROWS + AT_ONCE - 1) / AT_ONCE>([&](auto group) {
        constexpr int FIRST = group * AT_ONCE;
        const auto part = [&](auto i) {
            constexpr int ROW = FIRST + i / PANELS;
            return sums[ROW < ROWS ? ROW : ROWS - 1][i % PANELS];
        };
        using std::integral_constant;
        const __m512i words0 = _mm512_packs_epi32(part(integral_constant<int, 0>()), part(integral_constant<int, 1>()));
        const __m512i words1 = _mm512_packs_epi32(part(integral_constant<int, 2>()), part(integral_constant<int, 3>()));
        const __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(words0, words1));
        each<(AT_ONCE < ROWS - FIRST ? AT_ONCE : ROWS - FIRST)>([&](auto i) {
            char* place = out + (FIRST + i) * stride;
            if constexpr (PANELS == 2) {
                const __m256i row = _mm512_extracti64x4_epi64(bytes, i);
                if (all) return _mm256_storeu_si256(reinterpret_cast<__m256i*>(place), row);
                _mm256_mask_storeu_epi8(place, some, row);
            } else {
                const __m128i row = _mm512_extracti32x4_epi32(bytes, i);
                if (all) return _mm_storeu_si128(reinterpret_cast<__m128i*>(place), row);
                _mm_mask_storeu_epi8(place, some, row);
            }
        });
    });
}

template <int ROWS, int PANELS, Output KIND, bool RESIDUAL>
static void tile_of(
    const Product& p, const uint8_t* in, const int8_t* weight, int n, const uint8_t* residual, char* out) {
    const ptrdiff_t stride = p.in_stride;
    __m512i sums[ROWS][PANELS];
    each<PANELS>([&](auto c) {
        const __m512i start = _mm512_loadu_si512(p.start + n + c * PANEL);
        each<ROWS>([&](auto r) { sums[r][c] = start; });
    });
    for (int segment = 0; segment < p.segments; segment++) {
        // one pointer for three rows: addresses of the form base + {0, 1, 2} * stride need no further registers
        const uint8_t* base[(ROWS + 2) / 3];
        each<(ROWS + 2) / 3>([&](auto i) { base[i] = in + segment * p.segment_stride + i * 3 * stride; });
        for (int k = 0; k < p.segment_groups; k++) {
            __m512i w[PANELS];
            each<PANELS>([&](auto c) { w[c] = _mm512_loadu_si512(weight + c * 64); });
            each<PANELS>([&](auto c) { _mm_prefetch(weight + AHEAD + c * 64, _MM_HINT_T0); });
            each<ROWS>([&](auto r) {
                int32_t four;
                __builtin_memcpy(&four, base[r / 3] + (r % 3) * stride, 4);
                const __m512i pixels = _mm512_set1_epi32(four);
                each<PANELS>([&](auto c) { sums[r][c] = _mm512_dpbusd_epi32(sums[r][c], pixels, w[c]); });
            });
            weight += PANELS * 64;
            each<(ROWS + 2) / 3>([&](auto i) { base[i] += 4; });
        }
    }
    if constexpr (KIND == Output::sums) {
        int32_t* place = reinterpret_cast<int32_t*>(out);
        each<ROWS>([&](auto r) {
            each<PANELS>([&](auto c) { _mm512_storeu_si512(place + r * p.out_stride + c * PANEL, sums[r][c]); });
        });
        return;
    }
    const __m512 residual_scale = _mm512_set1_ps(p.residual_scale);
    each<PANELS>([&](auto c) {
        const __m512 scale = _mm512_loadu_ps(p.scale + n + c * PANEL);
        const __m512 shift = _mm512_loadu_ps(p.shift + n + c * PANEL);
        each<ROWS>([&](auto r) {
            __m512 value = _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][c]), scale), shift);
            if constexpr (KIND == Output::floats) {
                _mm512_storeu_ps(reinterpret_cast<float*>(out) + r * p.out_stride + c * PANEL, value);
            } else {
                if constexpr (RESIDUAL) {
                    const uint8_t* added = residual + r * p.residual_stride + c * PANEL;
                    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(added));
                    const __m512 floats = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
                    value = _mm512_add_ps(value, _mm512_mul_ps(floats, residual_scale));
                }
                sums[r][c] = _mm512_cvtps_epi32(value);
            }
        });
    });
    if constexpr (KIND == Output::bytes) store_bytes<ROWS, PANELS>(sums, out, p.out_stride, p.written - n);
}

template <Output KIND, bool RESIDUAL, int ROWS>
static void with_rows(
    int rows, int panels, const Product& p, const uint8_t* in, const int8_t* weight, int n, const uint8_t* residual,
    char* out) {
    if constexpr (ROWS > 0) {
        if (rows < ROWS)
            return with_rows<KIND, RESIDUAL, ROWS - 1>(rows, panels, p, in, weight, n, residual, out);
        if (panels == 2) return tile_of<ROWS, 2, KIND, RESIDUAL>(p, in, weight, n, residual, out);
        tile_of<ROWS, 1, KIND, RESIDUAL>(p, in, weight, n, residual, out);
    }
}

template <Output KIND, bool RESIDUAL>
static void tile(
    int rows, int panels, const Product& p, const uint8_t* in, const int8_t* weight, int n, const uint8_t* residual,
    char* out) {
    with_rows<KIND, RESIDUAL, MAX_ROWS>(rows, panels, p, in, weight, n, residual, out);
}

#include "common.inc"

// Interleave the bytes of four pixels: register q has channels 4q to 4q + 3 of every 16, with four bytes for each.
static inline void interleave_pixels(const uint8_t* in, __m512i mixed[4]) {
    __m512i pixel[4];
    for (int i = 0; i < 4; i++) pixel[i] = _mm512_loadu_si512(in + i * BLOCK);
    const __m512i low01 = _mm512_unpacklo_epi8(pixel[0], pixel[1]), high01 = _mm512_unpackhi_epi8(pixel[0], pixel[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(pixel[2], pixel[3]), high23 = _mm512_unpackhi_epi8(pixel[2], pixel[3]);
    mixed[0] = _mm512_unpacklo_epi16(low01, low23);
    mixed[1] = _mm512_unpackhi_epi16(low01, low23);
    mixed[2] = _mm512_unpacklo_epi16(high01, high23);
    mixed[3] = _mm512_unpackhi_epi16(high01, high23);
}

// Four pixels are read at once, which is enough for two outputs of stride 1, or for one of stride 2.
template <int STRIDE>
static void depthwise_of(const Depthwise& d) {
    constexpr int OUTPUTS = STRIDE == 1 ? 2 : 1;
    __m512i w[OUTPUTS][3][4], start[4];
    __m512 scale[4], shift[4];
    for (int q = 0; q < 4; q++) {
        for (int o = 0; o < OUTPUTS; o++)
            for (int y = 0; y < 3; y++) w[o][y][q] = _mm512_loadu_si512(d.weight + ((o * 3 + y) * 4 + q) * 64);
        start[q] = _mm512_loadu_si512(d.start + q * 16);
        scale[q] = _mm512_loadu_ps(d.scale + q * 16);
        shift[q] = _mm512_loadu_ps(d.shift + q * 16);
    }
    for (int y = 0; y < d.height; y++) {
        const uint8_t* line = d.in + y * STRIDE * d.in_line;
        uint8_t* out = d.out + ptrdiff_t(y) * d.width * d.out_stride;
        for (int x = 0; x < d.width; x += OUTPUTS) {
            __m512i sums[OUTPUTS][4];
            for (int o = 0; o < OUTPUTS; o++)
                for (int q = 0; q < 4; q++) sums[o][q] = start[q];
            for (int row = 0; row < 3; row++) {
                __m512i mixed[4];
                interleave_pixels(line + row * d.in_line + x * STRIDE * BLOCK, mixed);
                for (int o = 0; o < OUTPUTS; o++)
                    for (int q = 0; q < 4; q++) sums[o][q] = _mm512_dpbusd_epi32(sums[o][q], mixed[q], w[o][row][q]);
            }
            for (int o = 0; o < OUTPUTS && x + o < d.width; o++) {
                __m512i rounded[4];
                for (int q = 0; q < 4; q++)
                    rounded[q] = _mm512_cvtps_epi32(
                        _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(sums[o][q]), scale[q]), shift[q]));
                const __m512i low = _mm512_packs_epi32(rounded[0], rounded[1]);
                const __m512i high = _mm512_packs_epi32(rounded[2], rounded[3]);
                _mm512_storeu_si512(out + (x + o) * d.out_stride, _mm512_packus_epi16(low, high));
            }
        }
    }
}

static void depthwise(const Depthwise& d) {
    if (d.stride == 1) return depthwise_of<1>(d);
    depthwise_of<2>(d);
}

}  // namespace avx512vnni

const Kernels avx512vnni_kernels = {
    "avx512vnni",        true,
    avx512vnni::product, avx512vnni::depthwise, avx512vnni::attend,
    avx512vnni::interleave_planes, avx512vnni::widen_pixels, avx512vnni::pool,
    avx512vnni::moments, avx512vnni::gate, avx512vnni::sigmoid,
};

}  // namespace shvit
