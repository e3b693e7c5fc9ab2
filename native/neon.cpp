// ARMv8.2 with dot products: Apple's M1 and later, Cortex-A55 and A76 and later, Neoverse N1 and later.
#include <arm_neon.h>

#include "vectors.hpp"

namespace shvit {
namespace neon {

constexpr int MAX_ROWS = 6;
constexpr int QUARTERS = 4;  // registers for a panel

template <int ROWS, Output KIND, bool RESIDUAL>
static void tile_of(
    const Product& p, const uint8_t* in, const int8_t* weight, int step, int n, const uint8_t* residual, char* out) {
    int32x4_t sums[ROWS][QUARTERS];
    each<ROWS>([&](auto r) { each<QUARTERS>([&](auto q) { sums[r][q] = vdupq_n_s32(0); }); });
    int32x4_t of_weights[QUARTERS];
    each<QUARTERS>([&](auto q) { of_weights[q] = vdupq_n_s32(0); });
    const int8x16_t ones = vdupq_n_s8(1);
    const uint8x16_t half = vdupq_n_u8(128);
    for (int segment = 0; segment < p.segments; segment++) {
        const uint8_t* pixels = in + segment * p.segment_stride;
        for (int k = 0; k < p.segment_groups; k++, pixels += 4, weight += step) {
            int8x16_t w[QUARTERS];
            each<QUARTERS>([&](auto q) {
                w[q] = vld1q_s8(weight + q * 16);
                of_weights[q] = vdotq_s32(of_weights[q], w[q], ones);
            });
            each<ROWS>([&](auto r) {
                uint32_t four;
                __builtin_memcpy(&four, pixels + r * p.in_stride, 4);
                // signed, since there are no products of signed and unsigned bytes: 128 less
                const int8x16_t bytes = vreinterpretq_s8_u8(veorq_u8(vreinterpretq_u8_u32(vdupq_n_u32(four)), half));
                each<QUARTERS>([&](auto q) { sums[r][q] = vdotq_s32(sums[r][q], w[q], bytes); });
            });
        }
    }
    each<ROWS>([&](auto r) {
        int32x4_t whole[QUARTERS];
        each<QUARTERS>([&](auto q) {
            const int32x4_t start = vaddq_s32(vld1q_s32(p.start + n + q * 4), vshlq_n_s32(of_weights[q], 7));
            whole[q] = vaddq_s32(sums[r][q], start);
        });
        write_row<KIND, RESIDUAL>(
            p, load<Ints>(whole), n, RESIDUAL ? residual + r * p.residual_stride : nullptr, out, r * p.out_stride);
    });
}

#include "panels.inc"
#include "common.inc"
#include "depthwise.inc"

}  // namespace neon

const Kernels neon_kernels = {
    "neon", false,
    neon::product, neon::depthwise, neon::attend,
    neon::interleave_planes, neon::widen_pixels, neon::pool,
    neon::moments, neon::gate, neon::sigmoid,
};

}  // namespace shvit
