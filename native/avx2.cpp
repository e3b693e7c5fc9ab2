// AVX2, and AVX2 with VNNI if included by avxvnni.cpp.
#include <immintrin.h>

#include "vectors.hpp"

#ifdef SHVIT_VNNI
#define SHVIT_SET avxvnni
#else
#define SHVIT_SET avx2
#endif

namespace shvit {
namespace SHVIT_SET {

#ifdef SHVIT_VNNI
constexpr int MAX_ROWS = 6, REGISTERS = 2;  // for the sums of a panel
#else
constexpr int MAX_ROWS = 3, REGISTERS = 4;
#endif

#ifdef SHVIT_VNNI

static inline __m256i weights(const int8_t* weight, int i) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(weight + 32 * i));
}

static inline __m256i spread(int32_t four) { return _mm256_set1_epi32(four); }

static inline __m256i add_products(__m256i sums, __m256i pixels, __m256i w) {
    return _mm256_dpbusd_epi32(sums, pixels, w);
}

#else  // as 16-bit numbers, since the 8-bit products of AVX2 saturate

static inline __m256i weights(const int8_t* weight, int i) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weight + 16 * i)));
}

static inline __m256i spread(int32_t four) { return _mm256_cvtepu8_epi16(_mm_set1_epi32(four)); }

static inline __m256i add_products(__m256i sums, __m256i pixels, __m256i w) {
    return _mm256_add_epi32(sums, _mm256_madd_epi16(pixels, w));
}

#endif

template <int ROWS, Output KIND, bool RESIDUAL>
static void tile_of(
    const Product& p, const uint8_t* in, const int8_t* weight, int step, int n, const uint8_t* residual, char* out) {
    __m256i sums[ROWS][REGISTERS];
    each<ROWS>([&](auto r) { each<REGISTERS>([&](auto i) { sums[r][i] = _mm256_setzero_si256(); }); });
    for (int segment = 0; segment < p.segments; segment++) {
        const uint8_t* pixels = in + segment * p.segment_stride;
        for (int k = 0; k < p.segment_groups; k++, pixels += 4, weight += step) {
            __m256i w[REGISTERS];
            each<REGISTERS>([&](auto i) { w[i] = weights(weight, i); });
            each<ROWS>([&](auto r) {
                int32_t four;
                __builtin_memcpy(&four, pixels + r * p.in_stride, 4);
                const __m256i bytes = spread(four);
                each<REGISTERS>([&](auto i) { sums[r][i] = add_products(sums[r][i], bytes, w[i]); });
            });
        }
    }
    each<ROWS>([&](auto r) {
        __m256i total[2];
        each<2>([&](auto i) {
            const __m256i start = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p.start + n + 8 * i));
#ifdef SHVIT_VNNI
            total[i] = _mm256_add_epi32(sums[r][i], start);
#else  // each channel has two sums beside each other
            const __m256i both = _mm256_hadd_epi32(sums[r][2 * i], sums[r][2 * i + 1]);
            total[i] = _mm256_add_epi32(_mm256_permute4x64_epi64(both, 0b11011000), start);
#endif
        });
        write_row<KIND, RESIDUAL>(
            p, load<Ints>(total), n, RESIDUAL ? residual + r * p.residual_stride : nullptr, out, r * p.out_stride);
    });
}

#include "panels.inc"
#include "common.inc"
#include "depthwise.inc"

}  // namespace SHVIT_SET

#define SHVIT_STRING(name) #name
#define SHVIT_NAME(name) SHVIT_STRING(name)
#define SHVIT_JOIN(name, suffix) name##suffix
#define SHVIT_TABLE(name) SHVIT_JOIN(name, _kernels)

const Kernels SHVIT_TABLE(SHVIT_SET) = {
    SHVIT_NAME(SHVIT_SET), false,
    SHVIT_SET::product, SHVIT_SET::depthwise, SHVIT_SET::attend,
    SHVIT_SET::interleave_planes, SHVIT_SET::widen_pixels, SHVIT_SET::pool,
    SHVIT_SET::moments, SHVIT_SET::gate, SHVIT_SET::sigmoid,
};

}  // namespace shvit
