// Portable code, for processors without any of the other sets.
#include "vectors.hpp"

namespace shvit {
namespace generic {

constexpr int MAX_ROWS = 1;

template <int ROWS, Output KIND, bool RESIDUAL>
static void tile_of(
    const Product& p, const uint8_t* in, const int8_t* weight, int step, int n, const uint8_t* residual, char* out) {
    for (int r = 0; r < ROWS; r++) {
        int32_t sums[PANEL];
        __builtin_memcpy(sums, p.start + n, sizeof sums);
        const int8_t* w = weight;
        for (int segment = 0; segment < p.segments; segment++) {
            const uint8_t* pixels = in + segment * p.segment_stride + r * p.in_stride;
            for (int k = 0; k < p.segment_groups; k++, pixels += 4, w += step)
                for (int l = 0; l < PANEL; l++)
                    for (int j = 0; j < 4; j++) sums[l] += pixels[j] * w[4 * l + j];
        }
        write_row<KIND, RESIDUAL>(p, load<Ints>(sums), n, RESIDUAL ? residual + r * p.residual_stride : nullptr, out, r * p.out_stride);
    }
}

#include "panels.inc"
#include "common.inc"
#include "depthwise.inc"

}  // namespace generic

const Kernels generic_kernels = {
    "generic",     false,
    generic::product, generic::depthwise, generic::attend,
    generic::interleave_planes, generic::widen_pixels, generic::pool,
    generic::moments, generic::gate, generic::sigmoid,
};

}  // namespace shvit
